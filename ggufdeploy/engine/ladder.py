"""Proof prompts right after the load: what a device allocates only when it first computes shows before users come.

CUDA loads kernels and grows its pools at the first batch that needs them: servers that loaded well and answered short
prompts died at the first prompt of 64 tokens. Source of that figure: a published sweep over contexts on an RTX 5060 Ti.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ggufdeploy.engine.backend import Backend, Chunk, Decoded
from ggufdeploy.engine.request import Ladder
from ggufdeploy.errors import LoadFailed

RUNGS_TOKENS = (64, 512)
CPU_LIMIT_S = 1.0
"""Without GPU layers only RAM can be short, which shows at the first prompt; larger ones are not worth a long wait."""
_STRIDE = 7919  # a prime, so that the tokens differ and a mixture of experts uses many of them


def climb(
    backend: Backend,
    *,
    n_batch: int,
    n_ubatch: int,
    limit_s: float | None = None,
    on_rung: Callable[[], None] = lambda: None,
) -> Ladder:
    """Compute the proof prompts, then one token after the last, then one in every slot at once.

    n_batch, n_ubatch: as loaded. limit_s: leave out a prompt that would probably take longer, but never the first.
    on_rung: called after each prompt. Leaves nothing in the KV cache. Owner thread only. Raises LoadFailed.
    """
    cells, slots = backend.info.context_tokens, backend.info.slots
    most = max(1, min(n_batch, cells - slots))
    started = time.monotonic()
    climbed: list[int] = []
    slowest_s = 0.0
    for n_tokens in sorted({min(n_tokens, most) for n_tokens in (*RUNGS_TOKENS, n_ubatch)}):
        if climbed and limit_s is not None and slowest_s * n_tokens / climbed[-1] > limit_s:
            slowest_s *= most / climbed[-1]
            break
        backend.seq_rm(0, 0)
        slowest_s = max(slowest_s, _compute(backend, [_chunk(backend, 0, 0, n_tokens)]))
        climbed.append(n_tokens)
        on_rung()
    _compute(backend, [_chunk(backend, 0, climbed[-1], 1)])
    backend.seq_rm(0, 0)
    _compute(backend, [_chunk(backend, slot, 0, 1) for slot in range(slots)])
    for slot in range(slots):
        backend.seq_rm(slot, 0)
    return Ladder(tuple(climbed), time.monotonic() - started, slowest_s)


def _chunk(backend: Backend, slot: int, start: int, n_tokens: int) -> Chunk:
    n_vocab = backend.info.n_vocab
    tokens = [position * _STRIDE % n_vocab for position in range(start, start + n_tokens)]
    return Chunk(slot, start, tokens, output=True)


def _compute(backend: Backend, chunks: list[Chunk]) -> float:
    """Decode one batch and wait for its result; return the seconds. Raises LoadFailed."""
    started = time.monotonic()
    outcome = backend.decode(chunks)
    if outcome is not Decoded.OK:
        n_tokens = sum(len(chunk.tokens) for chunk in chunks)
        raise LoadFailed(
            f"llama.cpp loaded the model but could not compute a prompt of {n_tokens:,} tokens: {outcome.value}.",
            out_of_memory=outcome is Decoded.OUT_OF_MEMORY,
        )
    backend.logits()
    return time.monotonic() - started
