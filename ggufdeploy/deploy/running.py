"""Carry out a plan: load, serve or answer once, and stop cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufdeploy.deploy.instances import Registration
from ggufdeploy.deploy.planning import Planned
from ggufdeploy.deploy.recovery import Change, Deployment
from ggufdeploy.deploy.truth import ProcessMemory, Truth, compare, read_process
from ggufdeploy.engine.request import (
    ChatMessage,
    ChatPrompt,
    Delta,
    EngineConfig,
    EngineInfo,
    Finished,
    GenerateRequest,
    SamplingParams,
    TextPrompt,
)
from ggufdeploy.engine.supervisor import Hooks, Supervisor
from ggufdeploy.errors import EngineError
from ggufdeploy.planner.plan import plan_to_json
from ggufdeploy.profiles.profile import SamplingDefaults
from ggufdeploy.server.app import build_app
from ggufdeploy.server.auth import check_bind_address
from ggufdeploy.server.run import Server, bind, url_of
from ggufdeploy.server.state import ServerConfig, Shown

DRAIN_S = 10.0
"""How long running requests may go on after the first SIGTERM or Ctrl-C."""


@dataclass(frozen=True)
class ServeOptions:
    """How to serve. port 0: any free one. api_key: asked of clients, None for none.

    ready_file: written once /health answers 200, as {"url", "pid", "model"}.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    ready_file: Path | None = None
    drain_s: float = DRAIN_S


def listen(options: ServeOptions) -> socket.socket:
    """Return a listening socket, so that a busy port or a missing key is said before anything slow.

    Raises BadValue for an address beyond this machine without a key, PortBusy.
    """
    check_bind_address(options.host, options.api_key)
    return bind(options.host, options.port)


@dataclass(frozen=True)
class Ready:
    """What the ready line says. truth: planned beside actual. restarts: engines started after the first."""

    url: str
    model_id: str
    info: EngineInfo
    seconds: float
    truth: Truth
    restarts: int


@dataclass(frozen=True)
class Voice:
    """What the user is told, called on the event loop's thread.

    on_progress: 0..1 of a load. on_ready: each time an engine serves. on_lost: an engine ended; the seconds until the
    next one is started, None when it is planned again first. on_changed: memory ran out and another plan is tried.
    on_stopping: the drain begins.
    """

    on_progress: Callable[[float], None] = lambda fraction: None
    on_ready: Callable[[Ready], None] = lambda ready: None
    on_lost: Callable[[EngineError, float | None], None] = lambda error, delay_s: None
    on_changed: Callable[[Change], None] = lambda change: None
    on_stopping: Callable[[], None] = lambda: None


def sampling_defaults(defaults: SamplingDefaults | None) -> SamplingParams:
    """Return the engine's defaults with what the profile states."""
    base = SamplingParams()
    if defaults is None:
        return base
    return SamplingParams(
        temperature=base.temperature if defaults.temperature is None else defaults.temperature,
        top_p=base.top_p if defaults.top_p is None else defaults.top_p,
        top_k=base.top_k if defaults.top_k is None else defaults.top_k,
        min_p=base.min_p if defaults.min_p is None else defaults.min_p,
    )


@contextlib.asynccontextmanager
async def _supervised(
    deployment: Deployment, voice: Voice, on_ready: Callable[[EngineInfo], None]
) -> AsyncIterator[Supervisor]:
    """Keep an engine running for as long as the block lasts, and make sure that it is gone afterwards."""

    async def replan(error: EngineError) -> EngineConfig:
        voice.on_changed(await asyncio.to_thread(deployment.plan_again, error))
        return deployment.config

    def ready(info: EngineInfo) -> None:
        deployment.mark_proven()
        on_ready(info)

    hooks = Hooks(on_progress=voice.on_progress, on_ready=ready, on_lost=voice.on_lost)
    engine = await Supervisor.start(deployment.config, replan, hooks=hooks)
    try:
        yield engine
    finally:
        await engine.stop(0.0)


async def answer(
    deployment: Deployment, prompt: str, max_tokens: int | None, voice: Voice, on_text: Callable[[str], None]
) -> Finished:
    """Load, answer one prompt through the chat template (or as plain text if the model has none), and stop.

    Raises LoadFailed, DoesNotFit, EngineCrashed, ContextOverflow.
    """
    profile = deployment.planned.source.profile
    sampling = sampling_defaults(profile.sampling if profile else None)
    async with _supervised(deployment, voice, lambda info: None) as engine:
        info = await engine.wait_ready()
        text = ChatPrompt((ChatMessage("user", prompt),)) if info.has_chat_template else TextPrompt(prompt)
        request = GenerateRequest(id="prompt", prompt=text, sampling=sampling, max_tokens=max_tokens)
        async for event in engine.generate(request):
            if isinstance(event, Finished):
                return event
            if isinstance(event, Delta):
                on_text(event.text)
    raise AssertionError("the engine ended a request without Finished")


class _Session:
    """One `serve`: tells the user, GET /plan, the ready file and `ps` what was loaded, each time it was."""

    def __init__(
        self, deployment: Deployment, options: ServeOptions, voice: Voice, entry: Registration, sock: socket.socket
    ) -> None:
        self._deployment, self._options, self._voice, self._entry = deployment, options, voice, entry
        self._started = time.monotonic()
        self._telling: set[asyncio.Task[None]] = set()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # what telling raised
        self.url = url_of(sock)
        self.engine: Supervisor | None = None
        self.shown: Shown | None = None
        plan = deployment.planned.plan
        entry.update(
            phase="loading", url=self.url, port=sock.getsockname()[1], quantization=plan.quantization.name,
            context_tokens=plan.context_tokens, slots=plan.slots,
        )  # fmt: skip

    def loaded(self, info: EngineInfo) -> None:
        """An engine is ready; measuring it takes some milliseconds, which are not the event loop's."""
        task = asyncio.ensure_future(self._tell(info))
        self._telling.add(task)
        task.add_done_callback(self._told)

    def lost(self, error: EngineError, delay_s: float | None) -> None:
        """An engine ended."""
        self._entry.update(phase="restarting", memory=None)
        self._voice.on_lost(error, delay_s)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._telling.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.broken.done():
            self.broken.set_exception(error)

    async def _tell(self, info: EngineInfo) -> None:
        assert self.engine is not None
        assert self.shown is not None
        planned, pid = self._deployment.planned, self.engine.pid
        process = ProcessMemory()
        if pid is not None:
            process = await asyncio.to_thread(read_process, pid, planned.machine.devices)
        truth = compare(planned.plan, info, process)
        self.shown.show(plan_to_json(planned.plan).encode(), truth)
        restarts = self.engine.n_restarts
        ready = Ready(self.url, planned.source.name, info, time.monotonic() - self._started, truth, restarts)
        self._entry.update(phase="ready", memory=truth, restarts=restarts)
        self._voice.on_ready(ready)
        if self._options.ready_file is not None:
            _write_ready_file(self._options.ready_file, ready)


async def serve(
    deployment: Deployment, options: ServeOptions, sock: socket.socket, voice: Voice, entry: Registration
) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code: 0, or 130 after Ctrl-C.

    sock: from `listen`, taken before anything slow. entry: kept up to date for `ps`. /health answers 503 from the first
    moment on, and again while an engine that died is replaced. The first signal lets running requests finish for
    `drain_s` seconds, a second one stops at once. Raises LoadFailed, DoesNotFit, EngineCrashed.
    """
    session = _Session(deployment, options, voice, entry, sock)
    signals: asyncio.Queue[int] = asyncio.Queue()
    heard = replace(voice, on_lost=session.lost)
    async with _supervised(deployment, heard, session.loaded) as engine:
        app = build_app(engine, _server_config(deployment.planned, options))
        session.engine, session.shown = engine, app.state.shown
        server = Server(app, sock)
        with _signals(signals):
            await server.start()
            try:
                code = await _until_stopped(engine, session, signals)
                entry.update(phase="stopping")
                voice.on_stopping()
                await _stop(server, signals, options.drain_s)
            finally:
                await server.stop(0.0)
    return code


async def _until_stopped(engine: Supervisor, session: _Session, signals: asyncio.Queue[int]) -> int:
    """Wait for a signal and return the exit code. Raises what makes the supervisor give up, and what telling raised."""
    ended = asyncio.ensure_future(engine.wait_ended())
    stopping = asyncio.ensure_future(signals.get())
    try:
        watched: list[asyncio.Future[Any]] = [ended, stopping, session.broken]
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await (session.broken if session.broken.done() else ended)
        return 130 if stopping.result() == signal.SIGINT else 0
    finally:
        ended.cancel()
        stopping.cancel()


async def _stop(server: Server, signals: asyncio.Queue[int], drain_s: float) -> None:
    """Drain; a further signal ends the drain."""
    draining = asyncio.create_task(server.stop(drain_s))
    again = asyncio.create_task(signals.get())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await server.stop(0.0)
    again.cancel()
    await draining


@contextlib.contextmanager
def _signals(queue: asyncio.Queue[int]) -> Iterator[None]:
    """Put SIGINT and SIGTERM into `queue` while the block runs."""
    loop = asyncio.get_running_loop()
    wanted = (signal.SIGINT, signal.SIGTERM)
    for number in wanted:
        loop.add_signal_handler(number, queue.put_nowait, int(number))
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


def _write_ready_file(path: Path, ready: Ready) -> None:
    document = {"url": ready.url, "pid": os.getpid(), "model": ready.model_id}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)


def _server_config(planned: Planned, options: ServeOptions) -> ServerConfig:
    source = planned.source
    profile = source.profile
    names = (planned.plan.model.ref, *(profile.aliases if profile else ()), *([source.repo] if source.repo else ()))
    return ServerConfig(
        model_id=source.name,
        created=int(time.time()),
        host=options.host,
        port=options.port,
        aliases=tuple(dict.fromkeys(name for name in names if name != source.name)),
        api_key=options.api_key,
        sampling=sampling_defaults(profile.sampling if profile else None),
        plan_json=plan_to_json(planned.plan).encode(),
    )
