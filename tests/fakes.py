"""Stand-ins that behave like the real thing: FakeEngine for the server, FakeBackend for the engine's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Literal

from ggufdeploy.engine.request import Accepted, Delta, EngineInfo, Event, Finished, GenerateRequest, Stats
from ggufdeploy.engine.service import EngineStatus, Phase
from ggufdeploy.errors import EngineError, GgufdeployError, Overloaded

FAKE_INFO = EngineInfo(
    description="fake 1B Q4_0",
    context_tokens=4096,
    slots=4,
    n_vocab=256,
    context_train_tokens=8192,
    buffers=(),
    layer_devices=("CPU",),
    has_chat_template=True,
    load_s=0.1,
)


@dataclass(frozen=True)
class Script:
    """What the fake answers to one request. Every delta counts as one token.

    rejected: raised before Accepted. broken: raised after the deltas, instead of Finished.
    """

    deltas: tuple[str, ...] = ("Hello", " world", "!")
    reason: Literal["stop", "length"] = "stop"
    prompt_tokens: int = 5
    cached_tokens: int = 0
    rejected: GgufdeployError | None = None
    broken: GgufdeployError | None = None


@dataclass
class FakeEngine:
    """An EngineService without a model.

    script: one Script for all, or a function of the request. requests: all that were accepted or rejected, in order.
    cancelled: ids of the requests whose iterator was closed early. gate: while it is cleared, no delta leaves;
    `hold()` clears it, `release()` sets it. `max_tokens` is honoured, stop strings and sampling are not.
    """

    script: Script | Callable[[GenerateRequest], Script] = field(default_factory=Script)
    info: EngineInfo = FAKE_INFO
    phase: Phase = "ready"
    progress: float | None = None
    error: str | None = None
    requests: list[GenerateRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    stopped_with_grace_s: float | None = None
    _gate: asyncio.Event | None = None
    _started: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self) -> None:
        """Let no delta leave until `release()`; requests are still accepted."""
        self._gate = asyncio.Event()

    def release(self) -> None:
        """Let the deltas go."""
        if self._gate is not None:
            self._gate.set()

    async def wait_started(self) -> None:
        """Return once any request has been accepted."""
        await self._started.wait()

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(self.phase, self.progress, self.error, self.info if self.phase == "ready" else None)

    @property
    def stats(self) -> Stats:
        return Stats(
            running=len(self.running),
            slots=self.info.slots,
            kv_cells=self.info.context_tokens,
            requests_total=len(self.requests),
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self._refuse_unless_ready()
        self.requests.append(request)
        script = self.script(request) if callable(self.script) else self.script
        if script.rejected is not None:
            raise script.rejected
        self.running.add(request.id)
        finished = False
        try:
            async for event in self._play(request.id, script, request.max_tokens):
                yield event
            finished = True
        except GgufdeployError:
            finished = True
            raise
        finally:
            self.running.discard(request.id)
            if not finished:
                self.cancelled.append(request.id)

    async def _play(self, id: str, script: Script, max_tokens: int | None) -> AsyncGenerator[Event, None]:
        self._started.set()
        yield Accepted(id, script.prompt_tokens)
        deltas = script.deltas[:max_tokens]
        for text in deltas:
            await asyncio.sleep(0)
            if self._gate is not None:
                await self._gate.wait()
            yield Delta(id, text, 1)
        if script.broken is not None:
            raise script.broken
        yield Finished(
            id=id,
            reason="length" if len(deltas) < len(script.deltas) else script.reason,
            prompt_tokens=script.prompt_tokens,
            completion_tokens=len(deltas),
            cached_tokens=script.cached_tokens,
            prefill_s=0.01,
            decode_s=0.02,
        )

    async def tokenize(self, text: str) -> list[int]:
        """Return one id per UTF-8 byte."""
        self._refuse_unless_ready()
        return list(text.encode())

    async def stop(self, grace_s: float) -> None:
        self.phase = "stopped"
        self.stopped_with_grace_s = grace_s
        self.release()

    def _refuse_unless_ready(self) -> None:
        if self.phase == "loading":
            raise Overloaded("The model is still loading.", retry_after_s=1.0)
        if self.phase != "ready":
            raise EngineError(self.error or f"The engine is {self.phase}.")
