"""The engine requests behind one HTTP request, merged into one sequence of event batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ggufdeploy.engine.request import Accepted, Event, Finished, GenerateRequest
from ggufdeploy.engine.service import EngineService
from ggufdeploy.errors import EngineError

Indexed = tuple[int, Event]


class Fanout:
    """Events of all requests as (index of the request, event), in the order they came.

    One task per request reads the engine and never waits for the client. Leaving `open` ends those tasks, and with
    them the requests in the engine.
    """

    def __init__(self, engine: EngineService, requests: Sequence[GenerateRequest]) -> None:
        self._engine = engine
        self._requests = requests
        self._arrived: asyncio.Queue[Indexed | Exception | None] = asyncio.Queue()
        self._early: list[Indexed] = []
        self._error: Exception | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Start the requests and return once the engine has accepted all; cancel on leaving what is not finished.

        Raises what the first refused request raised.
        """
        tasks = [asyncio.create_task(self._read(index, request)) for index, request in enumerate(self._requests)]
        for task in tasks:
            task.add_done_callback(self._ended)
        try:
            await self._until_accepted()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def batch(self, quiet_s: float) -> list[Indexed]:
        """Return all events there are, waiting for one; empty after `quiet_s` without any.

        Raises the error of a request, or the one given to `abort`, once the events before it have been returned.
        """
        if not self._early and self._error is None:
            timer = asyncio.get_running_loop().call_later(quiet_s, self._arrived.put_nowait, None)
            try:
                items = [await self._arrived.get()]
            finally:
                timer.cancel()
            while not self._arrived.empty():
                items.append(self._arrived.get_nowait())
            self._take(items)
        if not self._early and self._error is not None:
            raise self._error
        events, self._early = self._early, []
        return events

    def abort(self, error: Exception) -> None:
        """Make `batch` raise `error` after what has already arrived."""
        self._arrived.put_nowait(error)

    async def _until_accepted(self) -> None:
        waiting = len(self._requests)
        early: list[Indexed] = []
        while waiting:
            for index, event in await self.batch(quiet_s=3600.0):
                if isinstance(event, Accepted):
                    waiting -= 1
                else:
                    early.append((index, event))
        self._early = early

    def _take(self, items: Sequence[Indexed | Exception | None]) -> None:
        """Keep the events up to the first error, and that error."""
        for item in items:
            if isinstance(item, Exception):
                self._error = item
                return
            if item is not None:
                self._early.append(item)

    async def _read(self, index: int, request: GenerateRequest) -> None:
        event: Event | None = None
        async for event in self._engine.generate(request):
            self._arrived.put_nowait((index, event))
        if not isinstance(event, Finished):
            raise EngineError("The engine ended a request without an answer.")

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._arrived.put_nowait(error)
