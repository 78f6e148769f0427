"""What a download tells while it runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["waiting", "checking", "downloading", "retrying", "done"]
_INTERVAL_S = 0.1
_RATE_WINDOW_S = 5.0


@dataclass(frozen=True)
class Progress:
    """One report. All bytes count what was on disk before; done_bytes and total_bytes are of all files together.

    phase: "waiting" for another process, "checking" bytes that are here already, "downloading", "retrying" after a
    failure, "done" with this file. detail: a sentence for waiting and retrying, else None. bytes_per_s: received over
    the last seconds, None while unknown.
    """

    phase: Phase
    file: str
    file_done_bytes: int
    file_total_bytes: int
    done_bytes: int
    total_bytes: int
    bytes_per_s: float | None = None
    detail: str | None = None

    @property
    def remaining_s(self) -> float | None:
        """Seconds to go at the present rate, None while unknown."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s else None


OnProgress = Callable[[Progress], None]


class Reporter:
    """Turns one thread's "so many bytes of this file" into reports: at once for a new phase, else ten per second."""

    def __init__(self, on_progress: OnProgress, total_bytes: int) -> None:
        self._on_progress, self._total_bytes = on_progress, total_bytes
        self._done: dict[str, int] = {}
        self._sent: tuple[str, Phase] | None = None
        self._sent_at = 0.0
        self._received: deque[tuple[float, int]] = deque()

    def report(self, phase: Phase, file: str, done_bytes: int, file_bytes: int, *, detail: str | None = None) -> None:
        """Report; done_bytes: of this file on disk now."""
        now = time.monotonic()
        if phase == "downloading":
            self._received.append((now, done_bytes - self._done.get(file, done_bytes)))
        self._done[file] = done_bytes
        news = self._sent != (file, phase) or detail is not None or done_bytes >= file_bytes
        if not news and now - self._sent_at < _INTERVAL_S:
            return
        self._sent, self._sent_at = (file, phase), now
        done, rate = sum(self._done.values()), self._rate(now)
        self._on_progress(Progress(phase, file, done_bytes, file_bytes, done, self._total_bytes, rate, detail))

    def _rate(self, now: float) -> float | None:
        while self._received and self._received[0][0] < now - _RATE_WINDOW_S:
            self._received.popleft()
        seconds = now - self._received[0][0] if self._received else 0.0
        return max(0, sum(n for _, n in self._received)) / seconds if seconds >= 0.5 else None
