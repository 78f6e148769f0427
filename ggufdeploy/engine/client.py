"""The engine as the API process uses it: starts the worker, talks to it, notices when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec

import ggufdeploy
from ggufdeploy.engine.loadlog import KEPT_LINES, tells_out_of_memory
from ggufdeploy.engine.messages import (
    HEADER,
    Cancel,
    Command,
    Load,
    NotLoaded,
    Progress,
    Ready,
    Report,
    Step,
    Stop,
    Submit,
    Tokenize,
    Tokens,
    pack,
    unpack_length,
    unpack_report,
)
from ggufdeploy.engine.parent import child_environment
from ggufdeploy.engine.request import EngineConfig, Event, Failed, Finished, GenerateRequest, Stats
from ggufdeploy.engine.service import EngineStatus, Phase
from ggufdeploy.errors import (
    BadRequest,
    ContextOverflow,
    EngineCrashed,
    EngineError,
    GgufdeployError,
    LoadFailed,
    Overloaded,
)

_RETRY_WHILE_LOADING_S = 2.0
_RETRY_WHEN_FULL_S = 5.0
_EXIT_TIMEOUT_S = 10.0


class EngineClient:
    """A worker process and the requests running in it. Implements `service.EngineService`; one event loop only."""

    def __init__(self, config: EngineConfig, on_progress: Callable[[float], None] | None) -> None:
        """Use `start`."""
        self._config = config
        self._on_progress = on_progress
        self._status = EngineStatus("loading", progress=0.0)
        self._stats = Stats(slots=config.slots, kv_cells=config.context_tokens)
        self._streams: dict[str, asyncio.Queue[Event | GgufdeployError]] = {}
        self._tokenizing: dict[int, asyncio.Future[list[int]]] = {}
        self._numbers = itertools.count()
        self._log: deque[str] = deque(maxlen=KEPT_LINES)
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loaded.add_done_callback(_mark_retrieved)
        self._drained = asyncio.Event()
        self._load_error: NotLoaded | None = None
        self._stop_task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: EngineConfig, *, on_progress: Callable[[float], None] | None = None) -> EngineClient:
        """Start a worker and return at once, in phase "loading"; `wait_ready` waits for the model.

        on_progress: called on the event loop with 0..1. The caller must `stop` the client.
        """
        client = cls(config, on_progress)
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

    async def wait_ready(self) -> None:
        """Return when requests are taken. Raises LoadFailed, also when the process died while loading."""
        await asyncio.shield(self._loaded)

    async def wait_ended(self) -> None:
        """Return when the worker's process is gone and every request in it was told."""
        await asyncio.shield(self._watching)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See EngineService.generate. Raises ValueError when the id is in flight already."""
        self._refuse_unless_ready()
        if request.id in self._streams:
            raise ValueError(f"request id {request.id!r} is in flight already")
        events = self._streams[request.id] = asyncio.Queue()
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
                yield event
        finally:
            del self._streams[request.id]
            if not done:
                self._send(Cancel(request.id))
            if not self._streams:
                self._drained.set()

    async def tokenize(self, text: str) -> list[int]:
        """See EngineService.tokenize. Raises BadRequest for a text that is too long."""
        self._refuse_unless_ready()
        number = next(self._numbers)
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._tokenizing[number] = answer
        self._send(Tokenize(number, text))
        try:
            return await answer
        finally:
            del self._tokenizing[number]

    async def stop(self, grace_s: float) -> None:
        if self._stop_task is None:
            was_ready = self._status.phase == "ready"
            self._become("stopped")
            self._stop_task = asyncio.ensure_future(self._stop(grace_s, was_ready))
        await asyncio.shield(self._stop_task)

    async def _stop(self, grace_s: float, was_ready: bool) -> None:
        if was_ready and self._streams:
            self._drained.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained.wait(), grace_s)
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

    # The worker's life. Starting it again after a crash is `_spawn` on a client whose `_watch` has ended.

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ggufdeploy.engine.worker",
                f"--fd={theirs.fileno()}",
                f"--parent={os.getpid()}",
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # `-m` imports from the working directory first: let that be ours, not whatever the user is in.
                cwd=Path(ggufdeploy.__file__).parents[1],
                env=child_environment(),
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        config = msgspec.structs.replace(self._config, model_path=str(Path(self._config.model_path).absolute()))
        self._send(Load(config))
        self._watching = asyncio.ensure_future(self._watch(reader))

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Follow the worker until it ends, then settle everything that waited for it."""
        try:
            await asyncio.gather(self._follow_reports(reader), self._follow_log())
        except BaseException:  # a bug, or the loop is closing: never leave a worker behind
            self._kill()
            raise
        finally:
            exit_code = await self._process.wait()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._settle(exit_code)

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
        if isinstance(report, Step):
            self._stats = report.stats
            for event in report.events:
                events = self._streams.get(event.id)
                if events is not None:  # else it was cancelled meanwhile
                    events.put_nowait(event)
        elif isinstance(report, Tokens):
            self._answer(report)
        elif isinstance(report, Progress):
            if self._status.phase == "loading":
                self._status = EngineStatus("loading", progress=report.fraction)
            if self._on_progress is not None:
                self._on_progress(report.fraction)
        elif isinstance(report, Ready):
            if self._status.phase == "loading":
                self._status = EngineStatus("ready", info=report.info)
            self._loaded.set_result(None)
        else:
            self._load_error = report

    def _answer(self, report: Tokens) -> None:
        waiting = self._tokenizing.get(report.number)
        if waiting is None or waiting.done():
            return
        if report.error is None:
            waiting.set_result(list(report.tokens))
        else:
            waiting.set_exception(BadRequest(report.error))

    def _settle(self, exit_code: int) -> None:
        stopped = self._status.phase == "stopped"
        error: EngineError
        if stopped:
            error = EngineError("The engine was stopped.")
        elif self._loaded.done():
            error = EngineCrashed(
                f"The engine's process {_how_it_ended(exit_code)}.", exit_code=exit_code, log=self._log
            )
        else:
            error = self._why_not_loaded(exit_code)
        if not stopped:
            self._status = EngineStatus("failed", error=error.message)
        self._stats = Stats(slots=self._config.slots, kv_cells=self._config.context_tokens)
        if not self._loaded.done():
            self._loaded.set_exception(error)
        for events in self._streams.values():
            events.put_nowait(error)
        for waiting in self._tokenizing.values():
            if not waiting.done():
                waiting.set_exception(error)

    def _why_not_loaded(self, exit_code: int) -> LoadFailed:
        report, name = self._load_error, Path(self._config.model_path).name
        if report is not None:
            return LoadFailed(report.message, out_of_memory=report.out_of_memory, log=report.log, hint=report.hint)
        # The kernel kills with SIGKILL when memory runs out; nothing else here does while a model is loading.
        killed = exit_code == -signal.SIGKILL
        last = f": {self._log[-1]}" if self._log else ""
        return LoadFailed(
            f"llama.cpp's process {_how_it_ended(exit_code)} while loading {name}{last}",
            out_of_memory=killed or tells_out_of_memory(self._log),
            log=self._log,
        )

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


def _how_it_ended(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


def _mark_retrieved(future: asyncio.Future[None]) -> None:
    """Nobody has to call wait_ready: asyncio is not to complain about an error nobody looked at."""
    if not future.cancelled():
        future.exception()
