"""Files and directories of the user's own, as sources."""

from __future__ import annotations

import pytest

from ggufdeploy.deploy.local import local_source
from ggufdeploy.errors import Ambiguous, BadGguf, NotFound
from tests.gguf_writer import TINY_LLAMA, write_model


def names(source):
    return [artifact.quantization for artifact in source.artifacts]


@pytest.fixture
def tree(tmp_path):
    """What `hf download --local-dir` leaves: files, a folder per quantization, companions and its own cache."""
    root = tmp_path / "tiny-GGUF"
    write_model(root / "tiny-Q8_0.gguf", TINY_LLAMA, "Q8_0")
    write_model(root / "F16" / "tiny-F16.gguf", TINY_LLAMA, "F16", shards=2)
    for name in ("mmproj-F16.gguf", "imatrix_unsloth.gguf"):
        (root / name).write_bytes(b"GGUF")
    hidden = root / ".cache" / "huggingface"
    hidden.mkdir(parents=True)
    (hidden / "tiny-Q4_0.gguf").write_bytes(b"GGUF")
    return root


def test_a_directory_is_read_as_a_repository_is(tree):
    source = local_source(tree)
    assert names(source) == ["Q8_0", "F16"]
    assert [len(artifact.files) for artifact in source.artifacts] == [1, 2]
    assert source.name == "tiny-GGUF"
    assert {(item.kind, item.file.path) for item in source.catalogue.companions} == {
        ("projector", "mmproj-F16.gguf"),
        ("imatrix", "imatrix_unsloth.gguf"),
    }
    assert source.headers(source.find("f16")).path == tree / "F16" / "tiny-F16-00001-of-00002.gguf"


def test_any_shard_names_the_whole_and_its_folder_may_name_the_quantization(tmp_path):
    folder = tmp_path / "UD-Q4_K_XL"
    write_model(folder / "model.gguf", TINY_LLAMA, "F16", shards=3)
    source = local_source(folder / "model-00002-of-00003.gguf")
    assert names(source) == ["UD-Q4_K_XL"]
    assert len(source.artifacts[0].files) == 3


def test_a_cut_file_is_left_out_and_asking_for_it_says_why(tree):
    cut = write_model(tree / "tiny-Q4_0.gguf", TINY_LLAMA, "Q4_0")
    cut.write_bytes(cut.read_bytes()[:-100])
    source = local_source(tree)
    assert names(source) == ["Q8_0", "F16"]
    with pytest.raises(NotFound, match=r"has Q4_0 only as tiny-Q4_0\.gguf: ") as caught:
        source.find("Q4_0")
    assert f"ggufdeploy run {tree} --quant Q8_0" in (caught.value.hint or "")


def test_a_missing_shard_is_told(tree):
    (tree / "F16" / "tiny-F16-00002-of-00002.gguf").unlink()
    source = local_source(tree)
    assert names(source) == ["Q8_0"]
    with pytest.raises(NotFound, match="shard 2 of 2 is missing"):
        source.find("F16")
    with pytest.raises(BadGguf, match=r"tiny-F16-00002-of-00002\.gguf is missing beside it"):
        local_source(tree / "F16" / "tiny-F16-00001-of-00002.gguf")


def test_a_raw_piece_is_refused_with_what_to_do(tmp_path):
    piece = tmp_path / "m.Q8_0.gguf.part1of2"
    piece.write_bytes(b"GGUF")
    with pytest.raises(BadGguf, match="raw piece") as caught:
        local_source(piece)
    assert caught.value.hint == "put its pieces together, in order: cat PIECES > m.Q8_0.gguf"
    with pytest.raises(NotFound, match=r"no \.gguf file in .* that can be run; m\.Q8_0\.gguf\.part1of2: a raw piece"):
        local_source(tmp_path)


def test_a_directory_of_several_models_is_not_guessed_at(tmp_path):
    write_model(tmp_path / "one-7b-Q8_0.gguf", TINY_LLAMA, "Q8_0")
    write_model(tmp_path / "two-7b-Q8_0.gguf", TINY_LLAMA, "Q8_0")
    with pytest.raises(Ambiguous) as caught:
        local_source(tmp_path)
    assert caught.value.choices == ("one-7b", "two-7b")
    assert str(tmp_path / "one-7b-Q8_0.gguf") in (caught.value.hint or "")


def test_a_file_whose_name_says_nothing_is_called_what_its_header_says(tmp_path):
    write_model(tmp_path / "plain" / "model.gguf", TINY_LLAMA, "Q8_0")
    assert names(local_source(tmp_path / "plain" / "model.gguf")) == ["Q8_0"]
    assert names(local_source(tmp_path / "plain")) == ["Q8_0"]


def test_an_empty_directory_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="that can be run"):
        local_source(tmp_path)
