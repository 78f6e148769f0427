"""Ghosts on disk. tests/gguf/test_engine.py loads them with llama.cpp."""

import pytest

from ggufdeploy.errors import BadGguf
from ggufdeploy.gguf.ghost import write_ghost
from ggufdeploy.gguf.reader import read_header_file
from tests.gguf_writer import MIXTRAL_8X22B, build_model


def ghosts(shards: int) -> list[tuple[str, bytes, int]]:
    files = build_model(MIXTRAL_8X22B, "Q4_K_S", stem="m", shards=shards)
    return [(f.name, f.builder.header(), f.builder.file_bytes) for f in files]


def test_a_ghost_has_the_models_size_and_almost_no_blocks(tmp_path):
    path = write_ghost(ghosts(1), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "m.gguf"
    assert path.stat().st_size > 80_489_373_696
    assert path.stat().st_blocks * 512 < 2_000_000
    assert read_header_file(path).tensor_bytes == 80_489_373_696


def test_the_first_shards_path_is_returned_and_all_are_written(tmp_path):
    path = write_ghost(ghosts(3), tmp_path)
    assert path.name == "m-00001-of-00003.gguf"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert sum(read_header_file(p).tensor_bytes for p in tmp_path.iterdir()) == 80_489_373_696


def test_bytes_of_the_data_section_that_came_along_are_kept_but_never_more_than_the_file(tmp_path):
    path = write_ghost([("a.gguf", b"GGUF" + bytes(100), 50)], tmp_path)
    assert path.read_bytes() == b"GGUF" + bytes(46)


def test_a_folder_in_the_name_is_dropped(tmp_path):
    assert write_ghost([("../UD-Q4_K_XL/a.gguf", b"GGUF", 8)], tmp_path) == tmp_path / "a.gguf"


@pytest.mark.parametrize("name", ["", "..", "a/", "a\0b.gguf"])
def test_impossible_names_are_refused(tmp_path, name):
    with pytest.raises(BadGguf, match="cannot be the name of a file"):
        write_ghost([(name, b"GGUF", 8)], tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("a-00001-of-00002.gguf", "b-00002-of-00002.gguf"),
        ("a-00002-of-00002.gguf", "a-00001-of-00002.gguf"),
        ("a-00001-of-00003.gguf", "a-00002-of-00003.gguf"),
        ("a-1-of-2.gguf", "a-2-of-2.gguf"),
    ],
)
def test_shard_names_llama_cpp_would_not_find_are_refused(tmp_path, names):
    with pytest.raises(BadGguf, match=r"llama\.cpp looks for shard"):
        write_ghost([(name, b"GGUF", 8) for name in names], tmp_path)
    assert list(tmp_path.iterdir()) == []
