"""Checksums of files on disk, and the memory of which files were found right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.layout import checksum
from ggufdeploy.settings import Settings

_READ_BYTES = 1 << 20


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
        """Record that the file's contents match its checksum."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / checksum(file)).write_text(_identity(path), encoding="utf-8")


def _identity(path: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    return f"{real}\n{stat.st_size}\n{stat.st_mtime_ns}\n"
