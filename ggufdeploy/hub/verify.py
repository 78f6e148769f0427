"""Checksums of files on disk, and the memory of which files were found right."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.layout import checksum
from ggufdeploy.hub.ranges import Ranges
from ggufdeploy.settings import Settings

_READ_BYTES = 1 << 20
_FOLLOW_S = 0.01


class Digest(Protocol):
    """What hashlib's objects do."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the checksum of all bytes so far."""


def new_digest(file: GgufFile) -> Digest:
    """Return a digest whose result is the file's checksum: sha256, or git's blob id outside LFS."""
    if file.sha256 is not None:
        return hashlib.sha256()
    # Source: git hash-object: sha1 over "blob SIZE NUL" and the contents.
    return hashlib.sha1(b"blob %d\0" % file.n_bytes, usedforsecurity=False)


def feed(digest: Digest, path: Path, on_bytes: Callable[[int], None]) -> int:
    """Feed a file's contents to `digest`, reporting the bytes read so far; return their number."""
    done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_READ_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    return done


class Follower(threading.Thread):
    """Computes a file's checksum while the file is still being written, in order, behind its first gap.

    hashed_bytes: how far it is. done: set when all of the file is hashed, or `error` says why it cannot be.
    """

    def __init__(self, file: GgufFile, path: Path, ranges: Ranges) -> None:
        super().__init__(name=f"hash {file.path}", daemon=True)
        self.hashed_bytes = 0
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._file, self._path, self._ranges = file, path, ranges
        self._digest = new_digest(file)
        self._stopping = threading.Event()

    @property
    def hexdigest(self) -> str:
        """The checksum, once done."""
        return self._digest.hexdigest()

    def stop(self) -> None:
        """End without a result."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """Hash until the end of the file."""
        try:
            with self._path.open("rb", buffering=0) as stream:
                self._follow(stream)
        except BaseException as error:  # noqa: BLE001  # raised by the thread that waits for the checksum
            self.error = error
        self.done.set()

    def _follow(self, stream: io.FileIO) -> None:
        buffer = memoryview(bytearray(_READ_BYTES))
        while self.hashed_bytes < self._file.n_bytes and not self._stopping.is_set():
            ready = self._ranges.prefix_bytes - self.hashed_bytes
            if ready < _READ_BYTES and self._ranges.prefix_bytes < self._file.n_bytes:
                self._stopping.wait(_FOLLOW_S)
                continue
            n = stream.readinto(buffer[: min(ready, _READ_BYTES)])
            if not n:
                raise OSError(errno.EIO, "became shorter while it was being fetched", str(self._path))
            self._digest.update(buffer[:n])
            self.hashed_bytes += n


class VerifiedFiles:
    """Remembers, in `cache_dir/verified`, files whose contents matched, so that 80 GB are not hashed at every start.

    A file that changed size or modification time since is not remembered.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.cache_dir / "verified"

    def knows(self, path: Path, file: GgufFile) -> bool:
        """Whether this very file was found right before."""
        try:
            return (self._folder / checksum(file)).read_text(encoding="utf-8") == _identity(path)
        except (OSError, UnicodeDecodeError):
            return False

    def remember(self, path: Path, file: GgufFile) -> None:
        """Record that the file's contents match its checksum; what cannot be written is hashed again next time."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / checksum(file)).write_text(_identity(path), encoding="utf-8")


def _identity(path: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    return f"{real}\n{stat.st_size}\n{stat.st_mtime_ns}\n"
