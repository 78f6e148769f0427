"""The tensor type table. tests/gguf/test_engine.py compares it with the library itself."""

import csv
import io

import pytest

from ggufdeploy.gguf.types import FILE_TYPES, GGML_TYPES, GGML_TYPES_BY_NAME, REMOVED_TYPES, file_type_name

BLOCKS = """name,elements,bytes
Q4_0,32,18
Q8_0,32,34
Q2_K,256,84
Q4_K,256,144
Q6_K,256,210
IQ4_XS,256,136
MXFP4,32,17
NVFP4,64,36
Q1_0,128,18
Q2_0,64,18
"""
"""Source: llama.cpp ggml/src/ggml-common.h, the static_asserts behind the block structs."""


@pytest.mark.parametrize("row", list(csv.DictReader(io.StringIO(BLOCKS))), ids=lambda row: row["name"])
def test_block_sizes_are_those_of_ggml(row):
    ggml_type = GGML_TYPES_BY_NAME[row["name"]]
    assert (ggml_type.block_elements, ggml_type.block_bytes) == (int(row["elements"]), int(row["bytes"]))


def test_every_id_up_to_42_is_known_or_known_to_be_removed():
    assert set(GGML_TYPES) | set(REMOVED_TYPES) == set(range(43))
    assert not set(GGML_TYPES) & set(REMOVED_TYPES)


def test_bytes_of_a_tensor_count_whole_blocks():
    assert GGML_TYPES_BY_NAME["Q4_K"].nbytes((6144, 32768)) == 6144 * 32768 // 256 * 144
    assert GGML_TYPES_BY_NAME["F32"].nbytes(()) == 4
    assert GGML_TYPES_BY_NAME["Q4_K"].bits_per_weight == 4.5


def test_rows_that_are_not_whole_blocks_cannot_be_stored():
    with pytest.raises(ValueError, match="rows of 100 elements"):
        GGML_TYPES_BY_NAME["Q8_0"].nbytes((100, 32))
    with pytest.raises(ValueError, match="single element"):
        GGML_TYPES_BY_NAME["Q8_0"].nbytes(())


def test_file_types_have_names_and_unknown_ones_have_none():
    assert [file_type_name(n) for n in (15, 14, 30, 38)] == ["Q4_K_M", "Q4_K_S", "IQ4_XS", "MXFP4_MOE"]
    assert file_type_name(None) is None
    assert file_type_name(1024) is None
    assert len(set(FILE_TYPES.values())) == len(FILE_TYPES)
