"""Keeps an engine running: a worker that crashes, hangs or runs out of memory is replaced by a new one.

What a crash costs: requests being computed fail, those that were only queued are given to the next worker, and new ones
are told when to come back. A worker that keeps dying ends it all, with a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from ggufdeploy.engine.client import EngineClient, Patience
from ggufdeploy.engine.inflight import NotBegun
from ggufdeploy.engine.request import Accepted, ChatPrompt, EngineConfig, EngineInfo, Event, GenerateRequest, Stats
from ggufdeploy.engine.service import EngineStatus, Phase
from ggufdeploy.engine.spawn import WORKER
from ggufdeploy.errors import EngineCrashed, EngineError, GgufdeployError, LoadFailed, Overloaded

Replan = Callable[[EngineError], Awaitable[EngineConfig]]
"""The error that says memory was refused -> the parameters to try next. Raises GgufdeployError to give up."""


@dataclass(frozen=True)
class RestartPolicy:
    """When to try again. The first restart is immediate, then base_delay_s, doubled each time up to max_delay_s.

    max_failures: in a row, after which it gives up. A worker that finished a request, or lived healthy_s, ends a row.
    max_replans: plans tried in a row after memory was refused.
    """

    base_delay_s: float = 1.0
    max_delay_s: float = 30.0
    max_failures: int = 5
    healthy_s: float = 60.0
    max_replans: int = 3

    def delay_s(self, failures: int) -> float:
        """Return the pause after that many failures in a row."""
        return 0.0 if failures <= 1 else min(self.base_delay_s * 2.0 ** (failures - 2), self.max_delay_s)


@dataclass(frozen=True)
class Hooks:
    """Called on the event loop. on_progress: 0..1 of a load. on_ready: a worker serves. on_lost: the error, and
    the seconds until the next worker is started; None when that is planned again first."""

    on_progress: Callable[[float], None] = lambda fraction: None
    on_ready: Callable[[EngineInfo], None] = lambda info: None
    on_lost: Callable[[EngineError, float | None], None] = lambda error, delay_s: None


class Supervisor:
    """An EngineService that outlives its workers; one event loop only. Use `start`; the caller must `stop` it."""

    def __init__(
        self, config: EngineConfig, replan: Replan, hooks: Hooks, policy: RestartPolicy, patience: Patience, worker: str
    ) -> None:
        self._config, self._replan, self._hooks = config, replan, hooks
        self._policy, self._patience, self._worker = policy, patience, worker
        self._client: EngineClient | None = None
        self._phase: Phase = "loading"
        self._error: str | None = None
        self._restart_s = 5.0  # what the next start is expected to take
        self._failures = self._replans = 0
        self._n_restarts = 0
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        replan: Replan,
        *,
        hooks: Hooks | None = None,
        policy: RestartPolicy | None = None,
        patience: Patience | None = None,
        worker: str = WORKER,
    ) -> Supervisor:
        """Start the first worker and return at once; `wait_ready` waits for the model."""
        made = cls(config, replan, hooks or Hooks(), policy or RestartPolicy(), patience or Patience(), worker)
        made._task = asyncio.ensure_future(made._oversee())
        made._task.add_done_callback(_mark_retrieved)
        await asyncio.sleep(0)
        return made

    @property
    def status(self) -> EngineStatus:
        client = self._client
        if self._phase in ("failed", "stopped") or client is None:
            return EngineStatus(self._phase, error=self._error)
        inner = client.status
        if self._phase == "ready" and inner.phase == "ready":
            return inner
        phase: Phase = "restarting" if self._phase == "ready" else self._phase
        error = inner.error if inner.phase == "failed" else self._error
        return EngineStatus(phase, inner.progress if inner.phase == "loading" else None, error)

    @property
    def stats(self) -> Stats:
        if self._client is None:
            return Stats(slots=self._config.slots, kv_cells=self._config.context_tokens)
        return msgspec.structs.replace(self._client.stats, restarts_total=self._n_restarts)

    @property
    def pid(self) -> int | None:
        """The current worker's process id; None while there is none."""
        return self._client.pid if self._client is not None else None

    @property
    def n_restarts(self) -> int:
        """How often a worker was started again."""
        return self._n_restarts

    async def wait_ready(self) -> EngineInfo:
        """Return when requests are taken. Raises what made it give up."""
        while True:
            status = self.status
            if status.phase == "ready" and status.info is not None:
                return status.info
            await self._wait_change()

    async def wait_ended(self) -> None:
        """Return when it was stopped; raises what made it give up."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See EngineService.generate. A request that no worker had begun survives the death of a worker."""
        accepted = False
        while True:
            client = self._ready_client()
            try:
                async with contextlib.aclosing(client.generate(request)) as events:
                    async for event in events:
                        if not (accepted and isinstance(event, Accepted)):
                            yield event
                        accepted = accepted or isinstance(event, Accepted)
                return
            except NotBegun as error:
                if not accepted:  # preparing it may be what killed the worker: its client has to decide
                    raise self._unavailable() from error
            await self.wait_ready()

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """See EngineService.tokenize."""
        return await self._ready_client().tokenize(text, add_special=add_special)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """See EngineService.detokenize."""
        return await self._ready_client().detokenize(tokens)

    async def render(self, prompt: ChatPrompt) -> str:
        """See EngineService.render."""
        return await self._ready_client().render(prompt)

    async def stop(self, grace_s: float) -> None:
        self._become("stopped")
        self._stopping.set()
        if self._client is not None:
            await self._client.stop(grace_s)
        if self._task is not None:
            await asyncio.wait({self._task})  # not cancelled: it may be starting a process

    # The supervising task

    async def _oversee(self) -> None:
        try:
            while not self._stopping.is_set():
                error = await self._one_life()
                if not self._stopping.is_set():
                    await self._prepare_next(error)
        except GgufdeployError as error:
            self._error = error.message
            self._become("failed")
            raise

    async def _one_life(self) -> EngineError:
        """Start a worker, wait for its end, return why it ended."""
        began = time.monotonic()
        client = await EngineClient.start(
            self._config, on_progress=self._hooks.on_progress, patience=self._patience, worker=self._worker
        )
        self._client = client
        if self._stopping.is_set():
            await client.stop(0.0)
        try:
            await client.wait_ready()
            ready = time.monotonic()
            self._restart_s = ready - began
            info = client.status.info
            if info is not None:
                self._become("ready")
                self._hooks.on_ready(info)
            await client.wait_ended()
            if client.n_finished or time.monotonic() - ready >= self._policy.healthy_s:
                self._failures = self._replans = 0
        except EngineError:  # not loaded, or stopped before it was
            await client.wait_ended()
        assert client.ending is not None
        return client.ending

    async def _prepare_next(self, error: EngineError) -> None:
        """Wait or plan again, so that the next worker can be started. Raises what makes it give up."""
        first = self._phase == "loading"
        self._error = error.message
        if not first:
            self._become("restarting")
        if isinstance(error, LoadFailed | EngineCrashed) and error.out_of_memory:
            await self._plan_again(error)
            return
        if first:
            raise error
        self._failures += 1
        if self._failures > self._policy.max_failures:
            raise _hopeless(error, self._failures)
        delay_s = self._policy.delay_s(self._failures)
        self._n_restarts += 1
        self._hooks.on_lost(error, delay_s)
        await self._unless_stopped(asyncio.sleep(delay_s, self._config))

    async def _plan_again(self, error: EngineError) -> None:
        self._replans += 1
        if self._replans > self._policy.max_replans:
            raise LoadFailed(
                f"memory ran out with {self._replans} plans in a row; the last time: {error.message}",
                out_of_memory=True,
                log=error.log,
                hint="free memory and run it again, or ask for less: --ctx, --slots, --kv-type q8_0, a smaller --quant",
            )
        self._hooks.on_lost(error, None)
        self._config = await self._unless_stopped(self._replan(error))
        self._n_restarts += 1

    async def _unless_stopped(self, work: Awaitable[EngineConfig]) -> EngineConfig:
        """Return what `work` returns; what it was going to return no longer matters once it is time to stop."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            return self._config
        return working.result()

    def _become(self, phase: Phase) -> None:
        if self._phase != "stopped":
            self._phase = phase
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_change(self) -> None:
        """Return when the phase changed; raises what made it give up."""
        assert self._task is not None
        if self._phase == "stopped":
            raise Overloaded("The server is shutting down.", retry_after_s=10.0)
        changed = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait({changed, self._task}, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    def _ready_client(self) -> EngineClient:
        status = self.status
        if status.phase in ("loading", "restarting"):
            raise self._unavailable()
        if status.phase == "failed":
            raise EngineError(status.error or "The engine is not running.")
        if status.phase == "stopped" or self._client is None:
            raise Overloaded("The server is shutting down.", retry_after_s=10.0)
        return self._client

    def _unavailable(self) -> Overloaded:
        what = "is still loading" if self._phase == "loading" else "is being loaded again after its process ended"
        return Overloaded(f"The model {what}.", retry_after_s=max(1.0, math.ceil(self._restart_s)))


def _mark_retrieved(task: asyncio.Task[None]) -> None:
    """Nobody has to call wait_ended: asyncio is not to complain about an error nobody looked at."""
    if not task.cancelled():
        task.exception()


def _hopeless(error: EngineError, failures: int) -> EngineCrashed:
    code = error.exit_code if isinstance(error, EngineCrashed) else None
    return EngineCrashed(
        f"the engine ended {failures} times in a row without finishing a request; the last time: {error.message}",
        exit_code=code,
        log=error.log,
        hint="see what the machine has and whether the engine works: ggufdeploy doctor",
    )
