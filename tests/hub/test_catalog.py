import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.errors import NotFound
from ggufdeploy.hub.catalog import GgufFile, build_catalogue, is_safe_path, list_repository
from ggufdeploy.hub.companion import is_gguf_name
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
    ("path", "kind"),
    [
        ("mmproj-F16.gguf", "projector"),
        ("gemma-3-4b-it-mmproj-BF16.gguf", "projector"),
        ("Qwopus3.5-9B-v3.5.mmproj-Q8_0.gguf", "projector"),
        ("mmproj-llava-34b-f16-q6_k.gguf", "projector"),
        ("m.imatrix.gguf", "imatrix"),
        ("imatrix_unsloth.gguf", "imatrix"),
        ("Qwen3.8-27B-imatrix.gguf", "imatrix"),
        ("mtp-m-Q8_0.gguf", "draft"),
        ("MTP/gemma-4-26B-A4B-it-MTP-Q8_0.gguf", "draft"),
        ("eagle3-m-F16.gguf", "draft"),
        ("Qwen3-8B-EAGLE3-F16.gguf", "draft"),
        ("dflash-draft-3.6-q4_k_m.gguf", "draft"),
        ("draft-m-Q4_0.gguf", "draft"),
        ("ggml-vocab-llama-bpe.gguf", "vocabulary"),
        ("m-vocab.gguf", "vocabulary"),
        ("m-F16-LoRA.gguf", "adapter"),
        ("kakaotalk-persona-lora-f16.gguf", "adapter"),
        ("ggml-adapter-model-f16.gguf", "adapter"),
    ],
)
def test_companions_are_kept_apart_by_kind(path, kind):
    found = catalogue(path, "m.Q4_K_M.gguf")
    assert names(found) == ["Q4_K_M"]
    assert [(item.kind, item.file.path) for item in found.companions] == [(kind, path)]
    assert found.skipped == found.others == ()


@pytest.mark.parametrize(
    "path",
    [
        "Qwen3.6-27B-MTP-Q4_K_M.gguf",
        "Qwen3-Imatrix-Tuned-Q4_K_M.gguf",
        "m-Q4_K_M-imatrix.gguf",
        "alpaca-lora-65B.Q4_K_M.gguf",
        "DeepSeek-V3-DRAFT-0.6B-Q4_K_M.gguf",
        "Eagle-7B-Q4_K_M.gguf",
    ],
)
def test_a_model_with_a_companion_s_word_in_its_name_is_a_model(path):
    assert names(catalogue(path)) == ["Q4_K_M"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("m.i1-Q5_K_M.gguf.part1of2", "raw piece"),
        ("m.Q8_0.gguf-split-a", "raw piece"),
        ("m.Q8_0.gguf-part-a", "raw piece"),
        ("m.Q8_0.gguf.00001", "raw piece"),
        ("m.Q8_0.gguf.aa", "raw piece"),
        ("m-Q8_0-chunk-001-of-018.gguf", "raw piece"),
        ("m-Q8_0.part1of2.gguf", "raw piece"),
        ("m-IQ4_KSS.gguf", "ik_llama.cpp"),
        ("m-Q4_0_4_4.gguf", "no longer reads"),
        ("../../etc/m.Q4_0.gguf", "not safe"),
        ("/etc/m.Q4_0.gguf", "not safe"),
        ("a\\b.Q4_0.gguf", "not safe"),
        ("a\nb.Q4_0.gguf", "not safe"),
    ],
)
def test_what_cannot_be_loaded_is_skipped_with_a_reason(path, reason):
    found = catalogue(path, "m.Q4_K_M.gguf")
    assert names(found) == ["Q4_K_M"]
    assert [(p, reason in why) for p, why in found.skipped] == [(path, True)]


@pytest.mark.parametrize("piece", ["m.Q8_0.gguf.part1of2", "m.Q8_0.gguf-split-a", "m-Q8_0-chunk-001-of-018.gguf"])
def test_asking_for_raw_pieces_says_so_and_what_to_do(piece):
    found = catalogue(piece, "m.Q4_K_M.gguf", "m.Q6_K.gguf")
    for ask in (lambda: found.find("Q8_0"), lambda: found.find_file(piece)):
        with pytest.raises(NotFound, match="raw piece of a file, which llama") as caught:
            ask()
        assert piece in caught.value.message
        assert "take another quantization: ggufdeploy run a/b --quant Q" in (caught.value.hint or "")
        assert "look for another repository" in (caught.value.hint or "")


def test_asking_for_an_incomplete_quantization_says_which_shards_are_missing():
    found = catalogue("m.Q8_0-00001-of-00004.gguf", "m.Q8_0-00003-of-00004.gguf", "m.Q4_K_M.gguf")
    with pytest.raises(NotFound, match=r"a/b has Q8_0 only as .*: shards 2, 4 of 4 are missing") as caught:
        found.find("q8_0")
    assert "ggufdeploy run a/b --quant Q4_K_M" in (caught.value.hint or "")
    with pytest.raises(NotFound, match="shards 2, 4 of 4 are missing"):
        found.find_file("m.Q8_0-00003-of-00004.gguf")


def test_a_hostile_shard_count_costs_no_time():
    found = catalogue(*(f"m{i}.Q8_0-00001-of-99999.gguf" for i in range(500)), "x-00001-of-00000.gguf")
    assert dict(found.skipped)["m0.Q8_0-00001-of-99999.gguf"] == "shards 2, 3, 4, 5, 6… of 99999 are missing"
    assert found.artifacts == ()


def test_other_files_are_no_news():
    assert catalogue("README.md", "config.json", "imatrix.dat", "m.Q4_0.gguf").skipped == ()


def test_artifacts_come_smallest_first():
    files = [GgufFile("m.Q8_0.gguf", 80, None), GgufFile("m.Q2_K.gguf", 20, None), GgufFile("m.Q4_0.gguf", 40, None)]
    assert names(build_catalogue("a/b", "0" * 40, files)) == ["Q2_K", "Q4_0", "Q8_0"]


def test_a_second_build_of_a_quantization_is_reachable_by_its_file():
    found = catalogue("m-IQ3_S-mtp.gguf", "m-IQ3_S.gguf", "old/m-IQ3_S.gguf", "m-Q4_0.gguf")
    assert [artifact.files[0].path for artifact in found.artifacts] == ["m-IQ3_S.gguf", "m-Q4_0.gguf"]
    assert [artifact.files[0].path for artifact in found.others] == ["m-IQ3_S-mtp.gguf", "old/m-IQ3_S.gguf"]
    assert found.models == ("m",)
    other = found.find_file("m-IQ3_S-mtp.gguf")
    assert found.only(other).artifacts == (other,)


def test_a_repository_of_several_models_offers_the_one_it_is_named_after():
    found = build_catalogue(
        "acme/Big-7B-GGUF",
        "0" * 40,
        [
            GgufFile(path, 10, None)
            for path in ("Big-7B-Q4_0.gguf", "Small-1B-Q4_0.gguf", "Small-1B-Q8_0.gguf", "Small-1B-F16.gguf")
        ],
    )
    assert [artifact.files[0].path for artifact in found.artifacts] == ["Big-7B-Q4_0.gguf"]
    assert found.models == ("Big-7B", "Small-1B")
    assert found.find_file("Small-1B-Q8_0.gguf").quantization == "Q8_0"
    with pytest.raises(NotFound, match=r"has Q8_0 only of another model: Small-1B-Q8_0\.gguf") as caught:
        found.find("Q8_0")
    assert caught.value.hint == "name the file: ggufdeploy run acme/Big-7B-GGUF/Small-1B-Q8_0.gguf"


def test_else_the_model_with_the_most_quantizations_is_offered():
    found = catalogue("7b/ggml-model-q4_0.gguf", "13b/ggml-model-q4_0.gguf", "13b/ggml-model-q8_0.gguf")
    assert [artifact.files[0].path for artifact in found.artifacts] == [
        "13b/ggml-model-q4_0.gguf",
        "13b/ggml-model-q8_0.gguf",
    ]
    assert found.models == ("13b", "7b")


@pytest.mark.parametrize(
    "paths",
    [
        ("M.i1-IQ3_M.gguf", "M.Q4_K_M.gguf", "m.f16.gguf"),
        ("UD-Q4_K_XL/M-UD-Q4_K_XL-00001-of-00001.gguf", "BF16/M-BF16-00001-of-00001.gguf", "M-Q8_0.gguf"),
        ("M-Q4_K_M-imat.gguf", "M-imat-Q5_K_M.gguf", "M_bf16_Q8_0.gguf"),
        ("Q4_K_M.gguf", "Q8_0.gguf"),
        ("Q4_K_M/model-00001-of-00001.gguf", "Q8_0/model-00001-of-00001.gguf"),
    ],
)
def test_ways_of_making_and_folders_per_quantization_are_one_model(paths):
    found = catalogue(*paths)
    assert len(found.models) == 1
    assert len(found.artifacts) == len(paths)


def test_a_single_file_that_names_no_quantization_is_offered_but_not_beside_named_ones():
    assert names(catalogue("model.gguf")) == ["unknown"]
    found = catalogue("model.gguf", "m.Q4_0.gguf")
    assert names(found) == ["Q4_0"]
    assert found.find_file("model.gguf").quantization == "unknown"
    assert found.models == ("m",)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("mmproj-F16.gguf", "vision projector"), ("m.imatrix.gguf", "importance matrix"), ("nothing.gguf", "not found")],
)
def test_naming_a_file_that_is_no_model_says_what_it_is(path, reason):
    with pytest.raises(NotFound, match=reason):
        catalogue("mmproj-F16.gguf", "m.imatrix.gguf", "m.Q4_0.gguf").find_file(path)


@pytest.mark.parametrize(
    ("asked", "expected"), [("q4_k_m", "Q4_K_M"), ("Q6", "Q6_K"), ("fp16", "F16"), ("Q5_K_XL", "UD-Q5_K_XL")]
)
def test_find_takes_the_spellings_people_use(asked, expected):
    found = catalogue("m.Q4_K_M.gguf", "m.Q6.gguf", "m.f16.gguf", "m-UD-Q5_K_XL.gguf")
    assert found.find(asked).quantization == expected


def test_find_never_swaps_one_recipe_for_another():
    with pytest.raises(NotFound) as caught:
        catalogue("m-UD-Q4_K_M.gguf", "m.Q8_0.gguf").find("Q4_K_M")
    assert caught.value.message == "a/b has no quantization Q4_K_M"
    assert caught.value.hint == "did you mean UD-Q4_K_M? There are: Q8_0, UD-Q4_K_M"


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


_PATHS = st.text(alphabet=st.sampled_from("aMqQ4_K0-1of2.i/FmdrafpojTP ~\0\u00e9\ud800"), max_size=30)


@given(st.lists(st.tuples(_PATHS | st.text(max_size=30), st.integers(0, 3)), max_size=12))
def test_no_listing_crashes_and_no_gguf_file_of_it_is_lost(entries):
    files = [GgufFile(path + ".gguf" * (n > 0), n, None) for path, n in entries]
    found = build_catalogue("a/b", "0" * 40, files)
    shown = [file.path for artifact in (*found.artifacts, *found.others) for file in artifact.files]
    shown += [path for path, _ in found.skipped] + [item.file.path for item in found.companions]
    assert sorted(shown) == sorted({file.path for file in files if is_gguf_name(file.path)})
    assert len({artifact.quantization for artifact in found.artifacts}) == len(found.artifacts)
    assert found.is_evident in (True, False)
    for text, _ in entries:
        for ask in (found.find, found.find_file):
            with contextlib.suppress(NotFound):
                ask(text)
