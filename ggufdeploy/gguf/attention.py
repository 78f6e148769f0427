"""Which blocks keep a KV cache, how wide it is, and which see only a sliding window.

Source: llama.cpp src/llama-hparams.cpp, src/llama-model.cpp (load_hparams, create_memory), src/llama-kv-cache.cpp,
and the architectures' files in src/models/ for what they set themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufdeploy.gguf.keys import Keys
from ggufdeploy.gguf.recurrent import recurrent_blocks, state_elements

_WITHOUT_CACHE = frozenset(
    {
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
        "gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1",
        "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7",
    }
)  # fmt: skip
"""Encoders and diffusion models attend without a cache; recurrent models have a state instead."""

_ATTENDS_BESIDE_ITS_STATE = "falcon-h1"


@dataclass(frozen=True)
class _Window:
    """every: this and each further such block attends to everything, at the start or the end of its group; 0: none."""

    every: int
    full_first: bool = False
    default_tokens: int | None = None


_WINDOWS = {
    "gemma2": _Window(2, default_tokens=4096), "gemma3": _Window(6), "gemma3n": _Window(5), "gpt-oss": _Window(2),
    "cohere2": _Window(4), "cohere2moe": _Window(4, True), "exaone-moe": _Window(4), "olmo2": _Window(4),
    "afmoe": _Window(4), "mellum": _Window(4), "muse-glimmer": _Window(4), "plamo3": _Window(8),
    "laguna": _Window(4, True), "smallthinker": _Window(4, True), "lfm2": _Window(0), "deepseek4": _Window(0),
}  # fmt: skip
"""Architectures llama.cpp windows. Others may carry `attention.sliding_window`, but attend to everything."""


@dataclass(frozen=True)
class KvShape:
    """What one block keeps: KV heads (0: none), elements per head, and the window if it keeps only that.

    indexer_length: elements of a sparse-attention indexer's key, kept for every token too. state_elements: 32-bit
    numbers of a recurrent state, per slot.
    """

    heads: int
    key_length: int
    value_length: int
    window_tokens: int | None
    indexer_length: int
    state_elements: int


def trunk_blocks(keys: Keys, n_blocks: int) -> int:
    """Return how many blocks the engine runs: those for multi-token prediction (NextN) come after them."""
    predictors = 0 if keys.architecture == "graniteswitch" else keys.number("nextn_predict_layers") or 0
    return n_blocks - predictors if predictors < n_blocks else n_blocks


def kv_shapes(keys: Keys, n_blocks: int) -> tuple[KvShape, ...]:
    """Return what every block keeps. Raises BadGguf for arrays of the wrong length."""
    n_heads = keys.per_block("attention.head_count", n_blocks) or (0,) * n_blocks
    kv_heads = keys.per_block("attention.head_count_kv", n_blocks) or n_heads
    recurrent = recurrent_blocks(keys, n_blocks, trunk_blocks(keys, n_blocks))
    cached = _cached_blocks(keys, n_blocks, recurrent)
    windows = _windows(keys, n_blocks)
    state = state_elements(keys, n_blocks) if any(recurrent) else 0
    indexer = keys.number("attention.indexer.key_length") or 0
    full = _head_lengths(keys, n_heads, "", (0, 0))
    windowed = _head_lengths(keys, n_heads, "_swa", full)
    latent = keys.number("attention.key_length_mla") is not None
    shapes = []
    for index in range(n_blocks):
        key_length, value_length = full if windows[index] is None else windowed
        heads = kv_heads[index] if cached[index] else 0
        shapes.append(
            KvShape(
                heads,
                key_length,
                0 if latent else value_length,
                windows[index],
                indexer if heads else 0,
                state if recurrent[index] else 0,
            )
        )
    return tuple(shapes)


def _head_lengths(keys: Keys, n_heads: tuple[int, ...], suffix: str, default: tuple[int, int]) -> tuple[int, int]:
    """Return (key, value) elements per head.

    With multi-head latent attention the key is the compressed vector plus the rotated part, and no value is kept;
    converters then write head_count_kv 1. `key_length_mla` tells such files from older ones, which cache all heads.
    """
    heads = next((h for h in n_heads if h), 0)
    derived = keys.required("embedding_length") // heads if heads else 0
    key_default, value_default = default if suffix else (derived, derived)
    rank, rotated = keys.number("attention.kv_lora_rank"), keys.number("rope.dimension_count")
    if not suffix and rank is not None and rotated is not None and keys.number("attention.key_length_mla") is not None:
        key_default = rank + rotated
    key_length = keys.number(f"attention.key_length{suffix}")
    value_length = keys.number(f"attention.value_length{suffix}")
    return (
        key_default if key_length is None else key_length,
        value_default if value_length is None else value_length,
    )


def _cached_blocks(keys: Keys, n_blocks: int, recurrent: list[bool]) -> list[bool]:
    if keys.architecture in _WITHOUT_CACHE:
        return [False] * n_blocks
    with_cache = trunk_blocks(keys, n_blocks)
    if keys.architecture == "gemma3n":
        with_cache = min(with_cache, 20)
    if keys.architecture == "gemma4":
        with_cache = min(with_cache, n_blocks - (keys.number("attention.shared_kv_layers") or 0))
    attends = [not state or keys.architecture == _ATTENDS_BESIDE_ITS_STATE for state in recurrent]
    return [index < with_cache and attends[index] for index in range(n_blocks)]


def _windows(keys: Keys, n_blocks: int) -> list[int | None]:
    tokens, pattern = _window_tokens(keys, n_blocks), "attention.sliding_window_pattern"
    if not tokens:
        return [None] * n_blocks
    if keys.is_array(pattern):
        flags = keys.per_block(pattern, n_blocks) or ()
        return [tokens if flag else None for flag in flags]
    rule = _window_rule(keys, n_blocks)
    if rule is None:
        return [None] * n_blocks
    every = keys.number(pattern)
    every = rule.every if every is None else every
    full = 0 if rule.full_first else every - 1
    return [None if every and index % every == full else tokens for index in range(n_blocks)]


def _window_tokens(keys: Keys, n_blocks: int) -> int | None:
    tokens = keys.number("attention.sliding_window")
    if keys.architecture == "llama4":
        return None if tokens == 0 else 8192
    rule = _window_rule(keys, n_blocks)
    return rule.default_tokens if tokens is None and rule is not None else tokens


def _window_rule(keys: Keys, n_blocks: int) -> _Window | None:
    if keys.architecture == "llama4":
        return _Window(4)
    if keys.architecture == "exaone4":
        return _Window(4, default_tokens=4096) if n_blocks == 64 else None
    return _WINDOWS.get(keys.architecture)
