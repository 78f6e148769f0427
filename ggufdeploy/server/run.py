"""Bind, start, stop. The caller owns signals and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from ggufdeploy.errors import BadValue, PortBusy
from ggufdeploy.server.protocol import TimedH11
from ggufdeploy.server.state import Inflight

_BACKLOG = 2048
_STUCK_S = 2  # what a connection gets to finish once the drain is over


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket on `host`; port 0 takes any free one.

    It listens at once, so that no other process can take the port while the model loads. Raises PortBusy, with a
    free port in the hint, or BadValue when `host` is not an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise BadValue("--host", f"--host {host} is not a name or address: {error}") from error
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _bind_error(host, port, error) from error
    sock.setblocking(False)
    return sock


def url_of(sock: socket.socket) -> str:
    """Return the address a client on this machine would use: "http://127.0.0.1:8000"."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """uvicorn on a bound socket, without its signal handling.

    `stop` may be called again while it waits: the shorter grace wins, so a second signal calls stop(0).
    """

    def __init__(self, app: Starlette, sock: socket.socket) -> None:
        self._inflight: Inflight = app.state.inflight
        self._sock = sock
        self._uvicorn = _Uvicorn(_uvicorn_config(app))
        self._task: asyncio.Task[None] | None = None
        self.url = url_of(sock)

    async def start(self) -> None:
        """Return once requests are answered. Raises what kept the server from starting."""
        self._task = asyncio.create_task(self._uvicorn.serve(sockets=[self._sock]))
        ready = asyncio.create_task(self._uvicorn.ready.wait())
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            await self._task
            raise RuntimeError("the HTTP server ended before it started")

    async def stop(self, grace_s: float) -> None:
        """Answer 503 to new generations, let the running ones finish for `grace_s` seconds, then end them and close.

        A stream that is cut ends with an error event. Idempotent.
        """
        if self._task is None:
            self._sock.close()
            return
        await self._inflight.drain(grace_s)
        self._uvicorn.should_exit = True
        await asyncio.wait({self._task})

    async def wait(self) -> None:
        """Return when the server has ended; raises what ended it."""
        if self._task is not None:
            await asyncio.shield(self._task)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Starlette) -> uvicorn.Config:
    """Every choice that matters is made here, none is left to what happens to be installed."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=TimedH11,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",  # below are words about garbage on the wire, which anybody can send
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_STUCK_S,
        h11_max_incomplete_event_size=64 << 10,
    )


def _bind_error(host: str, port: int, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        owner = _listener(port)
        message = f"port {port} on {host} is in use" + (f" by {owner}" if owner else "")
        return PortBusy(host, port, message, hint=f"--port {_free_port(host, port)}")
    if error.errno == errno.EACCES:
        message = f"port {port} may not be opened by this user"
        return PortBusy(host, port, message, hint=f"--port {_free_port(host, max(port, 8000))}")
    return BadValue("--host", f"--host {host} cannot be used: {error.strerror or error}", hint="--host 127.0.0.1")


def _free_port(host: str, port: int) -> int:
    """Return the next port above `port` that can be bound now, else any."""
    for candidate in [*range(port + 1, min(port + 50, 65536)), 0]:
        with contextlib.suppress(OSError), socket.create_server((host, candidate), reuse_port=False) as probe:
            return int(probe.getsockname()[1])
    return 0


def _listener(port: int) -> str | None:
    """Return "name (pid 123)" of the process that listens on `port`, None when the system does not tell."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        return None
    return None
