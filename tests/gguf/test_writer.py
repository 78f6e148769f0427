"""The tests' own GGUF writer gives llama.cpp's sizes, so that plans tested on its files hold for real ones."""

import csv
import io
from dataclasses import replace

import pytest

from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import read_header_file
from ggufdeploy.gguf.types import GGML_TYPES_BY_NAME
from tests.gguf_mix import tensor_type
from tests.gguf_shapes import tensors
from tests.gguf_writer import (
    LLAMA_31_8B,
    MIXTRAL_8X22B,
    SMOLLM2_135M,
    TINY_LLAMA,
    ModelShape,
    build_model,
    write_mixtral_8x22b,
    write_model,
)

MIXTRAL_BYTES = """quantization,plain,imatrix
F16,281267036160,281267036160
BF16,281267036160,281267036160
Q8_0,149429575680,149429575680
Q6_K,115542220800,115542220800
Q5_K_M,99980304384,99980304384
Q5_K_S,96985571328,96985571328
Q5_1,105718112256,105718112256
Q5_0,96985571328,97337892864
Q4_K_M,85598035968,85598035968
Q4_K_S,80489373696,80489373696
IQ4_NL,80489373696,79784730624
IQ4_XS,76365324288,75484520448
MXFP4_MOE,77555982336,77555982336
Q4_1,88253030400,88253030400
Q4_0,79520489472,79872811008
Q3_K_L,72590450688,72590450688
Q3_K_M,67800293376,67800293376
IQ3_M,64503570432,64503570432
IQ3_S,61508837376,61508837376
IQ3_XS,58238853120,58238853120
IQ3_XXS,57771712512,54909100032
Q3_K_S,61508837376,61508837376
IQ2_M,46717624320,46717624320
Q2_K,52113334272,52113334272
Q2_K_S,48094666752,48094666752
IQ2_S,42599866368,42599866368
IQ2_XS,42006896640,42006896640
IQ2_XXS,37889138688,37889138688
TQ2_0,37010694144,37010694144
IQ1_M,32741941248,32741941248
TQ1_0,30470725632,30470725632
IQ1_S,29653622784,29653622784
"""
"""Tensor bytes of Mixtral-8x22B-Instruct. Source: llama_model_quantize of llama.cpp 0c1e57098 with dry_run."""

LLAMA_BITS = {
    "Q8_0": 8.5008, "Q6_K": 6.5633, "Q5_K_M": 5.7036, "Q5_K_S": 5.5704, "Q4_K_M": 4.8944, "Q4_K_S": 4.6672,
    "Q3_K_L": 4.2979, "Q3_K_M": 3.9960, "Q3_K_S": 3.6429, "Q2_K": 3.1593, "IQ4_XS": 4.4597, "IQ4_NL": 4.6818,
}  # fmt: skip
"""Bits per weight of Llama-3.1-8B. Source: llama.cpp tools/quantize/README.md."""


def total_bytes(shape: ModelShape, quantization: str, *, imatrix: bool = False) -> int:
    mix = replace(shape.mix, imatrix=imatrix)
    return sum(
        GGML_TYPES_BY_NAME[tensor_type(name, dims, quantization, mix)].nbytes(dims) for name, dims in tensors(shape)
    )


@pytest.mark.parametrize("row", list(csv.DictReader(io.StringIO(MIXTRAL_BYTES))), ids=lambda row: row["quantization"])
def test_mixtral_8x22b_has_exactly_the_bytes_of_llama_cpps_quantizer(row):
    assert total_bytes(MIXTRAL_8X22B, row["quantization"]) == int(row["plain"])
    assert total_bytes(MIXTRAL_8X22B, row["quantization"], imatrix=True) == int(row["imatrix"])


@pytest.mark.parametrize(("quantization", "bits"), LLAMA_BITS.items())
def test_a_dense_model_has_the_published_bits_per_weight(quantization, bits):
    n_params = 8_030_261_312
    assert round(total_bytes(LLAMA_31_8B, quantization) * 8 / n_params, 4) == bits


def test_rows_that_are_not_whole_blocks_fall_back_as_in_the_published_smollm2_q4_1():
    assert total_bytes(SMOLLM2_135M, "Q4_1") == 96_576_768


def test_a_file_has_the_tensors_its_shape_promises(tmp_path):
    path = write_mixtral_8x22b(tmp_path, "Q4_K_M")
    assert path.name == "Mixtral-8x22B-Instruct-v0.1.Q4_K_M.gguf"
    header = read_header_file(path)
    assert len(header.tensors) == 563
    assert header.tensor_bytes == 85_598_035_968
    assert path.stat().st_blocks * 512 < 2_000_000


def test_shards_are_named_as_llama_cpp_wants_and_about_equal(tmp_path):
    path = write_mixtral_8x22b(tmp_path / "m.gguf", "Q4_K_M", shards=2)
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert path == files[0]
    sizes = [f.stat().st_size for f in files]
    assert abs(sizes[0] - sizes[1]) < 0.02 * sum(sizes)
    assert model_info([read_header_file(f) for f in files]).total_bytes == 85_598_035_968


def test_without_its_ghost_a_file_is_only_the_header(tmp_path):
    path = write_mixtral_8x22b(tmp_path / "m.gguf", "Q2_K", ghost=False)
    assert path.stat().st_size == len(build_model(MIXTRAL_8X22B, "Q2_K")[0].builder.header())


def test_a_tiny_model_has_weights_that_depend_on_the_seed_alone(tmp_path):
    first = write_model(tmp_path / "a.gguf", TINY_LLAMA, "F32").read_bytes()
    assert first == write_model(tmp_path / "b.gguf", TINY_LLAMA, "F32").read_bytes()
    assert first != write_model(tmp_path / "c.gguf", TINY_LLAMA, "F32", seed=1).read_bytes()
    assert any(first[-4096:])


def test_more_shards_than_tensors_are_refused():
    with pytest.raises(ValueError, match="cannot be dealt"):
        build_model(TINY_LLAMA, "F16", shards=99)
