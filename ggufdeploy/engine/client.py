"""The engine as the API process uses it: starts the worker, talks to it, notices when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ggufdeploy.engine import ending
from ggufdeploy.engine.inflight import InFlight
from ggufdeploy.engine.loadlog import KEPT_LINES
from ggufdeploy.engine.messages import (
    HEADER,
    Ask,
    Cancel,
    Command,
    GaveUp,
    Load,
    Progress,
    Ready,
    Reply,
    Report,
    Step,
    Stop,
    Submit,
    pack,
    unpack_length,
    unpack_report,
)
from ggufdeploy.engine.request import (
    ChatPrompt,
    Decode,
    Encode,
    EngineConfig,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    Question,
    Render,
    Stats,
)
from ggufdeploy.engine.service import EngineStatus, Phase
from ggufdeploy.engine.spawn import WORKER, spawn_worker
from ggufdeploy.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    GgufdeployError,
    Overloaded,
)

_RETRY_WHILE_LOADING_S = 2.0
_RETRY_WHEN_FULL_S = 5.0
_EXIT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Patience:
    """How long a worker may say nothing before it counts as hung and is ended.

    load_s: while loading; a 70 GB file from a slow network disk reports a hundredth of it within minutes. step_s: while
    requests are waiting for it, or `steps` times the slowest proof prompt if that is longer.
    """

    load_s: float = 900.0
    step_s: float = 60.0
    steps: float = 30.0


class EngineClient:
    """A worker process and the requests running in it. One event loop only.

    Implements `service.EngineService` for as long as the worker lives.
    """

    def __init__(
        self, config: EngineConfig, on_progress: Callable[[float], None] | None, patience: Patience, worker: str
    ) -> None:
        """Use `start`."""
        self._config = config
        self._on_progress = on_progress
        self._patience = patience
        self._worker = worker
        self._status = EngineStatus("loading", progress=0.0)
        self._stats = Stats(slots=config.slots, kv_cells=config.context_tokens)
        self._in_flight = InFlight()
        self._log: deque[str] = deque(maxlen=KEPT_LINES)
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loaded.add_done_callback(_mark_retrieved)
        self._gave_up: GaveUp | None = None
        self._ending: EngineError | None = None
        self._last_sign = time.monotonic()
        self._hung_s: float | None = None
        self._oom_kills = ending.read_oom_kills()
        self._n_finished = 0
        self._stop_task: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        *,
        on_progress: Callable[[float], None] | None = None,
        patience: Patience | None = None,
        worker: str = WORKER,
    ) -> EngineClient:
        """Start a worker and return at once, in phase "loading"; `wait_ready` waits for the model.

        on_progress: called on the event loop with 0..1. worker: the module to run. The caller must `stop` the client.
        """
        client = cls(config, on_progress, patience or Patience(), worker)
        await client._spawn()
        return client

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def stats(self) -> Stats:
        return self._stats

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines of llama.cpp's log, oldest first."""
        return tuple(self._log)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def n_finished(self) -> int:
        """Requests this worker has finished."""
        return self._n_finished

    @property
    def ending(self) -> EngineError | None:
        """Why the worker ended; None while it runs."""
        return self._ending

    async def wait_ready(self) -> None:
        """Return when requests are taken. Raises LoadFailed, also when the process died while loading."""
        await asyncio.shield(self._loaded)

    async def wait_ended(self) -> None:
        """Return when the worker's process is gone and every request in it was told."""
        await asyncio.shield(self._watching)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See EngineService.generate. Raises ValueError when the id is in flight already."""
        self._refuse_unless_ready()
        was_idle = not self._in_flight
        events = self._in_flight.begin(request.id)
        if was_idle:
            self._last_sign = time.monotonic()
        self._send(Submit(request))
        done = False
        try:
            while not done:
                event = await events.get()
                done = isinstance(event, (Finished, Failed, GgufdeployError))
                if isinstance(event, GgufdeployError):
                    raise event
                if isinstance(event, Failed):
                    raise self._error_of(event)
                if isinstance(event, Finished):
                    self._n_finished += 1
                yield event
        finally:
            self._in_flight.end(request.id)
            if not done:
                self._send(Cancel(request.id))

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """See EngineService.tokenize. Raises BadRequest for a text that is too long."""
        tokens = await self._ask(Encode(text, add_special))
        assert not isinstance(tokens, str)
        return list(tokens)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """See EngineService.detokenize."""
        return str(await self._ask(Decode(tuple(tokens))))

    async def render(self, prompt: ChatPrompt) -> str:
        """See EngineService.render."""
        return str(await self._ask(Render(prompt)))

    async def _ask(self, question: Question) -> tuple[int, ...] | str:
        self._refuse_unless_ready()
        if not self._in_flight:
            self._last_sign = time.monotonic()
        with self._in_flight.asking() as (number, answer):
            self._send(Ask(number, question))
            return await answer

    async def stop(self, grace_s: float) -> None:
        if self._stop_task is None:
            was_ready = self._status.phase == "ready"
            self._become("stopped")
            self._stop_task = asyncio.ensure_future(self._stop(grace_s, was_ready))
        await asyncio.shield(self._stop_task)

    async def _stop(self, grace_s: float, was_ready: bool) -> None:
        if was_ready:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._in_flight.drained(), grace_s)
        if was_ready:
            self._send(Stop())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._watching), _EXIT_TIMEOUT_S)
        self._kill()
        await self._watching

    def _kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    # The worker's life. `supervisor` starts another one after a crash.

    async def _spawn(self) -> None:
        self._process, reader, self._writer = await spawn_worker(self._worker)
        config = msgspec.structs.replace(self._config, model_path=str(Path(self._config.model_path).absolute()))
        self._send(Load(config))
        self._watching = asyncio.ensure_future(self._watch(reader))

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Follow the worker until it ends, then settle everything that waited for it."""
        guard = asyncio.ensure_future(self._guard())
        try:
            await asyncio.gather(self._follow_reports(reader), self._follow_log())
        except BaseException:  # a bug, or the loop is closing: never leave a worker behind
            self._kill()
            raise
        finally:
            guard.cancel()
            exit_code = await self._process.wait()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._settle(exit_code)

    async def _guard(self) -> None:
        """End a worker that says nothing although something is asked of it."""
        while True:
            limit_s, asked = self._silence_limit_s(), time.monotonic()
            await asyncio.sleep(min(limit_s / 10, 1.0))
            if time.monotonic() - asked > 1.0 + limit_s / 10:  # we were stopped ourselves, by Ctrl-Z or a debugger
                self._last_sign = time.monotonic()
            silent_s = time.monotonic() - self._last_sign
            if silent_s > limit_s and (self._in_flight or self._status.phase == "loading"):
                self._hung_s = silent_s
                self._kill()
                return

    def _silence_limit_s(self) -> float:
        patience, info = self._patience, self._status.info
        if self._status.phase == "loading":
            return patience.load_s
        slowest_s = info.ladder.slowest_s if info is not None and info.ladder is not None else 0.0
        return max(patience.step_s, patience.steps * slowest_s)

    async def _follow_reports(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                header = await reader.readexactly(HEADER.size)
                self._take(unpack_report(await reader.readexactly(unpack_length(header))))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def _follow_log(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            self._log.extend(line.decode("utf-8", errors="replace") for line in lines if line)
        if rest:
            self._log.append(rest.decode("utf-8", errors="replace"))

    def _take(self, report: Report) -> None:
        self._last_sign = time.monotonic()
        if isinstance(report, Step):
            self._stats = report.stats
            for event in report.events:
                self._in_flight.deliver(event)
        elif isinstance(report, Reply):
            self._in_flight.answer(report)
        elif isinstance(report, Progress):
            if self._status.phase == "loading":
                self._status = EngineStatus("loading", progress=report.fraction)
            if self._on_progress is not None:
                self._on_progress(report.fraction)
        elif isinstance(report, Ready):
            if self._status.phase == "loading":
                self._status = EngineStatus("ready", info=report.info)
            self._log.clear()  # what a crash is judged by begins here
            self._loaded.set_result(None)
        else:
            self._gave_up = report

    def _settle(self, exit_code: int) -> None:
        stopped = self._status.phase == "stopped"
        error = EngineError("The engine was stopped.") if stopped else self._why(exit_code)
        self._ending = error
        if not stopped:
            self._status = EngineStatus("failed", error=error.message)
        self._stats = Stats(slots=self._config.slots, kv_cells=self._config.context_tokens)
        if not self._loaded.done():
            self._loaded.set_exception(error)
        self._in_flight.lose(error)

    def _why(self, exit_code: int) -> EngineError:
        log = tuple(self._log)
        if not self._loaded.done():
            name = Path(self._config.model_path).name
            return ending.load_failure(name, exit_code, self._gave_up, log, self._hung_s)
        now = ending.read_oom_kills()
        oom_kills = 0 if now is None or self._oom_kills is None else now - self._oom_kills
        return ending.crash(exit_code, self._gave_up, log, self._hung_s, oom_kills=oom_kills)

    def _become(self, phase: Phase) -> None:
        self._status = EngineStatus(phase, error=self._status.error, info=self._status.info)

    def _send(self, command: Command) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(command))

    def _refuse_unless_ready(self) -> None:
        status = self._status
        if status.phase == "loading":
            raise Overloaded("The model is still loading.", retry_after_s=_RETRY_WHILE_LOADING_S)
        if status.phase == "stopped":
            raise Overloaded("The server is shutting down.", retry_after_s=_RETRY_WHEN_FULL_S)
        if status.phase == "failed":
            raise EngineError(status.error or "The engine is not running.", log=self._log)

    def _error_of(self, failed: Failed) -> GgufdeployError:
        if failed.kind == "context_overflow":
            assert failed.prompt_tokens is not None
            assert failed.context_tokens is not None
            return ContextOverflow(failed.prompt_tokens, failed.context_tokens)
        if failed.kind == "bad_request":
            return BadRequest(failed.message, param=failed.param)
        if failed.kind == "overloaded":
            return Overloaded(failed.message, retry_after_s=_RETRY_WHEN_FULL_S)
        return EngineError(failed.message, log=self._log)


def _mark_retrieved(future: asyncio.Future[None]) -> None:
    """Nobody has to call wait_ready: asyncio is not to complain about an error nobody looked at."""
    if not future.cancelled():
        future.exception()
