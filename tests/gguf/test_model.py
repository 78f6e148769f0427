"""Model facts from headers. tests/gguf/test_engine.py compares the important ones with llama.cpp itself."""

import io

import pytest

from ggufdeploy.errors import BadGguf
from ggufdeploy.gguf.model import ModelInfo, model_info
from ggufdeploy.gguf.reader import Header, read_header
from tests.gguf_writer import (
    GEMMA_3_4B,
    LLAMA_31_8B,
    MIXTRAL_8X22B,
    SMOLLM2_135M,
    TINY_MIXTRAL,
    GgufBuilder,
    Kind,
    ModelShape,
    build_model,
)


def header(builder: GgufBuilder) -> Header:
    return read_header(io.BytesIO(builder.header()), source="m.gguf")


def facts(shape: ModelShape, quantization: str) -> ModelInfo:
    return model_info([header(shard.builder) for shard in build_model(shape, quantization)])


def model(architecture: str, n_layers: int = 8, **keys: object) -> GgufBuilder:
    """A model with one tensor per block; keys are written with dots for double underscores."""
    builder = GgufBuilder(architecture)
    defaults = {"block_count": n_layers, "embedding_length": 256, "attention__head_count": 8}
    for name, value in {**defaults, **keys}.items():
        if value is not None:
            builder.kv(f"{architecture}.{name.replace('__', '.')}", value)
    builder.tensor("token_embd.weight", (256, 100), "F16")
    for layer in range(n_layers):
        builder.tensor(f"blk.{layer}.attn_q.weight", (256, 256), "F16")
    return builder


def layers(builder: GgufBuilder) -> list[tuple[int, int, int, int | None]]:
    info = model_info([header(builder)])
    return [(layer.kv_heads, layer.key_length, layer.value_length, layer.window_tokens) for layer in info.layers]


def test_mixtral_8x22b_q4_k_s():
    info = facts(MIXTRAL_8X22B, "Q4_K_S")
    assert info.n_params == 140_630_071_296
    assert info.total_bytes == 80_489_373_696
    assert (info.architecture, info.n_layers, info.n_tensors, info.file_type) == ("llama", 56, 563, 14)
    assert (info.n_heads, info.n_experts, info.n_experts_used, info.n_vocab) == (48, 8, 2, 32768)
    assert (info.embedding_length, info.feed_forward_length, info.expert_feed_forward_length) == (6144, 16384, 16384)
    assert (info.context_train_tokens, info.sliding_window_tokens, info.tied_embeddings) == (65536, None, False)
    assert {(x.kv_heads, x.key_length, x.value_length) for x in info.layers} == {(8, 128, 128)}
    assert info.name == "Mixtral-8x22B-Instruct-v0.1"
    assert info.chat_template is not None
    assert "message" in info.chat_template


@pytest.mark.parametrize(
    ("quantization", "expert_bytes"),
    [("Q4_K_S", 76_806_094_848), ("Q4_K_M", 81_914_757_120), ("Q3_K_M", 64_424_509_440), ("Q8_0", 143_747_186_688)],
)
def test_expert_bytes_of_mixtral_8x22b(quantization, expert_bytes):
    """Source: llama.cpp's dry-run quantization."""
    info = facts(MIXTRAL_8X22B, quantization)
    assert sum(layer.expert_bytes for layer in info.layers) == expert_bytes
    assert info.layers[0].largest_host_copy_bytes * 3 >= info.layers[0].expert_bytes


def test_every_byte_is_in_a_block_the_input_or_the_output():
    info = facts(MIXTRAL_8X22B, "Q5_K_M")
    blocks = sum(layer.total_bytes for layer in info.layers)
    assert blocks + info.token_embedding_bytes + info.output_bytes == info.total_bytes
    assert info.token_embedding_bytes == 6144 * 32768 // 256 * 176
    assert info.output_bytes == 6144 * 32768 // 256 * 210 + 6144 * 4


def test_tied_embeddings_are_counted_twice_for_the_devices_and_once_in_the_file():
    info = facts(SMOLLM2_135M, "Q4_1")
    assert info.tied_embeddings
    assert info.total_bytes == 96_576_768
    assert info.output_bytes == info.token_embedding_bytes + 576 * 4
    blocks = sum(layer.total_bytes for layer in info.layers)
    assert blocks + info.token_embedding_bytes + info.output_bytes == info.total_bytes + info.token_embedding_bytes


def test_dense_blocks_have_no_experts_and_copy_their_feed_forward():
    info = facts(LLAMA_31_8B, "Q8_0")
    assert info.n_params == 8_030_261_248 + 64
    assert info.expert_feed_forward_length is None
    assert info.layers[0].expert_bytes == 0
    assert info.layers[0].largest_host_copy_bytes == 3 * 4096 * 14336 // 32 * 34


def test_gemma_3_windows_five_blocks_of_six():
    info = facts(GEMMA_3_4B, "Q4_K_M")
    assert info.sliding_window_tokens == 1024
    assert [layer.index for layer in info.layers if layer.window_tokens is None] == [5, 11, 17, 23, 29]
    assert {(x.kv_heads, x.key_length, x.value_length) for x in info.layers} == {(4, 256, 256)}


def test_heads_default_to_all_heads_and_lengths_to_the_embedding_split():
    assert layers(model("llama", 1)) == [(8, 32, 32, None)]
    assert layers(model("llama", 1, attention__head_count_kv=2, attention__key_length=48)) == [(2, 48, 32, None)]


def test_head_counts_may_differ_per_block():
    builder = model("deci", 4, attention__head_count=[8, 8, 0, 8], attention__head_count_kv=[2, 1, 0, 4])
    assert [kv[0] for kv in layers(builder)] == [2, 1, 0, 4]


def test_latent_attention_keeps_one_compressed_key_and_no_value():
    builder = model(
        "deepseek2", 1, attention__head_count_kv=1, attention__kv_lora_rank=512, rope__dimension_count=64,
        attention__key_length_mla=192, attention__value_length_mla=128,
    )  # fmt: skip
    assert layers(builder) == [(1, 576, 0, None)]
    builder.kv("deepseek2.attention.key_length", 576).kv("deepseek2.attention.value_length", 512)
    assert layers(builder) == [(1, 576, 0, None)]


def test_older_files_of_latent_attention_models_cache_all_heads():
    builder = model(
        "deepseek2", 1, attention__kv_lora_rank=512, rope__dimension_count=64, attention__key_length=192,
        attention__value_length=128,
    )  # fmt: skip
    assert layers(builder) == [(8, 192, 128, None)]


@pytest.mark.parametrize(
    ("builder", "cached"),
    [
        (model("qwen3next"), [3, 7]),
        (model("qwen3next", full_attention_interval=2), [1, 3, 5, 7]),
        (model("qwen35moe", attention__recurrent_layers=[True] * 7 + [False]), [7]),
        (model("minimax-01"), [7]),
        (model("jamba", attention__head_count_kv=[0, 0, 0, 0, 8, 0, 0, 0]), [4]),
        (model("mamba", attention__head_count=0), []),
        (model("bert"), []),
        (model("gemma4", attention__shared_kv_layers=3), [0, 1, 2, 3, 4]),
        (model("glm4moe", nextn_predict_layers=1), [0, 1, 2, 3, 4, 5, 6]),
        (model("llama"), list(range(8))),
    ],
)
def test_only_attention_blocks_of_the_trunk_keep_kv(builder, cached):
    assert [index for index, kv in enumerate(layers(builder)) if kv[0]] == cached


def test_gemma_3n_keeps_kv_in_its_first_20_blocks():
    assert [kv[0] for kv in layers(model("gemma3n", 30, attention__sliding_window=512))] == [8] * 20 + [0] * 10


@pytest.mark.parametrize(
    ("builder", "windowed"),
    [
        (model("gpt-oss", attention__sliding_window=128), [0, 2, 4, 6]),
        (model("gemma2"), [0, 2, 4, 6]),
        (model("cohere2", attention__sliding_window=4096), [0, 1, 2, 4, 5, 6]),
        (model("smallthinker", attention__sliding_window=4096), [1, 2, 3, 5, 6, 7]),
        (model("llama4"), [0, 1, 2, 4, 5, 6]),
        (model("llama4", attention__sliding_window=0), []),
        (model("gemma3"), []),
        (model("gemma3", attention__sliding_window=512, attention__sliding_window_pattern=2), [0, 2, 4, 6]),
        (
            model("gemma4", attention__sliding_window=512, attention__sliding_window_pattern=[True] * 7 + [False]),
            list(range(7)),
        ),
        (model("exaone4", attention__sliding_window=4096), []),
        (model("phi3", attention__sliding_window=2048), []),
        (model("qwen2", attention__sliding_window=32768), []),
    ],
)
def test_windows_are_those_llama_cpp_applies(builder, windowed):
    assert [index for index, kv in enumerate(layers(builder)) if kv[3]] == windowed


def test_windowed_blocks_may_have_other_head_lengths():
    builder = model(
        "gemma4", 2, attention__sliding_window=512, attention__sliding_window_pattern=[True, False],
        attention__key_length=512, attention__value_length=512, attention__key_length_swa=256,
        attention__value_length_swa=256,
    )  # fmt: skip
    assert layers(builder) == [(8, 256, 256, 512), (8, 512, 512, None)]


def test_the_vocabulary_is_counted_from_the_tokenizer_then_the_key_then_the_embedding():
    builder = model("llama", 1)
    assert model_info([header(builder)]).n_vocab == 100
    assert model_info([header(builder.kv("llama.vocab_size", 90))]).n_vocab == 90
    assert model_info([header(builder.kv("tokenizer.ggml.tokens", ["a", "b"]))]).n_vocab == 2


def test_the_expert_width_has_its_own_key_in_newer_models():
    builder = model("qwen3moe", 1, expert_count=64, expert_used_count=8, expert_feed_forward_length=768)
    assert model_info([header(builder)]).expert_feed_forward_length == 768
    assert facts(TINY_MIXTRAL, "F16").expert_feed_forward_length == 128


def test_what_the_header_does_not_say_is_none():
    info = model_info([header(model("llama", 1))])
    assert (info.name, info.file_type, info.chat_template, info.context_train_tokens) == (None,) * 4


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (GgufBuilder("clip").kv("clip.has_vision_encoder", True).tensor("v.blk.0.t", (8,)), "multimodal projector"),
        (GgufBuilder("gemma3").kv("general.type", "mmproj").tensor("t", (8,)), "multimodal projector"),
        (GgufBuilder().kv("general.type", "imatrix").tensor("t", (8,)), "importance matrix"),
        (GgufBuilder("llama").kv("general.type", "adapter").tensor("t", (8,)), "LoRA adapter"),
        (GgufBuilder("llama").kv("llama.block_count", 2), "no tensors, only a vocabulary"),
        (GgufBuilder("llama").kv("llama.block_count", 2).tensor("t", (8,)), "no token embedding"),
        (GgufBuilder().tensor("t", (8,)), r"lacks general\.architecture"),
        (GgufBuilder().kv("general.architecture", 7), r"general\.architecture is not a string"),
        (model("llama", block_count=None), r"lacks llama\.block_count"),
        (model("llama", 1, block_count=0), r"llama\.block_count is 0"),
        (model("llama", embedding_length=None), r"lacks llama\.embedding_length"),
        (model("llama", 2, block_count=1), r"'blk\.1\.attn_q\.weight' belongs to a block beyond"),
        (model("llama", 2, attention__head_count_kv=[1]), r"head_count_kv has 1 items for 2 blocks"),
        (model("llama", 2, attention__head_count=0.5), "not an unsigned 32-bit integer"),
        (model("llama", 2, context_length="long"), "not an unsigned 32-bit integer"),
        (model("llama", 2).kv("llama.expert_count", -1, Kind.I32), "not an unsigned 32-bit integer"),
        (model("llama", 2).kv("general.name", 3), r"general\.name is not a string"),
    ],
)
def test_what_is_not_a_model_is_named(builder, reason):
    with pytest.raises(BadGguf, match=reason):
        model_info([header(builder)])
