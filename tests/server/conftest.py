"""Clients for the application: in-process for shapes and rules, over a real socket for everything about connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.testclient import TestClient

from ggufdeploy.engine.request import Event, GenerateRequest
from ggufdeploy.server.app import build_app
from ggufdeploy.server.run import Server, bind
from ggufdeploy.server.state import Inflight, ServerConfig
from tests.fakes import FakeEngine

MODEL = "owner/model:Q4_K_M"
CREATED = 1_700_000_000
MESSAGES = [{"role": "user", "content": "Hi"}]


def make_config(**changes: Any) -> ServerConfig:
    return ServerConfig(**{"model_id": MODEL, "created": CREATED, "plan_json": b'{"schema_version":1}', **changes})


@dataclass
class WatchedEngine(FakeEngine):
    """A FakeEngine that says when a request has ended, and can keep requests queued, before Accepted."""

    ended: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    queued: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    queue_gate: asyncio.Event | None = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        try:
            if self.queue_gate is not None:
                self.queued.put_nowait(request.id)
                await self.queue_gate.wait()
            async for event in super().generate(request):
                yield event
        finally:
            self.ended.put_nowait(request.id)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_client(engine: FakeEngine) -> Iterator[Callable[..., TestClient]]:
    """Return a function that makes an in-process client of an app with the given configuration changes."""

    def make(*, raise_bugs: bool = True, engine: FakeEngine = engine, **changes: Any) -> TestClient:
        app = build_app(engine, make_config(**changes))
        return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=raise_bugs)

    return make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@dataclass
class Live:
    """A running server."""

    server: Server
    engine: WatchedEngine
    inflight: Inflight
    port: int

    async def connect(
        self, path: str, body: dict[str, Any] | None, headers: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send one request on a socket of its own; GET without a body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(http_request(path, body, headers))
        await writer.drain()
        return reader, writer

    async def request(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a request made with Connection: close."""
        reader, writer = await self.connect(path, body, "Connection: close\r\n")
        raw = await reader.read()
        writer.close()
        head, _, content = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers, content


def http_request(path: str, body: dict[str, Any] | None, headers: str = "") -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Type: application/json\r\n"
    return f"{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content


@asynccontextmanager
async def serving(engine: WatchedEngine | None = None, **changes: Any) -> AsyncIterator[Live]:
    """Serve on an ephemeral port of 127.0.0.1 while the block lasts."""
    engine = engine or WatchedEngine()
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    app = build_app(engine, make_config(port=port, **changes))
    server = Server(app, sock)
    await server.start()
    try:
        yield Live(server, engine, app.state.inflight, port)
    finally:
        await server.stop(0)


def sse_data(text: str) -> list[Any]:
    """Return the data of every event: parsed JSON, or the string "[DONE]"."""
    events = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    assert all(part.startswith("data: ") for part in events), events
    data = [part.removeprefix("data: ") for part in events]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


async def soon(awaitable: Any) -> Any:
    """Await what must happen at once: within 2 s, the bar llama-server's own tests set for a cancelled request."""
    return await asyncio.wait_for(awaitable, timeout=2)
