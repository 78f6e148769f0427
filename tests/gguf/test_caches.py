"""What each block keeps and where each tensor lives, from headers alone; the engine tests hold llama.cpp against it."""

from __future__ import annotations

import io

import pytest

from ggufdeploy.gguf.model import ModelInfo, model_info
from ggufdeploy.gguf.reader import read_header
from tests.gguf_blueprints import Blueprint, Size, llama
from tests.gguf_writer import build_model
from tests.gguf_zoo import REAL, SMALL

EMBEDDING_BYTES = 64 * 384 * 2


def info(blueprint: Blueprint | str, quantization: str = "F16") -> ModelInfo:
    if isinstance(blueprint, str):
        blueprint = next(item for item in SMALL + REAL if item.name == blueprint)
    builder = build_model(blueprint, quantization)[0].builder
    return model_info([read_header(io.BytesIO(builder.header()), source="m.gguf", file_bytes=builder.file_bytes)])


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("zoo-mla", (1, 40, 0, None, 0, 0)),
        ("zoo-dsa", (1, 40, 0, None, 64, 0)),
        ("zoo-mha", (4, 16, 16, None, 0, 0)),
        ("zoo-mamba2", (0, 0, 0, None, 0, 3 * (128 + 2 * 16) + 128 * 16)),
        ("zoo-rwkv7", (0, 0, 0, None, 0, 2 * 64 + 64 * 16)),
    ],
)
def test_the_last_block_keeps(name, kept):
    layer = info(name).layers[-1]
    assert kept == (
        layer.kv_heads, layer.key_length, layer.value_length, layer.window_tokens, layer.indexer_length,
        layer.state_elements,
    )  # fmt: skip


def test_hybrids_keep_a_state_where_they_do_not_attend_and_falcon_h1_keeps_both():
    assert [bool(layer.kv_heads) for layer in info("zoo-qwen3next").layers] == [False, False, False, True] * 2
    assert [bool(layer.state_elements) for layer in info("zoo-lfm2").layers] == [True, False, True, False]
    assert all(layer.kv_heads and layer.state_elements for layer in info("zoo-falcon-h1").layers)


def test_blocks_for_multi_token_prediction_are_neither_loaded_nor_cached():
    model = info("zoo-glm4moe")
    *_, before, last = model.layers
    assert (last.total_bytes, last.kv_heads, model.n_layers) == (0, 0, 5)
    assert before.total_bytes > 0
    assert model.total_bytes > sum(layer.total_bytes for layer in model.layers) + model.output_bytes + EMBEDDING_BYTES


def test_blocks_that_share_anothers_kv_have_none():
    assert [layer.kv_heads for layer in info("zoo-gemma4").layers] == [2] * 6 + [0] * 3
    windowed, full = info("zoo-gemma4").layers[1:3]
    assert (windowed.key_length, windowed.window_tokens, full.key_length, full.window_tokens) == (16, 128, 32, None)


def test_a_tied_output_is_copied_on_the_host_only_where_it_is_created_before_the_embedding():
    assert info("zoo-gemma4").tied_copy_on_host
    assert not info("tiny-tied").tied_copy_on_host
    assert info("tiny-tied").output_norm_bytes == 256
    assert info("tiny-tied").output_bytes == EMBEDDING_BYTES + 256


def test_a_tensor_without_a_block_lives_with_the_output_the_first_block_or_every_block():
    assert info("zoo-lfm2").output_norm_bytes == 256, "its token_embd_norm is the output's"
    rwkv = info("zoo-rwkv7")
    assert rwkv.layers[0].total_bytes == rwkv.layers[1].total_bytes + 512, "its token_embd_norm is block 0's"
    assert info("zoo-gemma4").block_shared_bytes == 64


def test_small_tensors_are_padded_as_in_a_buffer():
    """Four attention sinks take 16 bytes in the file and 32 in a buffer, on a GPU 128."""
    model = info("zoo-gpt-oss")
    held = sum(layer.total_bytes for layer in model.layers) + model.output_bytes + model.token_embedding_bytes
    assert held - model.total_bytes == 4 * 16
    assert model.layers[0].padding_bytes >= 96


def test_a_gpu_fills_quantized_rows_up_to_512_elements():
    odd = info(llama("odd", Size(1, 288, 576, 4, 4, 72), "rows of 288"), "Q8_0")
    tails = sum(-(-(n + (512 - row % 512) // 32 * 34) // 128) * 128 - n for n, row in _matrices(288, 576))
    norms = 2 * (-(-288 * 4 // 128) * 128 - 288 * 4)
    assert odd.layers[0].padding_bytes == tails + norms
    assert info("Llama-3.3-70B", "Q4_K_M").layers[0].padding_bytes == 0


def _matrices(e: int, ff: int) -> list[tuple[int, int]]:
    """Bytes and row length of a block's seven matrices in Q8_0."""
    shapes = [(e, e)] * 4 + [(e, ff)] * 2 + [(ff, e)]
    return [(row * rows // 32 * 34, row) for row, rows in shapes]
