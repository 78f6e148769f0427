from __future__ import annotations

import pytest

from ggufdeploy.server import watchdog


class Clock:
    """Stands in for the event loop: time moves when told, and at most one timer waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: float | None = None
        self.n_timers = 0

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s, callback):
        return self.call_at(self.now + delay_s, callback)

    def call_at(self, due, callback):
        self.due, self.callback, self.n_timers = due, callback, self.n_timers + 1
        return self

    def cancel(self) -> None:
        self.due = None

    def run_until(self, now: float) -> None:
        while self.due is not None and self.due <= now:
            self.now = self.due
            self.callback()
        self.now = now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watchdog.asyncio, "get_running_loop", lambda: clock)
    return clock


def test_it_acts_once_per_delay_of_silence(clock):
    acts = []
    dog = watchdog.Watchdog(10, lambda: acts.append(clock.now))
    dog.start()
    clock.run_until(135)
    assert acts == [110, 120, 130]
    dog.close()
    clock.run_until(1000)
    assert acts == [110, 120, 130]


def test_starting_again_moves_the_deadline_without_a_new_timer(clock):
    acts = []
    dog = watchdog.Watchdog(10, lambda: acts.append(clock.now))
    for now in range(101, 150):
        clock.run_until(now)
        dog.start()
    assert acts == []
    assert clock.n_timers <= 6
    clock.run_until(160)
    assert acts == [159], "ten seconds after the last start, at 149"


def test_it_does_not_act_while_stopped(clock):
    acts = []
    dog = watchdog.Watchdog(10, lambda: acts.append(clock.now))
    clock.run_until(150)
    dog.start()
    dog.stop()
    clock.run_until(200)
    assert acts == []
