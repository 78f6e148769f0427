"""The connections of one download: threads that fetch stretches of a file until nothing is left to share."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from ggufdeploy.errors import RateLimited, Unreachable
from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.ranges import Ranges, Run
from ggufdeploy.hub.session import Body, HubClient
from ggufdeploy.units import MIB, format_file_size

# A connection that brought this much did its work; its end does not count as one more failure in a row.
_PROGRESS_BYTES = 1 * MIB
# What was written is noted after every range, and this often, so that a killed process loses little of a slow one.
_RECORD_S = 1.0
# A connection that brings less than this in so many seconds is left, as one that brings nothing is after its timeout.
_STALL_S = 30.0
_STALL_BYTES = 32 << 10
# How long the end of a download waits for its connections.
_STOP_S = 2.0


@dataclass(frozen=True)
class Retrying:
    """A connection failed and will try again. cause: a sentence; wait_s: how long it waits before."""

    cause: str
    wait_s: float


@dataclass(frozen=True)
class Ended:
    """A connection ended: nothing was left to do, or `error`, which came after that many failures in a row."""

    error: BaseException | None
    failures: int


@dataclass(frozen=True)
class Task:
    """What to fetch, and where it goes. on_record: called by the connections' threads when what
    they wrote should be noted."""

    client: HubClient
    repo: str
    commit: str
    file: GgufFile
    partial: Path
    ranges: Ranges
    range_bytes: int
    on_record: Callable[[], None]


class Crew:
    """The connections of one file. events: what they tell, each ending with exactly one Ended, and what `fail` adds."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.events: SimpleQueue[Retrying | Ended] = SimpleQueue()
        self.stopping = threading.Event()
        self.alone: Connection | None = None
        self.ranges_work = False
        self._threads: list[Connection] = []
        self._working: set[Connection] = set()
        self._lock = threading.Lock()

    def start(self, count: int) -> None:
        """Start this many connections."""
        fresh = [Connection(self) for _ in range(count)]
        with self._lock:
            self._threads += fresh
            self._working |= set(fresh)
        for connection in fresh:
            connection.start()

    def stop(self) -> None:
        """End all connections now; what they had not finished is missing again.

        Waits for their threads, but not for one that is still connecting: it ends by its timeout and writes nothing.
        """
        self.stopping.set()
        for connection in self._threads:
            connection.hang_up()
        until = time.monotonic() + _STOP_S
        for connection in self._threads:
            connection.join(timeout=max(0.0, until - time.monotonic()))

    @property
    def working(self) -> bool:
        """Whether any connection still is."""
        with self._lock:
            return bool(self._working)

    def next_event(self, timeout_s: float) -> Retrying | Ended | None:
        """Return what a connection told, None when none did in time."""
        try:
            return self.events.get(timeout=timeout_s)
        except Empty:
            return None

    def excuse(self, connection: Connection) -> bool:
        """Let a connection go unless the others cannot do without it: the last one, or the one that works alone."""
        with self._lock:
            if self._working == {connection} or self.alone is connection:
                return False
            self._working.discard(connection)
            return True

    def go_alone(self, connection: Connection) -> bool:
        """Make the first one that asks fetch the rest of the file, because the server sends whole files only.

        Returns whether that was so already, for this one.
        """
        with self._lock:
            if self.alone is None:
                self.alone = connection
                self.task.ranges.keep_prefix()
                return False
            return self.alone is connection

    def fail(self, error: BaseException) -> None:
        """End the download for a reason that no connection met; from any thread."""
        self.events.put(Ended(error, 1))

    def gone(self, connection: Connection, error: BaseException | None) -> None:
        """Record a connection's end."""
        with self._lock:
            self._working.discard(connection)
            if self.alone is connection:
                self.alone = None
        self.events.put(Ended(error, connection.failures))


class Connection(threading.Thread):
    """Fetches one run after another. Opens the partial itself, so that it can never write to another file."""

    def __init__(self, crew: Crew) -> None:
        super().__init__(name=f"fetch {crew.task.file.path}", daemon=True)
        self.failures = 0
        self._crew, self._task = crew, crew.task
        self._body: Body | None = None
        self._unrecorded_bytes, self._recorded_at = 0, time.monotonic()

    def run(self) -> None:
        """Work until nothing is left, and tell the crew how it ended."""
        error: BaseException | None = None
        try:
            with open_partial(self._task.partial) as out:
                self._work(out)
        except BaseException as caught:  # noqa: BLE001  # raised by the thread that waits for the file
            error = caught
        self._crew.gone(self, error)

    def hang_up(self) -> None:
        """Make a read that waits for data end; from any thread."""
        body = self._body
        if body is not None:
            body.hang_up()

    @property
    def _wanted(self) -> bool:
        return not self._crew.stopping.is_set() and self._crew.alone in (None, self)

    def _work(self, out: io.FileIO) -> None:
        ranges = self._task.ranges
        while self._wanted and (run := ranges.take(to_the_end=self._crew.alone is self)):
            began = run.at
            try:
                self._receive(run, out)
                self.failures = 0
            except Unreachable as error:
                self.failures = 1 if run.at - began >= _PROGRESS_BYTES else self.failures + 1
                if not self._wanted or not self._wait_to_retry(error):
                    return
            finally:
                ranges.release(run)

    def _wait_to_retry(self, error: Unreachable) -> bool:
        """Wait, and return whether to go on. Raises the error when it is time to give up and nobody else works."""
        wait_s = self._task.client.downloads.wait_s(self.failures, error)
        # Asked to send fewer requests, or without luck where others have it: fewer connections are enough.
        if (wait_s is None or isinstance(error, RateLimited)) and self._crew.excuse(self):
            return False
        if wait_s is None:
            raise error
        self._crew.events.put(Retrying(error.message, wait_s))
        self._crew.stopping.wait(wait_s)
        return True

    def _receive(self, run: Run, out: io.FileIO) -> None:
        """Ask for the run once and write what comes, until it ends or the rest of it is another connection's."""
        task = self._task
        pace = _Pace(task.client.endpoint)
        with task.client.open_range(task.repo, task.commit, task.file, run.at, run.end) as body:
            skip = self._to_skip(run, body)
            if skip is None:
                return
            self._body = body
            try:
                for chunk in body.chunks:
                    if not self._wanted:
                        return
                    pace.feed(len(chunk))
                    self._write(run, memoryview(chunk)[skip:], out)
                    skip = max(0, skip - len(chunk))
                    if run.at >= run.end:
                        return
            finally:
                self._body = None
                self._record()
        where = f"{run.at:,} of {task.file.n_bytes:,} bytes"
        raise Unreachable(task.client.endpoint, f"the connection ended after {where}")

    def _to_skip(self, run: Run, body: Body) -> int | None:
        """Return how many bytes come before the run; None: the whole file comes, and only one connection may ask."""
        crew = self._crew
        if body.offset == run.at:
            crew.ranges_work = crew.ranges_work or run.at > 0
            return 0
        if crew.ranges_work:
            raise Unreachable(self._task.client.endpoint, "the server sent the whole file where a part was asked for")
        return run.at - body.offset if crew.go_alone(self) else None

    def _write(self, run: Run, data: memoryview, out: io.FileIO) -> None:
        at = run.at
        data = data[: self._task.ranges.claim(run, len(data))]
        while data:
            n = os.pwrite(out.fileno(), data, at)
            at, data = at + n, data[n:]
            self._unrecorded_bytes += n
        self._task.ranges.arrived(run)
        late = time.monotonic() - self._recorded_at >= _RECORD_S
        if late or self._unrecorded_bytes >= self._task.range_bytes:
            self._record()

    def _record(self) -> None:
        if self._unrecorded_bytes:
            self._unrecorded_bytes, self._recorded_at = 0, time.monotonic()
            self._task.on_record()


class _Pace:
    """Watches one connection's rate."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint, self._since, self._bytes = endpoint, time.monotonic(), 0

    def feed(self, n_bytes: int) -> None:
        """Count bytes. Raises Unreachable when hardly any came for a while."""
        self._bytes += n_bytes
        elapsed = time.monotonic() - self._since
        if elapsed < _STALL_S:
            return
        if self._bytes < _STALL_BYTES:
            message = f"only {format_file_size(self._bytes)} came in {elapsed:.0f} s"
            raise Unreachable(self._endpoint, message)
        self._since, self._bytes = time.monotonic(), 0


def open_partial(path: Path) -> io.FileIO:
    """Open for reading and writing without a buffer, making the file; a link in that place is refused."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return io.FileIO(descriptor, "r+b", closefd=True)
