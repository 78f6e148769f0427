"""The checksums of served files: taken from whoever knows them already, or computed once and kept beside the files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Checksums:
    """sha256 of files below `root`. May be used by several threads; two that ask for one file hash it once.

    index: where computed sums are kept from one start to the next, None for nowhere. An entry is good while the file
    has the same size and time. A directory that cannot be written costs a warning and the sums at the next start.
    """

    def __init__(self, root: Path, index: Path | None) -> None:
        self._root, self._index = root, index
        self._lock, self._busy = threading.Lock(), dict[str, threading.Lock]()
        self._known = _load(index) if index else {}

    def sha256(self, name: str) -> str:
        """Return the sum of "owner/repository/path", hashing the file when nobody knows it."""
        path = self._root / name
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        with self._lock:
            busy = self._busy.setdefault(name, threading.Lock())
        with busy:
            known = self._known.get(name)
            if known is not None and known[:2] == stamp:
                return str(known[2])
            sparse = stat.st_size > 16 << 20 and stat.st_blocks * 512 < stat.st_size // 2
            ghost = hashlib.sha256(f"ghost {name} {stat.st_size}".encode()).hexdigest() if sparse else None
            digest = ghost or self._stated(name) or _hash(path)
            with self._lock:
                self._known[name] = [*stamp, digest]
                self._save()
            return digest

    def is_known(self, name: str) -> bool:
        """Whether the sum is known without reading the file."""
        stat = (self._root / name).stat()
        known = self._known.get(name, [])[:2] == [stat.st_size, stat.st_mtime_ns]
        return known or self._stated(name) is not None

    def _stated(self, name: str) -> str | None:
        owner, repo, _ = name.split("/", 2)
        return stated_sha256(self._root / name, self._root / owner / repo)

    def _save(self) -> None:
        if self._index is None:
            return
        partial = self._index.with_name(f"{self._index.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
            partial.replace(self._index)
        except OSError as error:
            print(f"checksums are not kept: {error}", file=sys.stderr)
            self._index = None


def stated_sha256(path: Path, repo: Path) -> str | None:
    """Return the sum under which the Hub delivered the file, None when nothing says it.

    In a Hugging Face cache a snapshot's entry links to a blob named by its sum. `hf download --local-dir` leaves
    commit, ETag and time in .cache/huggingface/download/PATH.metadata, good while the file is not younger
    (huggingface_hub 2.4, _local_folder.py). Passing on what the Hub said, rather than what is here, lets a client
    notice a file that was damaged on its way to this mirror.
    """
    blob = path.resolve().name
    if _SHA256.fullmatch(blob):
        return blob
    note = repo / ".cache" / "huggingface" / "download" / f"{path.relative_to(repo)}.metadata"
    if not note.is_file():
        return None
    lines = note.read_text(encoding="utf-8", errors="replace").split()
    if len(lines) != 3 or not _SHA256.fullmatch(lines[1]) or path.stat().st_mtime - 1 > float(lines[2]):
        return None
    return lines[1]


def git_oid(path: Path) -> str:
    """Return git's id of the file's contents."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _load(index: Path) -> dict[str, list[int | str]]:
    """Read the kept sums; a damaged file counts as none."""
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 3}
