"""What unfinished downloads left in the Hugging Face cache: partials that go on, and files nobody will ever finish."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggufdeploy.hub.layout import DAMAGED, PARTIAL
from ggufdeploy.hub.sidecar import read_sidecar
from ggufdeploy.settings import Settings

LeftoverKind = Literal["partial", "orphan", "damaged"]

# huggingface_hub names what it fetches CHECKSUM.RANDOM.incomplete and, since 1.18, never continues one (issue 4196 of
# its tracker). llama.cpp's CHECKSUM.downloadInProgress is continued by llama.cpp alone, so it is not ours to judge.
_ORPHAN = re.compile(r"\.(?:[0-9a-f]{8}\.)?incomplete$")


@dataclass(frozen=True)
class Leftover:
    """One file. kind: a "partial" goes on with the next pull, an "orphan" never will, a "damaged" one failed its check.

    path: within the repository, None when nothing says it. done_bytes, total_bytes: of the whole file, None when not
    known. disk_bytes: what it takes. changed_s: Unix time. busy: a process is fetching it now.
    """

    kind: LeftoverKind
    repo: str
    path: str | None
    files: tuple[Path, ...]
    done_bytes: int | None
    total_bytes: int | None
    disk_bytes: int
    changed_s: float
    busy: bool


def list_leftovers(settings: Settings) -> list[Leftover]:
    """Return all leftovers in the cache, by repository."""
    return [
        leftover
        for folder in sorted(settings.hf_cache_dir.glob("models--*--*"))
        for leftover in _in(folder, settings.hf_cache_dir)
    ]


def delete_leftover(leftover: Leftover, settings: Settings) -> int:
    """Delete it unless a process has begun to fetch it; return the bytes freed."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_of(leftover.files[0], settings.hf_cache_dir), mode=0o644)
    lock_folder = Path(lock.lock_file).parent
    lock_folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock.acquire(timeout=0):
            for file in leftover.files:
                file.unlink(missing_ok=True)
    except Timeout:
        return 0
    return leftover.disk_bytes


def _in(folder: Path, root: Path) -> Iterator[Leftover]:
    repo = folder.name.removeprefix("models--").replace("--", "/", 1)
    for file in sorted((folder / "blobs").glob("*.*")):
        kind = _kind(file)
        if kind is None:
            continue
        note = file.with_name(f"{file.name}.json")
        known = read_sidecar(note) if kind == "partial" else None
        stat = file.stat()
        yield Leftover(
            kind="orphan" if kind == "partial" and known is None else kind,
            repo=repo,
            path=known.path if known else None,
            files=(file, note) if note.is_file() else (file,),
            done_bytes=known.trusted_bytes if known else None,
            total_bytes=known.n_bytes if known else None,
            disk_bytes=stat.st_blocks * 512,
            changed_s=stat.st_mtime,
            busy=_is_busy(_lock_of(file, root)),
        )


def _kind(file: Path) -> LeftoverKind | None:
    if file.name.endswith(PARTIAL):
        return "partial"
    if file.name.endswith(DAMAGED):
        return "damaged"
    return "orphan" if _ORPHAN.search(file.name) else None


def _lock_of(file: Path, root: Path) -> Path:
    """Return the lock that whoever fetches the blob holds."""
    return root / ".locks" / file.parent.parent.name / f"{file.name.partition('.')[0]}.lock"


def _is_busy(lock: Path) -> bool:
    from filelock import FileLock, Timeout

    if not lock.is_file():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True
