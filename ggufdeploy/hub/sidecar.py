"""The note beside a partial file: what it will be, who fetches it, and which parts of it are there.

A partial has holes, so it is worth nothing without its note. Two lists are kept: what was written, which survives the
end of the process, and what was synced to the disk, which survives the machine's.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import msgspec

from ggufdeploy.hub.ranges import Interval

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that has no room for us."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Sidecar(msgspec.Struct, frozen=True):
    """One partial. written, synced: bytes that are there, as disjoint intervals in order. boot: see `boot_id`."""

    repo: str
    commit: str
    path: str
    n_bytes: int
    pid: int
    host: str
    boot: str
    written: tuple[Interval, ...] = ()
    synced: tuple[Interval, ...] = ()

    @property
    def trusted(self) -> tuple[Interval, ...]:
        """What can be relied on now: everything written since the machine started, else what was synced."""
        return self.written if self.boot == boot_id() else self.synced

    @property
    def trusted_bytes(self) -> int:
        """Bytes of `trusted`."""
        return sum(end - start for start, end in self.trusted)


def read_sidecar(note: Path, n_bytes: int | None = None) -> Sidecar | None:
    """Return the note; None when there is none, it is damaged, or it is about a file that has not n_bytes."""
    try:
        sidecar = msgspec.json.decode(note.read_bytes(), type=Sidecar)
    except (OSError, msgspec.DecodeError):
        return None
    return sidecar if n_bytes in (None, sidecar.n_bytes) else None


def write_sidecar(note: Path, sidecar: Sidecar, *, sync: bool = False) -> None:
    """Write the note, replacing the present one at once; the caller holds the file's lock. sync: wait for the disk.

    On a full disk the present note is overwritten where it is, so that what filled the disk is not forgotten.
    """
    fresh, content = note.with_name(f"{note.name}.new"), msgspec.json.encode(sidecar)
    try:
        with fresh.open("wb") as stream:
            stream.write(content)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        fresh.replace(note)
    except OSError as error:
        if error.errno not in NO_SPACE or not note.is_file():
            raise
        fresh.unlink(missing_ok=True)
        with note.open("r+b") as stream:
            stream.write(content)
            stream.truncate()


def new_sidecar(repo: str, commit: str, path: str, n_bytes: int) -> Sidecar:
    """Return the note of a download that this process begins."""
    return Sidecar(repo, commit, path, n_bytes, os.getpid(), socket.gethostname(), boot_id())


def boot_id() -> str:
    """Return what differs after every start of the machine."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        import psutil

        return f"{psutil.boot_time():.0f}"
