"""The engine requests behind one HTTP request, merged into one sequence of event batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ggufdeploy.engine.request import Accepted, Event, Finished, GenerateRequest
from ggufdeploy.engine.service import EngineService
from ggufdeploy.errors import EngineError
from ggufdeploy.server.meters import Meters
from ggufdeploy.server.watchdog import Watchdog

Indexed = tuple[int, Event]


class Fanout:
    """Events of all requests as (index of the request, event), in the order they came.

    One task per request reads the engine and never waits for the client. Leaving `open` ends those tasks, and with
    them the requests in the engine. quiet_s: silence after which `batch` returns nothing. meters: what is told of it.
    prompt_ends: what Accepted said of each request's prompt, known once open.
    """

    def __init__(
        self, engine: EngineService, requests: Sequence[GenerateRequest], quiet_s: float, meters: Meters
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._quiet_s = quiet_s
        self._meters = meters
        self._events: list[Indexed] = []
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._silence: Watchdog | None = None
        self.prompt_ends = [""] * len(requests)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Start the requests and return once the engine has accepted all; cancel on leaving what is not finished.

        Raises what the first refused request raised.
        """
        tasks = [asyncio.create_task(self._read(index, request)) for index, request in enumerate(self._requests)]
        for task in tasks:
            task.add_done_callback(self._ended)
        self._silence = Watchdog(self._quiet_s, self._wake.set)
        try:
            await self._until_accepted()
            yield
        finally:
            self._silence.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def batch(self) -> list[Indexed]:
        """Return all events there are, waiting for one; empty after `quiet_s` without any. Only while open.

        Raises the error of a request, or the one given to `abort`, once the events before it have been returned.
        """
        assert self._silence is not None
        self._silence.start()
        if not self._events and self._error is None:
            self._wake.clear()
            await self._wake.wait()
        if self._error is not None and not self._events:
            raise self._error
        events, self._events = self._events, []
        return events

    def abort(self, error: Exception) -> None:
        """Make `batch` raise `error` after what has already arrived."""
        self._error = self._error or error
        self._wake.set()

    async def _until_accepted(self) -> None:
        waiting = len(self._requests)
        early: list[Indexed] = []
        while waiting:
            for index, event in await self.batch():
                if isinstance(event, Accepted):
                    waiting -= 1
                    self.prompt_ends[index] = event.prompt_end
                else:
                    early.append((index, event))
        self._events = early + self._events

    async def _read(self, index: int, request: GenerateRequest) -> None:
        event: Event | None = None
        with self._meters.time_request() as timer:
            async for event in self._engine.generate(request):
                timer.note(event)
                if self._error is None:
                    self._events.append((index, event))
                    self._wake.set()
            if not isinstance(event, Finished):
                raise EngineError("The engine ended a request without an answer.")

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.abort(error)
