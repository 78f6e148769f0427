import os
import shutil

import pytest

from ggufdeploy.errors import NotFound
from ggufdeploy.hub.cache import find_cached, list_cached, remove
from ggufdeploy.hub.catalog import list_repository
from ggufdeploy.hub.download import download_artifact
from ggufdeploy.hub.layout import RepoCache
from tests.hub.conftest import REPO

pytestmark = pytest.mark.slow


@pytest.fixture
def pull(client):
    def pull(quantization):
        catalogue = list_repository(REPO, None, client)
        artifact = catalogue.find(quantization)
        return download_artifact(client, REPO, catalogue.commit, artifact, on_progress=lambda _: None)

    return pull


def test_an_empty_or_missing_cache_lists_nothing(settings):
    assert list_cached(settings) == []
    assert find_cached(REPO, settings) == []


def test_what_was_downloaded_is_listed_with_size_and_last_use(hub, pull, settings):
    (path,) = pull("Q8_0")
    os.utime(path, (1_000_000, 500_000))
    pull("F16")
    first, second = list_cached(settings)
    assert (first.repo, first.commit) == (REPO, hub.commit(REPO))
    assert [(m.quantization, m.n_bytes, len(m.paths)) for m in (first, second)] == [
        ("F16", 3_000_000, 2),
        ("Q8_0", 3_000_000, 1),
    ]
    assert second.last_used_s == 1_000_000


def test_find_gives_one_per_quantization_and_can_ask_for_one(pull, settings):
    pull("Q8_0")
    paths = pull("F16")
    assert {model.quantization for model in find_cached(REPO, settings)} == {"Q8_0", "F16"}
    (found,) = find_cached(REPO, settings, "F16")
    assert list(found.paths) == paths
    assert find_cached(REPO, settings, "Q4_0") == []


def test_a_shard_set_with_a_missing_shard_is_not_offered(pull, settings):
    paths = pull("F16")
    paths[1].resolve().unlink()
    assert find_cached(REPO, settings) == []


def test_the_commit_that_main_names_goes_before_newer_snapshots(hub, pull, settings):
    pull("Q8_0")
    old = hub.commit(REPO)
    (hub.root / REPO / "tiny.Q8_0.gguf").write_bytes(b"new weights")
    pull("Q8_0")
    assert find_cached(REPO, settings)[0].n_bytes == len(b"new weights")
    RepoCache(settings.hf_cache_dir, REPO).write_ref("main", old)
    assert [model.n_bytes for model in find_cached(REPO, settings)] == [3_000_000]
    assert sorted(model.n_bytes for model in list_cached(settings)) == [len(b"new weights"), 3_000_000]


def test_without_a_ref_the_newest_snapshot_counts(hub, pull, settings):
    cache = RepoCache(settings.hf_cache_dir, REPO)
    for age_s, content in ((10, b"newest"), (30, b"oldest one"), (20, b"between")):
        (hub.root / REPO / "tiny.Q8_0.gguf").write_bytes(content)
        pull("Q8_0")
        os.utime(cache.snapshots / hub.commit(REPO), (0, 1_000_000 - age_s))
    (cache.folder / "refs" / "main").unlink()
    assert [model.n_bytes for model in find_cached(REPO, settings)] == [len(b"newest")]


def test_the_same_file_under_two_commits_is_listed_once(hub, pull, settings):
    pull("Q8_0")
    (hub.root / REPO / "README.md").write_text("edited")
    pull("Q8_0")
    assert len(list((settings.hf_cache_dir).glob("models--*/snapshots/*"))) == 2
    assert [model.commit for model in list_cached(settings)] == [hub.commit(REPO)]


def test_removing_the_last_model_frees_its_bytes_and_leaves_no_trace(pull, settings):
    pull("F16")
    (model,) = list_cached(settings)
    assert remove(model, settings) == 3_000_000
    assert list_cached(settings) == []
    assert not RepoCache(settings.hf_cache_dir, REPO).folder.exists()
    with pytest.raises(NotFound, match="not in the cache any more"):
        remove(model, settings)


def test_removing_one_keeps_the_other(pull, settings):
    kept = pull("Q8_0")
    pull("F16")
    assert remove(find_cached(REPO, settings, "F16")[0], settings) == 3_000_000
    assert [model.quantization for model in list_cached(settings)] == ["Q8_0"]
    assert kept[0].stat().st_size == 3_000_000
    assert len(list(RepoCache(settings.hf_cache_dir, REPO).blobs.iterdir())) == 1


def test_removing_takes_the_same_file_out_of_older_snapshots(hub, pull, settings):
    pull("Q8_0")
    (hub.root / REPO / "README.md").write_text("edited")
    pull("Q8_0")
    assert remove(list_cached(settings)[0], settings) == 3_000_000
    assert list_cached(settings) == []


def test_contents_that_another_name_uses_are_kept(hub, pull, settings):
    shutil.copy(hub.root / REPO / "tiny.Q8_0.gguf", hub.root / REPO / "tiny.Q4_0.gguf")
    (path,) = pull("Q4_0")
    pull("Q8_0")
    assert remove(find_cached(REPO, settings, "Q8_0")[0], settings) == 0
    assert path.stat().st_size == 3_000_000


def test_a_partial_download_survives_removing_its_neighbour(pull, settings):
    pull("Q8_0")
    partial = RepoCache(settings.hf_cache_dir, REPO).blobs / f"{'a' * 64}.ggufdeploy-partial"
    partial.write_bytes(b"half")
    remove(list_cached(settings)[0], settings)
    assert partial.read_bytes() == b"half"
