"""Shapes of real and tiny models: their hyperparameters, tensors and vocabulary, as llama.cpp expects them."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass

from tests.gguf_mix import MixContext

BYTE_TOKENS = 3 + 256
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(frozen=True)
class ModelShape:
    """The hyperparameters that decide tensor shapes and memory.

    architecture: "llama" or "gemma3". n_ff: per expert when n_experts > 0. window: sliding-window tokens, or None.
    rope_factors: the file carries `rope_freqs.weight`, as Llama 3.1 does. tied: no `output.weight`.
    """

    name: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    context_tokens: int
    head_dim: int = 128
    n_experts: int = 0
    n_experts_used: int = 0
    freq_base: float = 10000.0
    architecture: str = "llama"
    window: int | None = None
    tied: bool = False
    rope_factors: bool = False

    @property
    def mix(self) -> MixContext:
        """What the quantizer's rules need to know about this shape."""
        return MixContext(self.n_layers, self.n_experts, self.n_heads // self.n_kv_heads, self.tied)


MIXTRAL_8X22B = ModelShape(
    "Mixtral-8x22B-Instruct-v0.1", n_layers=56, n_embd=6144, n_ff=16384, n_heads=48, n_kv_heads=8, n_vocab=32768,
    context_tokens=65536, n_experts=8, n_experts_used=2, freq_base=1e6,
)  # fmt: skip
"""Source: the model's config.json; 140,630,071,296 parameters in 563 tensors."""
LLAMA_31_8B = ModelShape(
    "Llama-3.1-8B-Instruct", n_layers=32, n_embd=4096, n_ff=14336, n_heads=32, n_kv_heads=8, n_vocab=128256,
    context_tokens=131072, freq_base=500000.0, rope_factors=True,
)  # fmt: skip
GEMMA_3_4B = ModelShape(
    "gemma-3-4b-it", n_layers=34, n_embd=2560, n_ff=10240, n_heads=8, n_kv_heads=4, n_vocab=262144,
    context_tokens=131072, head_dim=256, freq_base=1e6, architecture="gemma3", window=1024, tied=True,
)  # fmt: skip
"""Five layers with a 1,024-token window, then one with full attention. Source: config.json, text part."""
SMOLLM2_135M = ModelShape(
    "SmolLM2-135M-Instruct", n_layers=30, n_embd=576, n_ff=1536, n_heads=9, n_kv_heads=3, n_vocab=49152,
    context_tokens=8192, head_dim=64, freq_base=100000.0, tied=True,
)  # fmt: skip
"""Tied embeddings, and rows that 256-element blocks do not divide."""
TINY_LLAMA = ModelShape(
    "tiny-llama",
    n_layers=2,
    n_embd=64,
    n_ff=128,
    n_heads=4,
    n_kv_heads=2,
    n_vocab=384,
    context_tokens=2048,
    head_dim=16,
)
TINY_TIED = ModelShape(
    "tiny-tied", n_layers=2, n_embd=64, n_ff=128, n_heads=4, n_kv_heads=2, n_vocab=384, context_tokens=2048,
    head_dim=16, tied=True,
)  # fmt: skip
TINY_MIXTRAL = ModelShape(
    "tiny-mixtral", n_layers=4, n_embd=64, n_ff=128, n_heads=4, n_kv_heads=2, n_vocab=384, context_tokens=2048,
    head_dim=16, n_experts=8, n_experts_used=2,
)  # fmt: skip
TINY_GEMMA = ModelShape(
    "tiny-gemma", n_layers=6, n_embd=64, n_ff=128, n_heads=4, n_kv_heads=2, n_vocab=384, context_tokens=2048,
    head_dim=16, architecture="gemma3", window=128, tied=True,
)  # fmt: skip


def tensors(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, dims) in file order; dims[0] is the row length. Source: llama.cpp src/models/{llama,gemma3}.cpp."""
    yield "token_embd.weight", (shape.n_embd, shape.n_vocab)
    yield "output_norm.weight", (shape.n_embd,)
    if not shape.tied:
        yield "output.weight", (shape.n_embd, shape.n_vocab)
    if shape.rope_factors:
        yield "rope_freqs.weight", (shape.head_dim // 2,)
    for layer in range(shape.n_layers):
        for name, dims in _block(shape):
            yield f"blk.{layer}.{name}.weight", dims


def _block(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    e, ff, kv, q = shape.n_embd, shape.n_ff, shape.n_kv_heads * shape.head_dim, shape.n_heads * shape.head_dim
    yield "attn_norm", (e,)
    yield "attn_q", (e, q)
    yield "attn_k", (e, kv)
    yield "attn_v", (e, kv)
    yield "attn_output", (q, e)
    yield "ffn_norm", (e,)
    if shape.architecture == "gemma3":
        yield "attn_q_norm", (shape.head_dim,)
        yield "attn_k_norm", (shape.head_dim,)
        yield "post_attention_norm", (e,)
        yield "post_ffw_norm", (e,)
    if shape.n_experts:
        yield "ffn_gate_inp", (e, shape.n_experts)
        yield "ffn_gate_exps", (e, ff, shape.n_experts)
        yield "ffn_up_exps", (e, ff, shape.n_experts)
        yield "ffn_down_exps", (ff, e, shape.n_experts)
    else:
        yield "ffn_gate", (e, ff)
        yield "ffn_up", (e, ff)
        yield "ffn_down", (ff, e)


def hyperparameters(shape: ModelShape) -> dict[str, int | float]:
    """Return the architecture's keys without their prefix. Source: llama.cpp gguf-py/gguf/constants.py."""
    keys: dict[str, int | float] = {
        "block_count": shape.n_layers,
        "context_length": shape.context_tokens,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": shape.freq_base,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.n_vocab,
    }
    if shape.head_dim * shape.n_heads != shape.n_embd:
        keys |= {"attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim}
    if shape.n_experts:
        keys |= {"expert_count": shape.n_experts, "expert_used_count": shape.n_experts_used}
    if shape.window:
        keys |= {"attention.sliding_window": shape.window}
    return keys


def vocabulary(size: int) -> tuple[list[str], list[float], list[int]]:
    """Return (tokens, scores, types) of a SentencePiece-like vocabulary that llama.cpp accepts.

    0 <unk>, 1 <s>, 2 </s>, then one token per byte, then printable characters, a few merges, and filler words.
    Types: 1 normal, 2 unknown, 3 control, 6 byte. Source: llama.cpp src/llama-vocab.cpp.
    """
    letters = string.ascii_letters + string.digits + string.punctuation
    words = ["▁", *letters, *("▁" + c for c in string.ascii_lowercase), "th", "he", "in", "er"]
    words += [f"▁filler{i:06d}" for i in range(max(size - BYTE_TOKENS - len(words), 0))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words][:size]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words)][:size]
    scores = [0.0] * BYTE_TOKENS + [float(-i) for i in range(len(words))]
    return tokens, scores[:size], types
