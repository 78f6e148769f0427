"""Sockets and requests: what the Hub's and the CDN's handlers share, below what they say."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.standin_hub.hub import StandinHub

Side: TypeAlias = Literal["hub", "cdn"]
_JOIN_S = 5.0
_MOST_POSTED_BYTES = 1 << 20


@dataclass(frozen=True)
class Logged:
    """One request as received. range and authorization: the headers, None when absent."""

    server: Side
    method: str
    path: str
    range: str | None
    authorization: str | None


class Server(ThreadingHTTPServer):
    """A server with a thread per connection that ends all of them when stopped."""

    daemon_threads = True
    block_on_close = False  # stop() waits itself, with a limit
    request_queue_size = 256

    def __init__(self, hub: StandinHub, handler: type[Handler], host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.side: Side = handler.side
        super().__init__((host, port), handler)
        self.hub = hub
        self._open: set[socket.socket] = set()
        self._workers: set[threading.Thread] = set()
        self._thread = self._new_thread()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def server_bind(self) -> None:
        """Bind without asking the name service what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, cut what is open, and wait for its threads."""
        self.refuse()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client closed it first
                continue
        for worker in list(self._workers):
            worker.join(_JOIN_S)
        self.server_close()

    def refuse(self) -> None:
        """Let nobody connect: a port that is bound but not listened on refuses."""
        self.shutdown()
        self._thread.join()
        self.socket.close()
        self.socket = socket.socket(self.address_family, socket.SOCK_STREAM)
        self.server_bind()

    def accept(self) -> None:
        """Let clients connect again."""
        self.server_activate()
        self._thread = self._new_thread()
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection on a thread of its own, or reset it."""
        if self.hub.faults.take(self.side, "reset"):
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close()
            return
        self._open.add(request)
        worker = threading.Thread(target=self._work, args=(request, client_address), daemon=True)
        self._workers.add(worker)
        worker.start()

    def _work(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._workers.discard(threading.current_thread())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client hangs up or is too slow; anything else is a bug of this package."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Logging, latency and plain answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    side: Side
    server: Server

    @property
    def hub(self) -> StandinHub:
        """The stand-in this belongs to."""
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing to stderr; `StandinHub.requests` has it."""

    def do_HEAD(self) -> None:
        """Answer as to GET, without a body."""
        self._answer()

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_POST(self) -> None:
        """Read the body, then answer."""
        n_bytes = int(self.headers["Content-Length"] or 0)
        if not 0 <= n_bytes <= _MOST_POSTED_BYTES:
            self.close_connection = True
            self.send_json({"error": "too much"}, 413)
            return
        self.posted = self.rfile.read(n_bytes).decode(errors="replace")
        self._answer()

    def _answer(self) -> None:
        headers = self.headers
        url = urlsplit(self.path)
        self.hub.log(Logged(self.side, self.command, self.path, headers["Range"], headers["Authorization"]))
        if self.hub.latency_s:
            self.hub.closing.wait(self.hub.latency_s)
        self.answer(unquote(url.path), parse_qs(url.query))

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        """Answer one request for the decoded `path`."""
        raise NotImplementedError

    def base_url(self) -> str:
        """Return the address the client knows this server by, also behind a proxy that ends TLS."""
        scheme = "https" if self.headers["X-Forwarded-Proto"] == "https" else "http"
        return f"{scheme}://{self.headers['Host'] or urlsplit(self.hub.url).netloc}"

    def send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer."""
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_refusal(self, status: int, code: str, message: str, **headers: str) -> None:
        """Refuse as the Hub does, with its own headers beside the JSON."""
        self.send_json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message, **headers})
