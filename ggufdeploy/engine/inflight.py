"""What was asked of a worker and is not answered yet: requests with their events, and questions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from ggufdeploy.engine.messages import Reply
from ggufdeploy.engine.request import Event, Started
from ggufdeploy.errors import BadRequest, EngineCrashed, EngineError, GgufdeployError

Events = asyncio.Queue[Event | GgufdeployError]
Answer = asyncio.Future[tuple[int, ...] | str]


class NotBegun(EngineCrashed):
    """The worker ended before it began to compute this request: it may be given to another worker."""


@dataclass(eq=False)
class _Stream:
    """One request. started: it has been part of a batch."""

    events: Events = field(default_factory=asyncio.Queue)
    started: bool = False


class InFlight:
    """The requests and questions of one worker; true while there are any. One event loop only."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._asked: dict[int, Answer] = {}
        self._numbers = itertools.count()
        self._drained = asyncio.Event()
        self._drained.set()

    def __bool__(self) -> bool:
        return bool(self._streams or self._asked)

    def begin(self, request_id: str) -> Events:
        """Return where the request's events will come. Raises ValueError when the id is in flight already."""
        if request_id in self._streams:
            raise ValueError(f"request id {request_id!r} is in flight already")
        self._drained.clear()
        stream = self._streams[request_id] = _Stream()
        return stream.events

    def end(self, request_id: str) -> None:
        """Forget a request; events that still come for it are dropped."""
        del self._streams[request_id]
        if not self._streams:
            self._drained.set()

    async def drained(self) -> None:
        """Return when no request is in flight."""
        await self._drained.wait()

    @contextlib.contextmanager
    def asking(self) -> Iterator[tuple[int, Answer]]:
        """Yield the number of a new question, and its answer to come."""
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            yield number, answer
        finally:
            del self._asked[number]

    def deliver(self, event: Event) -> None:
        """Hand an event to its request, unless that was cancelled meanwhile."""
        stream = self._streams.get(event.id)
        if stream is None:
            return
        if isinstance(event, Started):
            stream.started = True
        else:
            stream.events.put_nowait(event)

    def answer(self, reply: Reply) -> None:
        """Hand an answer to its question, unless nobody waits any more."""
        waiting = self._asked.get(reply.number)
        if waiting is None or waiting.done():
            return
        if reply.error is None:
            waiting.set_result(reply.answer)
        else:
            waiting.set_exception(BadRequest(reply.error, param=reply.param))

    def lose(self, error: EngineError) -> None:
        """Tell all of them that the worker is gone; those that were not begun, as NotBegun."""
        for stream in self._streams.values():
            lost = error
            if isinstance(error, EngineCrashed) and not stream.started:
                lost = NotBegun(error.message, exit_code=error.exit_code, log=error.log)
            stream.events.put_nowait(lost)
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(error)
