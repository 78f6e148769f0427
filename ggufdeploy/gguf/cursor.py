"""Read primitives from any stream, checking every length before a byte of it is read."""

from __future__ import annotations

import struct
from typing import NoReturn, Protocol

from ggufdeploy.errors import BadGguf, HeaderTruncated

MAX_HEADER_BYTES = 64 << 20
MAX_STRING_BYTES = 16 << 20
_CHUNK_BYTES = 64 << 10
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Readable(Protocol):
    """What a header is read from: read(n) returns at most n bytes, and b"" at the end."""

    def read(self, n: int, /) -> bytes:
        """Return the next bytes."""
        ...


class Cursor:
    """A position in a stream, with a small buffer in front of it.

    file_bytes: the size of the whole file, when known; the stream may be a prefix of it. Reads up to 64 KiB further
    than asked for, so a stream is not left at a meaningful position. Not for several threads.
    """

    def __init__(self, stream: Readable, source: str, file_bytes: int | None) -> None:
        self._stream = stream
        self._source = source
        self._file_bytes = file_bytes
        self._buffer = b""
        self._at = 0
        self._base = 0

    @property
    def position(self) -> int:
        """Bytes of the file consumed so far."""
        return self._base + self._at

    def fail(self, reason: str, *, hint: str | None = None) -> NoReturn:
        """Raise BadGguf at this position."""
        raise BadGguf(self._source, self.position, reason, hint=hint)

    def peek(self, n: int) -> bytes:
        """Return up to n of the next bytes (at most 64 KiB) without consuming them; fewer at the end."""
        self._fill(min(n, _CHUNK_BYTES))
        return self._buffer[self._at : self._at + n]

    def take(self, n: int, what: str) -> bytes:
        """Return exactly n bytes. Raises HeaderTruncated at the end of the stream, BadGguf beyond the limits."""
        self._allow(n, what)
        self._fill(n)
        taken = self._buffer[self._at : self._at + n]
        if len(taken) < n:
            self._truncated(n, what)
        self._at += n
        return taken

    def skip(self, n: int, what: str) -> None:
        """Consume n bytes without keeping them."""
        self._allow(n, what)
        while n:
            step = min(n, max(len(self._buffer) - self._at, _CHUNK_BYTES))
            self.take(step, what)
            n -= step

    def u32(self, what: str) -> int:
        """Return a little-endian u32."""
        value: int = _U32.unpack(self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """Return a little-endian u64."""
        value: int = _U64.unpack(self.take(8, what))[0]
        return value

    def string(self, what: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """Return a length-prefixed UTF-8 string."""
        n = self.u64(f"the length of {what}")
        if n > max_bytes:
            self.fail(f"{what} claims {n:,} bytes, the limit is {max_bytes:,}")
        try:
            return self.take(n, what).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def skip_strings(self, count: int, what: str) -> None:
        """Consume `count` length-prefixed strings; half a million take about 0.1 s, because none is built."""
        self._allow(8 * count, what)
        while count:
            count -= self._skip_buffered_strings(count)
            if count:
                n = self.u64(f"the length of a string in {what}")
                if n > MAX_STRING_BYTES:
                    self.fail(f"a string in {what} claims {n:,} bytes, the limit is {MAX_STRING_BYTES:,}")
                self.skip(n, what)
                count -= 1

    def _skip_buffered_strings(self, count: int) -> int:
        """Consume those of the next `count` strings that lie wholly in the buffer; return how many."""
        unpack_from = _U64.unpack_from
        buffer, at, end, done = self._buffer, self._at, len(self._buffer) - 8, 0
        while done < count and at <= end:
            after: int = at + 8 + unpack_from(buffer, at)[0]
            if after > end + 8:
                break
            at = after
            done += 1
        self._at = at
        return done

    def _allow(self, n: int, what: str) -> None:
        end = self.position + n
        if self._file_bytes is not None and end > self._file_bytes:
            self.fail(
                f"{what} would end at byte {end:,}, but the file has {self._file_bytes:,} bytes; it is cut or damaged"
            )
        if end > MAX_HEADER_BYTES:
            self.fail(f"{what} would end at byte {end:,}; headers beyond {MAX_HEADER_BYTES:,} bytes are refused")

    def _fill(self, n: int) -> None:
        """Buffer at least n bytes from here, unless the stream ends first."""
        if len(self._buffer) - self._at >= n:
            return
        parts = [self._buffer[self._at :]]
        self._base, self._at = self.position, 0
        have = len(parts[0])
        while have < n:
            part = self._stream.read(max(n - have, _CHUNK_BYTES))
            if not part:
                break
            parts.append(part)
            have += len(part)
        self._buffer = b"".join(parts)

    def _truncated(self, n: int, what: str) -> NoReturn:
        have = len(self._buffer) - self._at
        reason = f"the data ends inside {what}, {n - have:,} bytes early"
        raise HeaderTruncated(self._source, self.position + have, reason)
