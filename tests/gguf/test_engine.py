"""The gguf room against llama.cpp itself: types, facts, ghosts, the writer's models and its quantization mix."""

import re

import pytest

from ggufdeploy.gguf.ghost import write_ghost
from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import read_header_file
from ggufdeploy.gguf.types import GGML_TYPES
from tests.gguf.llama_child import ask
from tests.gguf_mix import FILE_TYPE_IDS, tensor_type
from tests.gguf_writer import (
    GEMMA_3_4B,
    LLAMA_31_8B,
    MIXTRAL_8X22B,
    SMOLLM2_135M,
    TINY_GEMMA,
    TINY_LLAMA,
    TINY_MIXTRAL,
    TINY_TIED,
    build_model,
    write_model,
)

pytestmark = pytest.mark.engine

TINY = [TINY_LLAMA, TINY_TIED, TINY_MIXTRAL, TINY_GEMMA]


def test_the_type_table_is_ggmls():
    ours = [[t.id, t.name.lower(), t.block_elements, t.block_bytes] for t in GGML_TYPES.values()]
    assert sorted(ours) == [[i, name.lower(), elements, size] for i, name, elements, size in ask("types")]


@pytest.mark.parametrize("shards", [1, 2])
def test_a_ghost_of_mixtral_8x22b_loads_and_counts_all_parameters(tmp_path, shards):
    files = build_model(MIXTRAL_8X22B, "Q4_K_S", stem="m", shards=shards)
    path = write_ghost([(f.name, f.builder.header(), f.builder.file_bytes) for f in files], tmp_path)
    answer = ask("dry", path=str(path))
    assert answer["n_params"] == 140_630_071_296
    assert answer["tensor_bytes"] == 80_489_373_696
    assert answer["n_layers"] == 56


@pytest.mark.parametrize("shape", [MIXTRAL_8X22B, LLAMA_31_8B, SMOLLM2_135M, GEMMA_3_4B], ids=lambda s: s.name)
def test_model_facts_are_llama_cpps(tmp_path, shape):
    path = write_model(tmp_path / "m.gguf", shape, "Q4_K_M")
    info = model_info([read_header_file(path)])
    answer = ask("dry", path=str(path))
    assert (info.n_params, info.total_bytes, info.n_layers, info.sliding_window_tokens or 0) == (
        answer["n_params"], answer["tensor_bytes"], answer["n_layers"], answer["n_swa"],
    )  # fmt: skip


@pytest.mark.parametrize("shape", [MIXTRAL_8X22B, GEMMA_3_4B], ids=lambda s: s.name)
def test_kv_bytes_from_the_header_are_what_llama_cpp_announces(tmp_path, shape):
    """16,384 tokens for whole-context blocks; a window of 1,024 plus a batch of 512 for the others; f16."""
    path = write_model(tmp_path / "m.gguf", shape, "Q4_K_M")
    ours: dict[int, int] = {}
    for layer in model_info([read_header_file(path)]).layers:
        cells = 16384 if layer.window_tokens is None else layer.window_tokens + 512
        ours[cells] = ours.get(cells, 0) + 2 * cells * layer.kv_heads * (layer.key_length + layer.value_length)
    log = ask("dry", path=str(path), context_tokens=16384)["log"]
    announced = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells", log)
    assert {int(cells): float(mib) for mib, cells in announced} == {c: round(n / 2**20, 2) for c, n in ours.items()}


@pytest.mark.parametrize("shape", TINY, ids=lambda s: s.name)
@pytest.mark.parametrize("quantization", ["F32", "F16"])
def test_a_tiny_model_loads_and_decodes_a_token(tmp_path, shape, quantization):
    answer = ask("generate", path=str(write_model(tmp_path / "m.gguf", shape, quantization)))
    assert answer["status"] == 0
    assert answer["tokens"][0] == 1
    assert answer["tokens"][-2:] == [3 + 0xC3, 3 + 0xBC]
    assert answer["n_vocab"] == 384
    assert answer["finite"]
    assert answer["spread"] > 0.1


def test_a_tiny_model_in_shards_decodes_the_same_token(tmp_path):
    whole = ask("generate", path=str(write_model(tmp_path / "a.gguf", TINY_LLAMA, "F32")))
    split = ask("generate", path=str(write_model(tmp_path / "b.gguf", TINY_LLAMA, "F32", shards=3)))
    assert whole == split


@pytest.mark.parametrize("quantization", ["Q2_K", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("shape", [TINY_TIED, TINY_MIXTRAL], ids=lambda s: s.name)
def test_llama_cpp_quantizes_tiny_models_with_the_mix_of_the_writer(tmp_path, shape, quantization):
    source, out = write_model(tmp_path / "m.gguf", shape, "F32"), tmp_path / "q.gguf"
    assert ask("quantize", path=str(source), out=str(out), file_type=FILE_TYPE_IDS[quantization]) == 0
    header = read_header_file(out)
    expected = {t.name: tensor_type(t.name, t.shape, quantization, shape.mix) for t in header.tensors}
    assert {t.name: t.type.name for t in header.tensors} == expected
    assert header.metadata["general.file_type"] == FILE_TYPE_IDS[quantization]
