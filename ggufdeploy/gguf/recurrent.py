"""Which blocks keep a recurrent state instead of, or beside, a KV cache, and how large it is.

Source: llama.cpp src/llama-hparams.cpp (n_embd_r, n_embd_s), src/llama-arch.cpp (llm_arch_is_recurrent,
llm_arch_is_hybrid), src/llama-model.cpp (create_memory), and src/models/ for each architecture's rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggufdeploy.gguf.keys import Keys

_ALL_BLOCKS = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "falcon-h1"})
"""falcon-h1 attends in every block too."""
_FULL_ATTENTION_EVERY = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
"""Hybrids whose other blocks are recurrent, and the interval when `full_attention_interval` is absent."""
_WITHOUT_KV_HEADS = frozenset(
    {
        "jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "kimi-k3", "glm5-next", "bailingmoe3",
        "nemotron_h", "nemotron_h_moe",
    }
)  # fmt: skip
"""Hybrids that mark a recurrent block by a head_count_kv of 0."""
_MIXED_WITH_FEED_FORWARD = frozenset({"nemotron_h", "nemotron_h_moe"})
"""A block with a feed-forward length has neither attention nor a state."""


@dataclass(frozen=True)
class Recurrence:
    """The shape of a model's recurrent blocks, in elements; what the size of their activations rests on.

    inner: width of the block inside. convolved: width of what the short convolution sees; kept: tokens it remembers.
    state: memory per slot. heads: 0 for a state space without heads.
    """

    kind: Literal["ssm", "delta", "rwkv"]
    inner: int
    convolved: int
    kept: int
    state: int
    heads: int


def recurrence(keys: Keys) -> Recurrence | None:
    """Return the shape of the recurrent blocks, None without any or for short convolutions, which are small."""
    embedding = keys.number("embedding_length") or 0
    if head := keys.number("wkv.head_size"):
        return Recurrence("rwkv", embedding, 0, 0, embedding * head, 0)
    inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size") or 0
    if not inner:
        return None
    groups, rank = keys.number("ssm.group_count") or 0, keys.number("ssm.time_step_rank") or 0
    convolved, kept = inner + 2 * groups * state, max((keys.number("ssm.conv_kernel") or 0) - 1, 0)
    delta = keys.architecture in _FULL_ATTENTION_EVERY
    return Recurrence("delta" if delta else "ssm", inner, convolved, kept, state * inner, rank if groups else 0)


def recurrent_blocks(keys: Keys, n_blocks: int, n_trunk: int) -> list[bool]:
    """Return which blocks have a state. n_trunk: blocks before the ones for multi-token prediction."""
    blocks = _marked(keys, n_blocks)
    return [marked and index < n_trunk for index, marked in enumerate(blocks)]


def _marked(keys: Keys, n_blocks: int) -> list[bool]:
    if keys.architecture in _ALL_BLOCKS:
        return [True] * n_blocks
    if keys.architecture in _WITHOUT_KV_HEADS:
        heads = keys.per_block("attention.head_count_kv", n_blocks) or (1,) * n_blocks
        widths = keys.per_block("feed_forward_length", n_blocks) or (0,) * n_blocks
        mixed = keys.architecture in _MIXED_WITH_FEED_FORWARD
        return [n == 0 and not (mixed and width) for n, width in zip(heads, widths, strict=True)]
    default = _FULL_ATTENTION_EVERY.get(keys.architecture)
    if default is None:
        return [False] * n_blocks
    listed = keys.per_block("attention.recurrent_layers", n_blocks)
    if listed is not None:
        return [bool(item) for item in listed]
    every = keys.number("full_attention_interval") or default
    return [(index + 1) % every != 0 for index in range(n_blocks)]


def state_elements(keys: Keys, n_blocks: int) -> int:
    """Return the 32-bit numbers of one recurrent block's state for one slot: its convolution and its memory."""

    def number(name: str) -> int:
        return keys.number(name) or 0

    embedding = number("embedding_length")
    heads = (keys.per_block("attention.head_count", n_blocks) or (0,))[0]
    convolution = max(number("ssm.conv_kernel") - 1, 0)
    if head := number("wkv.head_size"):
        shifts = keys.number("token_shift_count")
        return (2 if shifts is None else shifts) * embedding + embedding * head
    if kept := number("shortconv.l_cache"):
        return embedding * (kept - 1)
    if head := number("kda.head_dim"):
        return 3 * (convolution or 3) * heads * head + head * head * heads
    inner, state, groups = number("ssm.inner_size"), number("ssm.state_size"), number("ssm.group_count")
    if keys.architecture == "minimax-01" and heads:
        head = keys.number("attention.key_length") or embedding // heads
        return head * head * heads
    return convolution * (inner + 2 * groups * state) + state * inner
