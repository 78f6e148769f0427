"""A worker with a FakeBackend that fails on command: `EngineClient.start(..., worker="tests.faulty_worker")`.

The environment variable FAULT says where and how: "load:oom", "ladder:oom", "decode:3:kill" (at the third batch after
the proof prompts), how being oom, kill, segv, hang or broken. FAULT_ABOVE: only with more GPU layers than this.
FAULT_ONCE: only while this file does not exist; it is made when the fault happens. FAULT_PACE_S: what a batch takes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ggufdeploy.engine import worker
from ggufdeploy.engine.backend import Chunk, Decoded
from ggufdeploy.engine.request import EngineConfig
from ggufdeploy.errors import LoadFailed
from tests.fakes import FakeBackend

LAST_WORDS = "alloc_tensor_range: failed to allocate RPC0 buffer of size 1048576"


class FaultyBackend(FakeBackend):
    """Behaves until the fault's place is reached."""

    def __init__(self, config: EngineConfig, say: Callable[[str], None]) -> None:
        super().__init__(cells=config.context_tokens, slots=config.slots, n_batch=config.n_batch)
        self._say = say
        where, _, rest = os.environ.get("FAULT", "").partition(":")
        self._where, (*count, self._how) = where, rest.split(":")
        self._left = int(count[0]) if count else 1
        self._n_proof = len({min(n, config.n_batch) for n in (64, 512, config.n_ubatch)}) + 2
        self._armed = config.n_gpu_layers > int(os.environ.get("FAULT_ABOVE", "-1"))
        self._pace_s = float(os.environ.get("FAULT_PACE_S", "0"))
        self._reach("load")

    def decode(self, chunks: Sequence[Chunk]) -> Decoded:
        proof = self._n_proof > 0
        self._n_proof -= 1
        if not proof:
            time.sleep(self._pace_s)
        return self._reach("ladder" if proof else "decode") or super().decode(chunks)

    def _reach(self, where: str) -> Decoded | None:
        if where != self._where or not self._armed:
            return None
        self._left -= 1
        once = os.environ.get("FAULT_ONCE")
        if self._left or (once and Path(once).exists()):
            return None
        if once:
            Path(once).touch()
        if self._how in ("kill", "segv"):
            os.kill(os.getpid(), signal.SIGKILL if self._how == "kill" else signal.SIGSEGV)
        if self._how in ("kill", "segv", "hang"):
            time.sleep(600)
        if self._how == "oom":
            self._say(LAST_WORDS)
            if where == "load":
                raise LoadFailed("llama.cpp could not load the model: no memory", out_of_memory=True, log=(LAST_WORDS,))
            return Decoded.OUT_OF_MEMORY
        return Decoded.BROKEN


if __name__ == "__main__":
    worker.main(lambda config, on_progress, on_log: FaultyBackend(config, on_log))
