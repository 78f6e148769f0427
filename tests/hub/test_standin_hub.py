"""The stand-in Hub must satisfy the real huggingface_hub; everything else in this folder relies on it."""

import hashlib
from pathlib import Path

import pytest

from tests.standin_hub import StandinHub

REPO = "acme/tiny-GGUF"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with StandinHub(tmp_path / "hub") as hub:
        folder = hub.root / REPO
        folder.mkdir(parents=True)
        (folder / "tiny.Q4_0.gguf").write_bytes(bytes(range(256)) * 1024)
        (folder / "README.md").write_text("# tiny\n")
        (folder / "BF16").mkdir()
        (folder / "BF16" / "tiny.BF16.gguf").write_bytes(b"weights")
        yield hub


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=False)


def test_the_real_library_lists_sizes_and_checksums_over_several_pages(hub, api):
    hub.page_size = 2
    files = {e.path: e for e in api.list_repo_tree(REPO, recursive=True) if hasattr(e, "size")}
    assert set(files) == {"tiny.Q4_0.gguf", "README.md", "BF16/tiny.BF16.gguf"}
    assert files["BF16/tiny.BF16.gguf"].lfs.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert files["tiny.Q4_0.gguf"].size == 256 * 1024
    assert files["README.md"].lfs is None


def test_the_real_library_downloads_through_the_redirect(hub, api, tmp_path):
    path = api.hf_hub_download(REPO, "tiny.Q4_0.gguf", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == bytes(range(256)) * 1024
    transfers = [(r.server, r.method) for r in hub.requests if "/resolve/" in r.path or "/blob/" in r.path]
    assert transfers == [("hub", "HEAD"), ("cdn", "GET")]
    assert hub.commit(REPO) in path


def test_the_real_library_recognises_missing_gated_and_private(hub, api, tmp_path):
    from huggingface_hub import errors

    with pytest.raises(errors.RepositoryNotFoundError):
        api.model_info("acme/none")
    with pytest.raises(errors.RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "none.gguf", cache_dir=tmp_path)
    hub.gated.add(REPO)
    assert api.model_info(REPO).gated == "manual"
    with pytest.raises(errors.GatedRepoError):
        api.hf_hub_download(REPO, "README.md", cache_dir=tmp_path)
    hub.tokens.add("hf_good")
    assert api.hf_hub_download(REPO, "README.md", cache_dir=tmp_path, token="hf_good")


def test_the_real_library_searches(hub, api):
    assert [m.id for m in api.list_models(search="tiny", filter="gguf", limit=5)] == [REPO]
    assert [m.id for m in api.list_models(search="huge", filter="gguf", limit=5)] == []


def test_a_sparse_giant_is_listed_without_being_read(hub, api):
    with (hub.root / REPO / "giant.Q8_0.gguf").open("wb") as stream:
        stream.truncate(80 << 30)
    files = {e.path: e for e in api.list_repo_tree(REPO)}
    assert files["giant.Q8_0.gguf"].size == 80 << 30
    hub.declare(f"{REPO}/giant.Q8_0.gguf", "ab" * 32)
    assert {e.path: e for e in api.list_repo_tree(REPO)}["giant.Q8_0.gguf"].lfs.sha256 == "ab" * 32


def test_a_commit_changes_with_the_files_and_old_ones_stay_known(hub, api):
    first = api.model_info(REPO).sha
    (hub.root / REPO / "new.F16.gguf").write_bytes(b"more")
    second = api.model_info(REPO).sha
    assert first != second
    assert api.model_info(REPO, revision=first).sha == first
