from __future__ import annotations

import asyncio

import pytest

from ggufdeploy.errors import Overloaded
from ggufdeploy.server.state import Inflight
from tests.server.conftest import soon


class FakeRun:
    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def abort(self, error: Exception) -> None:
        self.errors.append(error)


async def test_a_drain_waits_for_what_runs_and_aborts_nothing_that_ends_in_time():
    inflight, run = Inflight(), FakeRun()
    with inflight.track(run):
        draining = asyncio.create_task(inflight.drain(60))
        await asyncio.sleep(0)
        assert len(inflight) == 1
        assert not draining.done()
    await soon(draining)
    assert (len(inflight), run.errors) == (0, [])


async def test_what_outlives_the_grace_is_aborted():
    inflight, run = Inflight(), FakeRun()
    with inflight.track(run):
        await soon(inflight.drain(0))
    assert [type(error) for error in run.errors] == [Overloaded]


async def test_a_request_whose_body_arrived_during_the_drain_is_refused():
    inflight = Inflight()
    await soon(inflight.drain(0))
    with pytest.raises(Overloaded), inflight.track(FakeRun()):
        pytest.fail("it was let in")
