"""Which parts of one file are here, which are being fetched, and which a free connection should fetch next; no I/O.

The file is handed out nearly from front to back, because its checksum can only be computed in order: what is far ahead
of the first gap waits in the page cache. At the end, a connection without work takes half of what another still has to
do, so that one slow connection does not hold up the file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ggufdeploy.units import MIB

Interval = tuple[int, int]
"""Bytes [start, end) of a file."""


@dataclass(frozen=True)
class Fanout:
    """How a file is spread over connections.

    connections: at most this many at once. range_bytes: what a killed process may lose per connection; a file gets one
    connection per range at most. request_bytes: the most that one request asks for, so that a file of 80 GB takes a few
    hundred requests (the Hub counts them) and the checksum is at most connections x request_bytes behind.
    """

    connections: int = 8
    range_bytes: int = 8 * MIB
    request_bytes: int = 256 * MIB

    def width(self, missing_bytes: int) -> int:
        """Return how many connections are worth opening for so many bytes."""
        return max(1, min(self.connections, missing_bytes // self.range_bytes))


@dataclass
class Run:
    """Bytes [written, end) that one connection is fetching; [written, at) of them have arrived but are not on disk yet.

    Only Ranges changes it.
    """

    written: int
    at: int
    end: int


class Ranges:
    """The parts of a file of n_bytes. Safe to use from several threads."""

    def __init__(self, n_bytes: int, here: Iterable[Interval] = (), fanout: Fanout | None = None) -> None:
        """here: what an earlier process left; anything outside the file is ignored."""
        self._n_bytes, self._fanout = n_bytes, fanout or Fanout()
        self._here: list[Interval] = []
        self._runs: list[Run] = []
        self._lock = threading.Lock()
        for start, end in here:
            if 0 <= start < end <= n_bytes:
                self._here = list(_joined([*self._here, (start, end)]))

    @property
    def here(self) -> tuple[Interval, ...]:
        """What is on disk: disjoint, in order."""
        with self._lock:
            return tuple(self._here)

    @property
    def here_bytes(self) -> int:
        """Bytes on disk."""
        return sum(end - start for start, end in self.here)

    @property
    def prefix_bytes(self) -> int:
        """Bytes on disk before the first gap."""
        with self._lock:
            return self._here[0][1] if self._here and self._here[0][0] == 0 else 0

    def take(self, *, to_the_end: bool = False) -> Run | None:
        """Return the next stretch to fetch, None when nothing is left that is worth sharing.

        to_the_end: ask for all of the gap at once, for a server that sends whole files only.
        """
        with self._lock:
            gap = next(self._gaps(), None)
            if gap is None:
                return self._half_of_the_longest()
            start, end = gap
            if not to_the_end:
                missing = self._n_bytes - sum(e - s for s, e in self._here)
                share = missing // (2 * self._fanout.connections)
                end = min(end, start + max(self._fanout.range_bytes, min(share, self._fanout.request_bytes)))
            run = Run(start, start, end)
            self._runs.append(run)
            return run

    def claim(self, run: Run, n_bytes: int) -> int:
        """Return how many of the next n_bytes still belong to the run, and move its `at` behind them."""
        with self._lock:
            count = min(n_bytes, run.end - run.at)
            run.at += count
            return count

    def arrived(self, run: Run) -> None:
        """Record that everything the run claimed is on disk."""
        with self._lock:
            self._here = list(_joined([*self._here, (run.written, run.at)]))
            run.written = run.at

    def release(self, run: Run) -> None:
        """Give back what the run has not fetched."""
        with self._lock:
            self._runs.remove(run)

    def keep_prefix(self) -> None:
        """Forget what is here behind the first gap, and end all runs where they are."""
        with self._lock:
            self._here = [interval for interval in self._here if interval[0] == 0]
            for run in self._runs:
                run.end = run.at

    def _gaps(self) -> Iterator[Interval]:
        """Yield what is neither here nor being fetched, in order."""
        at = 0
        for start, end in _joined([*self._here, *((run.written, run.end) for run in self._runs)]):
            if at < start:
                yield at, start
            at = end
        if at < self._n_bytes:
            yield at, self._n_bytes

    def _half_of_the_longest(self) -> Run | None:
        longest = max(self._runs, key=lambda run: run.end - run.at, default=None)
        if longest is None or longest.end - longest.at < 2 * self._fanout.range_bytes:
            return None
        middle = (longest.at + longest.end) // 2
        run = Run(middle, middle, longest.end)
        longest.end = middle
        self._runs.append(run)
        return run


def _joined(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Yield disjoint intervals in order that cover the same bytes; empty ones vanish."""
    start = end = 0
    for low, high in sorted(intervals):
        if low > end:
            if end > start:
                yield start, end
            start, end = low, high
        else:
            end = max(end, high)
    if end > start:
        yield start, end
