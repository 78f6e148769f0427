"""What stands between a client and the Hub: proxies, TLS in front, certificates. All on loopback."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1 and localhost, and its key, as PEM files."""

    certificate: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """Make one with the openssl program, in `folder`."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", made.key, "-out", made.certificate],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return made


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Answer every connection on a thread of its own; yield the port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                answer(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def tls_in_front_of(port: int, certificate: Certificate) -> Iterator[str]:
    """End TLS and pass everything on to the port; yield the https address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    def answer(raw: socket.socket) -> None:
        with context.wrap_socket(raw, server_side=True) as client, socket.create_connection(("127.0.0.1", port)) as hub:
            _relay(client, hub)

    with listening(answer) as own:
        yield f"https://127.0.0.1:{own}"


@contextlib.contextmanager
def proxy(heads: list[str], *, refusal: str | None = None) -> Iterator[str]:
    """Pass on what is asked for, also through CONNECT, or refuse ("407 ..."); yield the address.

    heads: gets the head of every request to the proxy.
    """

    def answer(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := client.recv(65536)):
            head += more
        heads.append(head.decode(errors="replace"))
        if refusal is not None:
            client.sendall(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        method, target, _ = head.split(b" ", 2)
        host, _, port = (target.decode() if method == b"CONNECT" else urlsplit(target.decode()).netloc).rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            if method == b"CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:  # absolute-form is understood by every HTTP/1.1 server; ours wants a path
                upstream.sendall(head.replace(b"http://" + urlsplit(target).netloc, b"", 1))
            _relay(client, upstream)

    with listening(answer) as port:
        yield f"http://127.0.0.1:{port}"


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until one side ends."""
    while True:
        pending = [each for each in (one, other) if isinstance(each, ssl.SSLSocket) and each.pending()]
        for source in pending or select.select([one, other], [], [], 30)[0]:
            data = source.recv(65536)
            if not data:
                return
            (other if source is one else one).sendall(data)
