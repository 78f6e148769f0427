"""One file from the Hub into its partial: over several connections, resumed, retried, hashed on the way, verified."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ggufdeploy.errors import Blocked, ChecksumMismatch, GgufdeployError, NoDiskSpace, Offline, RateLimited, Unreachable
from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.connection import Crew, Ended, Retrying, Task, open_partial
from ggufdeploy.hub.layout import RepoCache, checksum
from ggufdeploy.hub.progress import Phase, Reporter
from ggufdeploy.hub.ranges import Fanout, Interval, Ranges
from ggufdeploy.hub.session import HubClient
from ggufdeploy.hub.sidecar import NO_SPACE, new_sidecar, read_sidecar, write_sidecar
from ggufdeploy.hub.verify import Follower
from ggufdeploy.units import format_file_size

_TICK_S, _FINAL_TICK_S = 0.05, 0.005
# How often what was written is made to survive a crash of the machine, too.
_SYNC_S = 5.0
_HASHING_SHOWS_S = 1.0
# When the network goes, all connections fail within seconds: it is said once, and then this often.
_RETRIES_SHOW_S = 5.0

Stop = Callable[[], bool]


class DownloadStopped(GgufdeployError):
    """The caller's `stop` said so. What has arrived is kept, and the next download goes on from there."""

    def __init__(self, file: GgufFile, done_bytes: int) -> None:
        message = f"{file.path}: stopped at {format_file_size(done_bytes)} of {format_file_size(file.n_bytes)}"
        super().__init__(message, hint="run the same command again to go on from there")


class Transfer:
    """Fetches one file; the caller holds its lock. Every error but a wrong checksum keeps the partial."""

    def __init__(
        self,
        client: HubClient,
        cache: RepoCache,
        commit: str,
        file: GgufFile,
        reporter: Reporter,
        stop: Stop,
        fanout: Fanout,
    ) -> None:
        self._client, self._cache, self._commit, self._file = client, cache, commit, file
        self._reporter, self._stop, self._fanout = reporter, stop, fanout
        self._partial, self._note = cache.partial(file), cache.note(file)
        self._ranges = Ranges(file.n_bytes, fanout=fanout)
        self._sidecar = new_sidecar(cache.repo, commit, file.path, file.n_bytes)
        self._note_lock = threading.Lock()
        self._reported_bytes, self._reported_at = -1, 0.0
        self._retry_said_at = -_RETRIES_SHOW_S

    def run(self) -> Path:
        """Fetch, verify and move into place; return the blob.

        Raises ChecksumMismatch (the damaged contents are put aside), NoDiskSpace, DownloadStopped, Unreachable,
        AccessDenied, NotFound.
        """
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        with open_partial(self._partial) as out:
            try:
                self._pick_up(out)
                actual = self._fetch()
                os.fsync(out.fileno())
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                raise self._disk_full() from error
        right = actual == checksum(self._file)
        place = self._cache.blob(self._file) if right else self._cache.damaged(self._file)
        # The note goes last: a process killed between the two must not leave a whole file that nothing vouches for.
        self._partial.replace(place)
        self._note.unlink(missing_ok=True)
        if not right:
            raise ChecksumMismatch(self._file.path, checksum(self._file), actual)
        _sync_folder(place.parent)
        return place

    def _pick_up(self, out: io.FileIO) -> None:
        """Go on from what an earlier process left, if its note is there to say which parts of the partial are good."""
        left = read_sidecar(self._note, self._file.n_bytes)
        size = os.fstat(out.fileno()).st_size
        here = [part for part in left.trusted if part[1] <= size] if left else []
        self._ranges = Ranges(self._file.n_bytes, here, self._fanout)
        if not here or size > self._file.n_bytes:
            out.truncate(0 if not here else self._file.n_bytes)
        self._write_note(synced=left.synced if left and here else ())

    def _fetch(self) -> str:
        """Receive what is missing and return the checksum of the whole."""
        task = Task(
            self._client, self._cache.repo, self._commit, self._file, self._partial, self._ranges,
            self._fanout.range_bytes, self._write_note,
        )  # fmt: skip
        crew, follower = Crew(task), Follower(self._file, self._partial, self._ranges)
        syncing = threading.Thread(target=self._sync_now_and_then, args=(crew,), daemon=True)
        missing = self._file.n_bytes - self._ranges.here_bytes
        try:
            follower.start()
            syncing.start()
            crew.start(self._fanout.width(missing) if missing else 0)
            self._watch(crew, follower)
        finally:
            crew.stop()
            follower.stop()
            syncing.join()
            self._keep()
        return follower.hexdigest

    def _keep(self) -> None:
        """Note what is here for the next download; when nothing came, leave nothing behind."""
        if self._ranges.here_bytes or self._file.n_bytes == 0:
            self._write_note()
        else:
            self._partial.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)

    def _watch(self, crew: Crew, follower: Follower) -> None:
        """Report and heed `stop` until all has arrived and is hashed. Raises what ended a connection for good."""
        while not follower.done.is_set():
            self._heed_stop()
            self._report_bytes()
            event = crew.next_event(_TICK_S if crew.working else _FINAL_TICK_S)
            if isinstance(event, Retrying):
                self._report_retry(event)
            elif isinstance(event, Ended) and event.error is not None:
                raise self._failure(event.error, event.failures)
            elif not crew.working and self._ranges.here_bytes < self._file.n_bytes:
                crew.start(1)  # the last two left at the same moment, each relying on the other
        if follower.error is not None:
            raise follower.error

    def _sync_now_and_then(self, crew: Crew) -> None:
        """Have what was written reach the disk, and note how far, so that a crash of the machine costs seconds."""
        try:
            with open_partial(self._partial) as out:
                while not crew.stopping.wait(_SYNC_S):
                    written = self._ranges.here
                    os.fsync(out.fileno())
                    self._write_note(synced=written)
        except BaseException as caught:  # noqa: BLE001  # raised by the thread that waits for the file
            crew.fail(caught)  # some file systems say only here that they are full

    def _write_note(self, synced: tuple[Interval, ...] | None = None) -> None:
        """Note what is written now, and what is synced if that is news; from any thread."""
        with self._note_lock:
            known = self._sidecar.synced if synced is None else synced
            self._sidecar = msgspec.structs.replace(self._sidecar, written=self._ranges.here, synced=known)
            write_sidecar(self._note, self._sidecar, sync=synced is not None)

    def _report_bytes(self) -> None:
        """Report what has arrived since the last time; when all has and the checksum takes longer, say that."""
        here, now = self._ranges.here_bytes, time.monotonic()
        if here != self._reported_bytes:
            all_was_here = here == self._file.n_bytes and self._reported_bytes < 0
            self._report("checking" if all_was_here else "downloading", here)
            self._reported_bytes, self._reported_at = here, now
        elif here == self._file.n_bytes and now - self._reported_at > _HASHING_SHOWS_S:
            self._report("checking", here)
            self._reported_at = now

    def _report_retry(self, event: Retrying) -> None:
        now = time.monotonic()
        if now - self._retry_said_at >= _RETRIES_SHOW_S:
            self._retry_said_at = now
            self._report("retrying", self._ranges.here_bytes, f"{event.cause}; trying again in {event.wait_s:.0f} s")

    def _report(self, phase: Phase, done_bytes: int, detail: str | None = None) -> None:
        self._reporter.report(phase, self._file.path, done_bytes, self._file.n_bytes, detail=detail)

    def _heed_stop(self) -> None:
        if self._stop():
            raise DownloadStopped(self._file, self._ranges.here_bytes)

    def _failure(self, error: BaseException, failures: int) -> BaseException:
        """Return what to raise for a connection's last error: with how far the file came, if it was the network."""
        if not isinstance(error, Unreachable) or isinstance(error, Offline | Blocked):
            return error
        done, total = format_file_size(self._ranges.here_bytes), format_file_size(self._file.n_bytes)
        tries = f"{failures} failures" if failures > 1 else "one failure"
        message = f"{self._file.path}: gave up at {done} of {total} after {tries}; {error.message}"
        hint = "run the same command again: it goes on from there"
        if isinstance(error, RateLimited):
            return RateLimited(error.endpoint, message, retry_after_s=error.retry_after_s, hint=hint)
        return Unreachable(error.endpoint, message, hint=hint)

    def _disk_full(self) -> NoDiskSpace:
        folder, needed = self._partial.parent, self._file.n_bytes - self._ranges.here_bytes
        return NoDiskSpace(
            str(folder),
            f"the disk of {folder} is full: {format_file_size(needed)} of {self._file.path} are still to come",
            needed_bytes=needed,
            free_bytes=shutil.disk_usage(folder).free,
            hint="free some space (ggufdeploy list shows models) and run the same command again: it goes on from there",
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
