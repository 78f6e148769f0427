"""The body of a file: ranges, pacing and faults; without any of them the kernel copies it (sendfile)."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.standin_hub.faults import Fault
from tests.standin_hub.server import Handler

_CHUNK_BYTES = 64 << 10
_PACE_S = 0.01  # what is sent at once on a limited connection
_CREDIT_S = 0.1  # what a connection may catch up after it was held up


class FileHandler(Handler):
    """A handler that can send files."""

    def send_file(self, name: str, headers: Mapping[str, str]) -> None:
        """Send the file, or the range asked for, with whatever faults apply."""
        take = self.hub.faults.take
        path = self.hub.root / name
        size = path.stat().st_size
        asked = None if self.command == "HEAD" else self.headers["Range"]
        if asked and take(name, "ignore_range"):
            asked = None
        bounds = parse_range(asked, size) if asked else (0, size)
        if bounds is None:
            self.send_json({"error": "range"}, 416, {"Content-Range": f"bytes */{size}"})
            return
        start, end = bounds
        sent = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked:
            shift = 1 if take(name, "wrong_range") else 0
            sent["Content-Range"] = f"bytes {start + shift}-{end - 1 + shift}/{size}"
        fault = take(name, "short", "oversize", "gzip") if self.command != "HEAD" else None
        body = _made_up_body(fault, path, start, end) if fault else None
        if fault and fault.kind == "gzip":
            sent["Content-Encoding"] = "gzip"
        self.send_response(206 if asked else 200)
        for key, text in {**sent, "Content-Length": str(end - start if body is None else len(body))}.items():
            self.send_header(key, text)
        self.end_headers()
        if body is not None:
            self.wfile.write(body)
        elif self.command != "HEAD":
            self._send_body(name, path, start, end)

    def _send_body(self, name: str, path: Path, start: int, end: int) -> None:
        fault = self.hub.faults.take(name, "cut", "stall", "slow")
        corrupt = self.hub.faults.take(name, "corrupt")
        if fault is None and corrupt is None:
            self._send_plainly(path, start, end)
            return
        limit = min(end, start + fault.at) if fault and fault.kind != "slow" else end
        for position, chunk in _chunks(path, start, limit):
            if corrupt and position <= corrupt.at < position + len(chunk):
                index = corrupt.at - position
                chunk = chunk[:index] + bytes([chunk[index] ^ 0xFF]) + chunk[index + 1 :]
            if fault and fault.kind == "slow" and self.hub.closing.wait(fault.seconds):
                limit = position
                break
            self.wfile.write(chunk)
        if limit < end:
            if fault and fault.kind == "stall":
                self.hub.closing.wait(fault.seconds)
            self.close_connection = True

    def _send_plainly(self, path: Path, start: int, end: int) -> None:
        """Send at full speed, or at the rate of the link. A file that has become shorter ends the connection."""
        rate = self.hub.rate_bytes_per_s
        step = max(1, int(rate * _PACE_S)) if rate else end - start
        due = time.monotonic()
        with path.open("rb") as stream:
            while start < end:
                sent = self.connection.sendfile(stream, start, min(step, end - start))
                if sent == 0:
                    self.close_connection = True
                    return
                start += sent
                if rate:
                    due = max(due, time.monotonic() - _CREDIT_S) + sent / rate
                    if self.hub.closing.wait(max(0.0, due - time.monotonic())):
                        self.close_connection = True
                        return


def _made_up_body(fault: Fault, path: Path, start: int, end: int) -> bytes:
    """Return the body of a fault that changes its length."""
    with path.open("rb") as stream:
        stream.seek(start)
        data = stream.read(end - start)
    if fault.kind == "gzip":
        return gzip.compress(data, 1)
    return data[: fault.at] if fault.kind == "short" else data + bytes(1000)


def _chunks(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stream:
        stream.seek(start)
        while start < end and (chunk := stream.read(min(_CHUNK_BYTES, end - start))):
            yield start, chunk
            start += len(chunk)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return [start, end) for one range; None when it cannot be satisfied."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if match is None or match[0] == "bytes=-":
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    return (start, end) if start < end else None
