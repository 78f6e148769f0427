"""Load one model for real and tell what llama.cpp holds: a child process of benchmarks.plan_accuracy.

Reads a Question on stdin, prints a Reading.
"""

from __future__ import annotations

import re
import sys

import msgspec

from ggufdeploy.engine.backend import Chunk, Decoded
from ggufdeploy.engine.llamacpp import LlamaCppBackend
from ggufdeploy.engine.request import EngineConfig, EngineInfo
from ggufdeploy.units import MIB


class Question(msgspec.Struct, frozen=True):
    """What to load. run_pass: also decode a full pass and a token per slot, and read again."""

    config: EngineConfig
    run_pass: bool = True


class Reading(msgspec.Struct, frozen=True):
    """(weights, KV, compute) bytes per device, "CPU" for the host with its rows of logits; the largest seen."""

    devices: dict[str, tuple[int, int, int]]


def read(question: Question) -> Reading:
    """Load and read; with `run_pass` compute and read again, and return the larger figures."""
    config = question.config
    log: list[str] = []
    backend = LlamaCppBackend(config, on_log=log.append)
    rows_bytes = _rows_bytes(backend.info, log)
    before = _sum(backend, rows_bytes)
    share = config.n_ubatch // config.slots
    tokens = [3 + index % 250 for index in range(share)]
    full = [Chunk(slot, 0, tokens, True) for slot in range(config.slots)]
    single = [Chunk(slot, share, tokens[:1], True) for slot in range(config.slots)]
    for chunks in (full, single) if question.run_pass else ():
        assert backend.decode(chunks) is Decoded.OK, "the pass failed"
    after = _sum(backend, rows_bytes)
    return Reading({name: tuple(map(max, before[name], after[name])) for name in after})  # type: ignore[misc]


def _rows_bytes(info: EngineInfo, log: list[str]) -> int:
    """Return the buffer for a row of logits per slot, which the account leaves out and the log rounds to 0.01 MiB."""
    n_bytes = 4 * info.n_vocab * info.slots
    logged = [float(match[1]) for line in log if (match := re.search(r"output buffer size = +([\d.]+) MiB", line))]
    assert logged, "llama.cpp did not say how large its output buffer is"
    assert abs(logged[-1] * MIB - n_bytes) <= 0.0051 * MIB, f"rows of logits: {logged[-1]} MiB, not {n_bytes:,} bytes"
    return n_bytes


def _sum(backend: LlamaCppBackend, rows_bytes: int) -> dict[str, tuple[int, int, int]]:
    totals: dict[str, tuple[int, int, int]] = {"CPU": (0, 0, rows_bytes)}
    for part in backend.account():
        weights, kv, compute = totals.get(part.device, (0, 0, 0))
        totals[part.device] = (
            weights + part.weights_bytes,
            kv + part.kv_bytes,
            compute + part.compute_bytes,
        )
    return totals


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(read(msgspec.json.decode(sys.stdin.buffer.read(), type=Question))))
