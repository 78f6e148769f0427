"""A timeout that is moved at every token and almost never fires."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watchdog:
    """Calls `act` when `delay_s` pass between `start` and `stop`, and again after every further `delay_s`.

    Starting and stopping only write a number: one timer per watchdog looks at it now and then. Setting a timer per
    token instead took a sixth of the server's time.
    """

    def __init__(self, delay_s: float, act: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s = delay_s
        self._act = act
        self._due: float | None = None
        self._timer = self._loop.call_later(delay_s, self._look)

    def start(self) -> None:
        """Count from now on."""
        self._due = self._loop.time() + self._delay_s

    def stop(self) -> None:
        """Do not count until the next start."""
        self._due = None

    def close(self) -> None:
        """Never act again."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self._due is not None and now >= self._due:
            self._due = now + self._delay_s
            self._act()
        self._timer = self._loop.call_at(self._due or now + self._delay_s, self._look)
