import pytest

from ggufdeploy.errors import NotFound
from ggufdeploy.hub.catalog import GgufFile, build_catalogue, is_safe_path, list_repository
from tests.hub.conftest import REPO


def catalogue(*paths, size=10):
    return build_catalogue("a/b", "0" * 40, [GgufFile(path, size, "ab" * 32) for path in paths])


def names(found):
    return [artifact.quantization for artifact in found.artifacts]


def test_shards_become_one_artifact_in_order():
    found = catalogue(*(f"m.Q4_K_M-0000{i}-of-00003.gguf" for i in (3, 1, 2)))
    (artifact,) = found.artifacts
    assert [file.path for file in artifact.files] == [f"m.Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert artifact.total_bytes == 30
    assert found.skipped == ()


def test_an_incomplete_shard_set_is_skipped_and_says_what_is_missing():
    found = catalogue("m.Q4_K_M-00001-of-00004.gguf", "m.Q4_K_M-00003-of-00004.gguf", "m.Q8_0.gguf")
    assert names(found) == ["Q8_0"]
    assert dict(found.skipped)["m.Q4_K_M-00001-of-00004.gguf"] == "shards 2, 4 of 4 are missing"


def test_a_leftover_shard_of_another_split_does_not_spoil_the_complete_one():
    found = catalogue("m.Q2_K-00001-of-00002.gguf", "m.Q2_K-00002-of-00002.gguf", "m.Q2_K-00001-of-00005.gguf")
    assert [len(artifact.files) for artifact in found.artifacts] == [2]
    assert [path for path, _ in found.skipped] == ["m.Q2_K-00001-of-00005.gguf"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("mmproj-F16.gguf", "vision projector"),
        ("gemma-3-4b-it-mmproj-BF16.gguf", "vision projector"),
        ("m.imatrix.gguf", "importance matrix"),
        ("imatrix_unsloth.gguf", "importance matrix"),
        ("mtp-m-Q8_0.gguf", "draft model"),
        ("eagle3-m-F16.gguf", "draft model"),
        ("dflash-m.gguf", "draft model"),
        ("draft-m-Q4_0.gguf", "draft model"),
        ("ggml-vocab-llama-bpe.gguf", "only a vocabulary"),
        ("m.i1-Q5_K_M.gguf.part1of2", "raw piece"),
        ("m.Q8_0.gguf-split-a", "raw piece"),
        ("../../etc/m.Q4_0.gguf", "not safe"),
        ("/etc/m.Q4_0.gguf", "not safe"),
        ("a\\b.Q4_0.gguf", "not safe"),
        ("a\nb.Q4_0.gguf", "not safe"),
    ],
)
def test_what_cannot_be_served_is_skipped_with_a_reason(path, reason):
    found = catalogue(path, "m.Q4_K_M.gguf")
    assert names(found) == ["Q4_K_M"]
    assert [(p, reason in why) for p, why in found.skipped] == [(path, True)]


def test_a_model_with_mtp_layers_in_its_name_is_a_model():
    assert names(catalogue("Qwen3.6-27B-MTP-Q4_K_M.gguf")) == ["Q4_K_M"]


def test_other_files_are_no_news():
    assert catalogue("README.md", "config.json", "imatrix.dat", "m.Q4_0.gguf").skipped == ()


def test_artifacts_come_smallest_first():
    files = [GgufFile("m.Q8_0.gguf", 80, None), GgufFile("m.Q2_K.gguf", 20, None), GgufFile("m.Q4_0.gguf", 40, None)]
    assert names(build_catalogue("a/b", "0" * 40, files)) == ["Q2_K", "Q4_0", "Q8_0"]


def test_a_second_file_of_the_same_quantization_is_skipped_by_name():
    found = catalogue("m.Q4_0.gguf", "old/m.Q4_0.gguf")
    assert [artifact.files[0].path for artifact in found.artifacts] == ["m.Q4_0.gguf"]
    assert found.skipped == (("old/m.Q4_0.gguf", "m.Q4_0.gguf is Q4_0 too"),)


def test_a_single_file_that_names_no_quantization_is_offered_but_not_beside_named_ones():
    assert names(catalogue("model.gguf")) == ["unknown"]
    assert names(catalogue("model.gguf", "m.Q4_0.gguf")) == ["Q4_0"]


@pytest.mark.parametrize(
    ("asked", "expected"), [("q4_k_m", "Q4_K_M"), ("Q6", "Q6_K"), ("fp16", "F16"), ("Q5_K_XL", "UD-Q5_K_XL")]
)
def test_find_takes_the_spellings_people_use(asked, expected):
    found = catalogue("m.Q4_K_M.gguf", "m.Q6.gguf", "m.f16.gguf", "m-UD-Q5_K_XL.gguf")
    assert found.find(asked).quantization == expected


def test_find_never_swaps_one_recipe_for_another():
    with pytest.raises(NotFound) as caught:
        catalogue("m-UD-Q4_K_M.gguf", "m.Q8_0.gguf").find("Q4_K_M")
    assert "UD-Q4_K_M" in caught.value.message
    assert caught.value.hint == "did you mean UD-Q4_K_M? ggufdeploy run a/b:UD-Q4_K_M"


def test_safe_paths():
    assert is_safe_path("UD-Q4_K_XL/model 1.gguf")
    assert not any(is_safe_path(path) for path in ("", "a//b", "./a", "a/..", "C:x", "a\0b", "x" * 300, "a/"))


def test_a_repository_is_listed_at_a_pinned_commit_with_bytes_and_checksums(hub, client):
    hub.page_size = 2
    found = list_repository(REPO, None, client)
    assert found.commit == hub.commit(REPO)
    assert names(found) == ["F16", "Q8_0"]
    assert found.artifacts[0].total_bytes == 3_000_000
    assert found.find("q8_0").files[0].sha256 == hub.oid(f"{REPO}/tiny.Q8_0.gguf")
    assert client.revision_of(REPO, found.commit) == "main"


def test_a_repository_without_gguf_is_not_found(hub, client):
    (hub.root / "acme" / "base").mkdir()
    (hub.root / "acme" / "base" / "model.safetensors").write_bytes(b"x")
    (hub.root / "acme" / "base" / "mmproj-F16.gguf").write_bytes(b"x")
    with pytest.raises(NotFound, match=r"mmproj-F16.gguf: a vision projector") as caught:
        list_repository("acme/base", None, client)
    assert caught.value.kind == "model"
