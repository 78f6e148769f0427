"""One file from the Hub into its partial: resumed, retried, hashed on the way, and moved into place when right."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ggufdeploy.errors import ChecksumMismatch, GgufdeployError, NoDiskSpace, RateLimited, Unreachable
from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.layout import RepoCache, checksum
from ggufdeploy.hub.progress import Phase, Reporter
from ggufdeploy.hub.session import HubClient
from ggufdeploy.hub.verify import feed, new_digest
from ggufdeploy.units import format_file_size

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# A connection that brought this much did its work; its end does not count as one more failure in a row.
_PROGRESS_BYTES = 1 << 20

Stop = Callable[[], bool]


class DownloadStopped(GgufdeployError):
    """The caller's `stop` said so. What has arrived is kept, and the next download goes on from there."""

    def __init__(self, file: GgufFile, done_bytes: int) -> None:
        message = f"{file.path}: stopped at {format_file_size(done_bytes)} of {format_file_size(file.n_bytes)}"
        super().__init__(message, hint="run the same command again to go on from there")


class Transfer:
    """Fetches one file; the caller holds its lock. Every error but a wrong checksum keeps the partial."""

    def __init__(
        self, client: HubClient, cache: RepoCache, commit: str, file: GgufFile, reporter: Reporter, stop: Stop
    ) -> None:
        self._client, self._cache, self._commit, self._file = client, cache, commit, file
        self._reporter, self._stop = reporter, stop
        self._offset, self._digest = 0, new_digest(file)

    def run(self) -> Path:
        """Fetch, verify and move into place; return the blob.

        Raises ChecksumMismatch (the damaged contents are put aside), NoDiskSpace, DownloadStopped, Unreachable,
        AccessDenied, NotFound.
        """
        blob, partial = self._cache.blob(self._file), self._cache.partial(self._file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        self._write_note()
        with _open_partial(partial) as out:
            try:
                self._pick_up(out, partial)
                self._receive_all(out)
                os.fsync(out.fileno())
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                raise self._disk_full(partial) from error
        actual = self._digest.hexdigest()
        if actual != checksum(self._file):
            partial.replace(self._cache.damaged(self._file))
            raise ChecksumMismatch(self._file.path, checksum(self._file), actual)
        partial.replace(blob)
        _sync_folder(blob.parent)
        self._cache.note(self._file).unlink(missing_ok=True)
        return blob

    def _write_note(self) -> None:
        file, owner = self._file, {"pid": os.getpid(), "host": socket.gethostname()}
        content = {"repo": self._cache.repo, "commit": self._commit, "path": file.path, "n_bytes": file.n_bytes}
        self._cache.note(file).write_text(json.dumps({**content, "sha256": file.sha256, **owner}), encoding="utf-8")

    def _pick_up(self, out: io.FileIO, partial: Path) -> None:
        """Hash what an earlier run left, and go on behind it."""
        present = os.fstat(out.fileno()).st_size
        if present > self._file.n_bytes:
            self._restart(out)
        elif present:

            def on_bytes(done: int) -> None:
                self._heed_stop()
                self._report("checking", done)

            self._offset = feed(self._digest, partial, on_bytes)
        out.seek(self._offset)

    def _receive_all(self, out: io.FileIO) -> None:
        failures = 0
        while self._offset < self._file.n_bytes:
            self._heed_stop()
            before = self._offset
            try:
                self._receive(out)
            except Unreachable as error:
                failures = 1 if self._offset - before >= _PROGRESS_BYTES else failures + 1
                wait_s = self._client.downloads.wait_s(failures, error)
                if wait_s is None:
                    raise self._gave_up(error, failures) from error
                self._report("retrying", self._offset, f"{error.message}; trying again in {wait_s:.0f} s")
                self._pause(wait_s)

    def _receive(self, out: io.FileIO) -> None:
        """Ask for the rest once and write what comes, never more than the file's size."""
        size = self._file.n_bytes
        with self._client.open_range(self._cache.repo, self._commit, self._file, self._offset, size) as body:
            if body.offset != self._offset:
                self._restart(out)
            self._report("downloading", self._offset)
            for chunk in body.chunks:
                self._append(out, chunk[: size - self._offset])
                self._report("downloading", self._offset)
                if self._offset >= size:
                    return
                self._heed_stop()
        raise Unreachable(self._client.endpoint, f"the connection ended after {self._offset:,} of {size:,} bytes")

    def _append(self, out: io.FileIO, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            n = out.write(view)
            self._digest.update(view[:n])
            self._offset += n
            view = view[n:]

    def _restart(self, out: io.FileIO) -> None:
        out.truncate(0)
        out.seek(0)
        self._offset, self._digest = 0, new_digest(self._file)

    def _report(self, phase: Phase, done_bytes: int, detail: str | None = None) -> None:
        self._reporter.report(phase, self._file.path, done_bytes, self._file.n_bytes, detail=detail)

    def _heed_stop(self) -> None:
        if self._stop():
            raise DownloadStopped(self._file, self._offset)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._heed_stop()
            time.sleep(min(0.2, left))

    def _gave_up(self, error: Unreachable, failures: int) -> Unreachable:
        done, total = format_file_size(self._offset), format_file_size(self._file.n_bytes)
        message = f"{self._file.path}: gave up at {done} of {total} after {failures} failures; {error.message}"
        hint = "run the same command again: it goes on from there"
        if isinstance(error, RateLimited):
            return RateLimited(error.endpoint, message, retry_after_s=error.retry_after_s, hint=hint)
        return Unreachable(error.endpoint, message, hint=hint)

    def _disk_full(self, partial: Path) -> NoDiskSpace:
        needed, free = self._file.n_bytes - self._offset, shutil.disk_usage(partial.parent).free
        return NoDiskSpace(
            str(partial.parent),
            f"the disk of {partial.parent} is full: {format_file_size(needed)} of {self._file.path} are still to come",
            needed_bytes=needed,
            free_bytes=free,
            hint="free some space (ggufdeploy list shows models) and run the same command again: it goes on from there",
        )


def _open_partial(path: Path) -> io.FileIO:
    """Open for reading and writing without a buffer; a link in that place is refused."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return io.FileIO(descriptor, "r+b", closefd=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
