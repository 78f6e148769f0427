"""What the first 64 KiB of a file say about the model, against what its whole header says."""

import io

import pytest

from ggufdeploy.errors import BadGguf, HeaderTruncated
from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import SkippedArray, read_header, read_prefix
from ggufdeploy.gguf.shape import PREFIX_BYTES, estimate_info
from tests.gguf_writer import (
    GEMMA_3_4B,
    LLAMA_31_8B,
    MIXTRAL_8X22B,
    SMOLLM2_135M,
    TINY_MIXTRAL,
    GgufBuilder,
    build_model,
)


def prefix_of(builder, n_bytes=PREFIX_BYTES):
    return read_prefix(io.BytesIO(builder.header()[:n_bytes]), source="m.gguf", file_bytes=builder.file_bytes)


def exact(shards):
    return model_info([read_header(io.BytesIO(shard.builder.header()), source="m.gguf") for shard in shards])


@pytest.mark.parametrize("shape", [MIXTRAL_8X22B, LLAMA_31_8B, GEMMA_3_4B, SMOLLM2_135M], ids=lambda shape: shape.name)
@pytest.mark.parametrize("quantization", ["Q4_K_M", "Q8_0"])
def test_the_estimate_is_within_2_percent_of_the_header(shape, quantization):
    shards = build_model(shape, quantization)
    known = exact(shards)
    guess = estimate_info(prefix_of(shards[0].builder), known.total_bytes, known.n_params)
    assert guess is not None
    on_gpu = sum(layer.total_bytes for layer in known.layers) + known.output_bytes
    assert sum(layer.total_bytes for layer in guess.layers) + guess.output_bytes == pytest.approx(on_gpu, rel=0.02)
    assert guess.tied_embeddings is known.tied_embeddings
    for name in (
        "architecture", "name", "n_params", "n_layers", "embedding_length", "feed_forward_length", "n_heads",
        "expert_feed_forward_length", "n_experts", "n_experts_used", "n_vocab", "context_train_tokens",
        "sliding_window_tokens", "total_bytes", "n_tensors",
    ):  # fmt: skip
        assert getattr(guess, name) == getattr(known, name), name
    for ours, theirs in zip(guess.layers, known.layers, strict=True):
        assert (ours.kv_heads, ours.key_length, ours.value_length, ours.window_tokens) == (
            theirs.kv_heads, theirs.key_length, theirs.value_length, theirs.window_tokens,
        )  # fmt: skip


def test_the_parameters_follow_from_the_shape_alone():
    builder = build_model(MIXTRAL_8X22B, "Q4_K_M")[0].builder
    guess = estimate_info(prefix_of(builder), 80_000_000_000)
    assert guess is not None
    assert guess.n_params == pytest.approx(140_630_071_296, rel=1e-4)  # without norms


def test_the_experts_share_is_right_also_beside_dense_blocks_and_shared_experts():
    builder = GgufBuilder("deepseek2")
    for key, value in {
        "block_count": 27, "embedding_length": 2048, "feed_forward_length": 10944, "attention.head_count": 16,
        "attention.head_count_kv": 1, "attention.kv_lora_rank": 512, "attention.key_length": 576,
        "attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
        "rope.dimension_count": 64, "expert_count": 64, "expert_used_count": 6, "expert_shared_count": 2,
        "expert_feed_forward_length": 1408, "leading_dense_block_count": 1,
    }.items():  # fmt: skip
        builder.kv(f"deepseek2.{key}", value)
    builder.kv("tokenizer.ggml.tokens", ["x" * 20] * 102_400)
    guess = estimate_info(prefix_of(builder), 10_000_000_000)
    assert guess is not None
    assert guess.n_params == pytest.approx(15_706_484_224, rel=0.001)  # DeepSeek-V2-Lite, as published
    assert guess.layers[0].expert_bytes == 0
    assert guess.layers[1].expert_bytes > 0.9 * guess.layers[1].total_bytes
    assert guess.layers[0].kv_heads == 1


def test_a_cut_vocabulary_still_tells_its_size():
    prefix = prefix_of(build_model(LLAMA_31_8B, "Q8_0")[0].builder)
    assert prefix.metadata["tokenizer.ggml.tokens"] == SkippedArray(128_256)
    assert (prefix.complete, prefix.n_tensors) == (False, 292)
    assert "tokenizer.ggml.scores" not in prefix.metadata


def test_a_prefix_that_ends_before_the_vocabulary_says_too_little():
    builder = GgufBuilder("llama").kv("llama.block_count", 2).kv("llama.embedding_length", 64)
    builder.kv("general.description", "x" * 70_000).kv("tokenizer.ggml.tokens", ["a"] * 10)
    assert estimate_info(prefix_of(builder), 1000) is None
    assert estimate_info(prefix_of(builder, 100_000), 1000) is not None


def test_keys_behind_the_vocabulary_are_not_missed():
    builder = GgufBuilder("llama").kv("tokenizer.ggml.tokens", ["x" * 90] * 1000)
    builder.kv("llama.block_count", 2).kv("llama.embedding_length", 64)
    assert estimate_info(prefix_of(builder), 1000) is None


def test_whole_small_headers_are_complete():
    builder = build_model(TINY_MIXTRAL, "Q8_0")[0].builder
    prefix = prefix_of(builder)
    assert prefix.complete
    assert prefix.metadata == read_header(io.BytesIO(builder.header()), source="m.gguf").metadata


def test_a_projector_is_refused_by_its_first_bytes():
    builder = GgufBuilder("clip").kv("general.type", "mmproj").kv("clip.block_count", 2)
    builder.kv("clip.embedding_length", 64).kv("clip.vocab_size", 10).kv("tokenizer.ggml.model", "none")
    with pytest.raises(BadGguf, match="a multimodal projector"):
        estimate_info(prefix_of(builder), 1000)


@pytest.mark.parametrize("n_bytes", [3, 23])
def test_less_than_the_counts_is_truncated(n_bytes):
    with pytest.raises(HeaderTruncated):
        prefix_of(build_model(TINY_MIXTRAL, "Q8_0")[0].builder, n_bytes)


def test_an_absurd_block_count_is_refused():
    builder = GgufBuilder("llama").kv("llama.block_count", 100_000).kv("llama.embedding_length", 64)
    builder.kv("tokenizer.ggml.tokens", ["x" * 90] * 1000)
    with pytest.raises(BadGguf, match="100000"):
        prefix_of(builder)
