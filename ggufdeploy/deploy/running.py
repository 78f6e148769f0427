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
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.deploy.oracle import plan_config
from ggufdeploy.deploy.planning import Planned
from ggufdeploy.engine.client import EngineClient
from ggufdeploy.engine.request import (
    ChatMessage,
    ChatPrompt,
    Delta,
    DeviceBuffers,
    EngineConfig,
    EngineInfo,
    Finished,
    GenerateRequest,
    SamplingParams,
    TextPrompt,
)
from ggufdeploy.errors import EngineError
from ggufdeploy.planner.plan import Plan, plan_to_json
from ggufdeploy.profiles.profile import SamplingDefaults
from ggufdeploy.server.app import build_app
from ggufdeploy.server.auth import check_bind_address
from ggufdeploy.server.run import Server, bind
from ggufdeploy.server.state import ServerConfig
from ggufdeploy.units import format_bytes

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
    """What the ready line says. info.buffers: what llama.cpp really allocated, to stand beside the plan."""

    url: str
    model_id: str
    info: EngineInfo
    seconds: float


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


def planned_and_actual(plan: Plan, info: EngineInfo) -> list[str]:
    """Return one line per device: planned bytes beside what llama.cpp allocated."""
    actual = {part.device: part for part in info.buffers}
    lines = []
    for device in plan.devices:
        part = actual.get(device.name, DeviceBuffers(device.name, 0, 0, 0))
        planned = device.weights_bytes + device.kv_bytes + device.compute_bytes
        real = part.weights_bytes + part.kv_bytes + part.compute_bytes
        if planned or real:
            lines.append(f"{device.name}: planned {format_bytes(planned)}, actual {format_bytes(real)}")
    return lines


def engine_config(planned: Planned, path: Path, rpc_endpoints: tuple[str, ...] = ()) -> EngineConfig:
    """Return the parameters that carry out `planned` with the model at `path`."""
    profile = planned.source.profile
    template = profile.chat_template if profile else None
    return plan_config(planned.plan, path, chat_template=template, rpc_endpoints=rpc_endpoints)


@contextlib.asynccontextmanager
async def _engine(config: EngineConfig, on_progress: Callable[[float], None]) -> AsyncIterator[EngineClient]:
    """Start the worker and make sure that it is gone afterwards."""
    client = await EngineClient.start(config, on_progress=on_progress)
    try:
        yield client
    finally:
        await client.stop(0.0)


async def _loaded(client: EngineClient) -> EngineInfo:
    await client.wait_ready()
    info = client.status.info
    assert info is not None
    return info


async def answer(
    config: EngineConfig,
    prompt: str,
    sampling: SamplingParams,
    max_tokens: int | None,
    on_progress: Callable[[float], None],
    on_text: Callable[[str], None],
) -> Finished:
    """Load, answer one prompt through the chat template (or as plain text if the model has none), and stop.

    Raises LoadFailed, EngineCrashed, ContextOverflow.
    """
    async with _engine(config, on_progress) as client:
        info = await _loaded(client)
        text = ChatPrompt((ChatMessage("user", prompt),)) if info.has_chat_template else TextPrompt(prompt)
        request = GenerateRequest(id="prompt", prompt=text, sampling=sampling, max_tokens=max_tokens)
        async for event in client.generate(request):
            if isinstance(event, Finished):
                return event
            if isinstance(event, Delta):
                on_text(event.text)
    raise AssertionError("the engine ended a request without Finished")


async def serve(
    planned: Planned,
    config: EngineConfig,
    options: ServeOptions,
    sock: socket.socket,
    *,
    on_progress: Callable[[float], None],
    on_ready: Callable[[Ready], None],
    on_stopping: Callable[[], None],
) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code: 0, or 130 after Ctrl-C.

    sock: from `listen`, taken before anything slow. /health answers 503 from the first moment on. The first signal lets
    running requests finish for `drain_s` seconds, a second one stops at once. Raises LoadFailed, EngineCrashed.
    """
    started = time.monotonic()
    signals: asyncio.Queue[int] = asyncio.Queue()
    async with _engine(config, on_progress) as client:
        server = Server(build_app(client, _server_config(planned, options)), sock)
        with _signals(signals):
            await server.start()
            try:
                code = await _until_stopped(
                    client, signals, lambda info: _announce(planned, options, server, info, started, on_ready)
                )
                on_stopping()
                await _stop(server, signals, options.drain_s)
            finally:
                await server.stop(0.0)
    return code


async def _until_stopped(
    client: EngineClient, signals: asyncio.Queue[int], on_loaded: Callable[[EngineInfo], None]
) -> int:
    """Wait for the load, then for a signal or the worker's death; return the exit code."""
    loading = asyncio.create_task(_loaded(client))
    stopping = asyncio.create_task(signals.get())
    try:
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            on_loaded(await loading)
            died = asyncio.create_task(client.wait_ended())
            await asyncio.wait({died, stopping}, return_when=asyncio.FIRST_COMPLETED)
            died.cancel()
            if not stopping.done():
                raise EngineError(client.status.error or "The engine ended.", log=client.log)
        return 130 if stopping.result() == signal.SIGINT else 0
    finally:
        loading.cancel()
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


def _announce(
    planned: Planned,
    options: ServeOptions,
    server: Server,
    info: EngineInfo,
    started: float,
    on_ready: Callable[[Ready], None],
) -> None:
    ready = Ready(server.url, planned.source.name, info, time.monotonic() - started)
    on_ready(ready)
    if options.ready_file is not None:
        document = {"url": ready.url, "pid": os.getpid(), "model": ready.model_id}
        partial = options.ready_file.with_name(options.ready_file.name + ".partial")
        partial.write_text(json.dumps(document), encoding="utf-8")
        partial.replace(options.ready_file)


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
