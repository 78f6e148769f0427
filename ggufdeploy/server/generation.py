"""The response that generates: runs engine requests, watches the client, answers whole or as a stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from starlette.types import Receive, Scope, Send

from ggufdeploy.engine.request import Delta, Event, Finished, GenerateRequest, TokenLogprob
from ggufdeploy.errors import GgufdeployError
from ggufdeploy.server.errors import error_body, json_response, shape_of
from ggufdeploy.server.fanout import Fanout, Indexed
from ggufdeploy.server.message import Message
from ggufdeploy.server.state import ServerState
from ggufdeploy.server.streaming import DONE, PING, SSE_HEADERS, Chunks, Dialect, Head, event
from ggufdeploy.server.toolcalls.choice import MakeParser
from ggufdeploy.server.watchdog import Watchdog

log = logging.getLogger("ggufdeploy.server")


@dataclass
class Choice:
    """One generated text so far. logprobs: None when they were not asked for.

    message: set when a parser reads the text; it holds the text then.
    """

    parts: list[str]
    logprobs: list[TokenLogprob] | None = None
    finished: Finished | None = None
    message: Message | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def reason(self) -> Literal["stop", "length", "tool_calls"]:
        """Why it ended; to be read when it has."""
        assert self.finished is not None
        if self.finished.reason == "stop" and self.message is not None and self.message.has_calls:
            return "tool_calls"
        return self.finished.reason

    def note(self, happened: Event) -> None:
        """Add what has happened."""
        if isinstance(happened, Delta):
            if self.logprobs is not None:
                self.logprobs.extend(happened.logprobs)
            if self.message is None:
                self.parts.append(happened.text)
            else:
                self.message.feed(happened.text)
        elif isinstance(happened, Finished):
            self.finished = happened
            if self.message is not None:
                self.message.finish()


@dataclass(frozen=True)
class Answer:
    """What a route makes of a request body, ready to be run.

    requests: n per prompt, those of one prompt side by side. prefixes: the text each choice starts with (echo).
    object: the type of a whole answer; choices: its `choices` array. make_parser: what reads the texts, None for plain
    text.
    """

    head: Head
    dialect: Dialect
    object: str
    requests: tuple[GenerateRequest, ...]
    n: int
    prefixes: tuple[str, ...]
    choices: Callable[[Sequence[Choice]], list[dict[str, Any]]]
    stream: bool
    include_usage: bool
    make_parser: MakeParser | None = None


class Generation:
    """An ASGI response. Ends the engine's work at once when the client goes away, queued, streaming or not."""

    def __init__(self, state: ServerState, answer: Answer) -> None:
        self._state = state
        self._answer = answer
        self._fanout = Fanout(state.engine, answer.requests, state.config.ping_s, state.meters)
        self._choices = [
            Choice([prefix] if prefix else [], None if request.logprobs is None else [])
            for prefix, request in zip(answer.prefixes, answer.requests, strict=True)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Errors before the first byte are raised, for the handlers that turn them into a status."""
        work = asyncio.create_task(self._work(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._state.inflight.track(self._fanout):
            async with self._fanout.open():
                self._open_messages()
                if self._answer.stream:
                    await self._stream(send)
                    return
                while not self._complete():
                    self._note(await self._fanout.batch())
            await json_response(self._document())(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        answer = self._answer
        chunks = Chunks(answer.dialect, answer.head, len(self._choices), with_usage=answer.include_usage)
        headers = [(name.encode(), value.encode()) for name, value in SSE_HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with _patient(send, self._state.config.send_timeout_s) as write:
            opening = (chunks.opening(index) + chunks.text(index, text) for index, text in enumerate(answer.prefixes))
            await write(b"".join(opening))
            written = time.monotonic()
            try:
                while not self._complete():
                    events = await self._fanout.batch()
                    self._note(events)
                    data = b"".join(_chunk(chunks, index, self._choices[index], each) for index, each in events)
                    # A call leaves as a whole: while it is written there are events and nothing to send.
                    if data or not events or time.monotonic() - written > self._state.config.ping_s:
                        await write(data or PING)
                        written = time.monotonic()
                ending = (chunks.usage(self._usage()) if answer.include_usage else b"") + DONE
            except GgufdeployError as error:
                ending = self._failure(error)
            except Exception as error:
                log.exception("a stream ended in an error that is a bug")
                ending = self._failure(error)
            await write(ending)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _failure(self, error: Exception) -> bytes:
        """Return the event for an error after the headers; the openai SDK raises APIError on it."""
        shape = shape_of(error, accepting=self._state.accepting)
        return event(error_body(error, shape))

    def _open_messages(self) -> None:
        if self._answer.make_parser is not None:
            for choice, prompt_end in zip(self._choices, self._fanout.prompt_ends, strict=True):
                choice.message = Message(self._answer.make_parser(prompt_end))

    def _note(self, events: Sequence[Indexed]) -> None:
        for index, happened in events:
            self._choices[index].note(happened)

    def _complete(self) -> bool:
        return all(choice.finished is not None for choice in self._choices)

    def _usage(self) -> dict[str, Any]:
        """Count each prompt once, however many choices it has."""
        finished = [choice.finished for choice in self._choices if choice.finished is not None]
        prompts = finished[:: self._answer.n]
        prompt_tokens = sum(each.prompt_tokens for each in prompts)
        completion_tokens = sum(each.completion_tokens for each in finished)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
        }

    def _document(self) -> dict[str, Any]:
        answer = self._answer
        return {
            **answer.head.fields(answer.object),
            "choices": answer.choices(self._choices),
            "usage": self._usage(),
        }


def _chunk(chunks: Chunks, index: int, choice: Choice, happened: Event) -> bytes:
    """Return the chunks for an event that the choice has taken note of."""
    data = b""
    if isinstance(happened, Delta) and choice.message is None:
        data = chunks.text(index, happened.text, happened.logprobs)
    elif choice.message is not None:
        data = _deltas(chunks, index, choice.message, happened)
    return data + chunks.finish(index, choice.reason) if isinstance(happened, Finished) else data


def _deltas(chunks: Chunks, index: int, message: Message, happened: Event) -> bytes:
    """Logprobs leave with the event that brought them, on an empty delta if its text is held back."""
    logprobs = happened.logprobs if isinstance(happened, Delta) else ()
    deltas = message.fresh() or ([{}] if logprobs else [])
    return b"".join(chunks.delta(index, delta, () if at else logprobs) for at, delta in enumerate(deltas))


@contextmanager
def _patient(send: Send, timeout_s: float) -> Iterator[Callable[[bytes], Awaitable[None]]]:
    """Give a function that sends a piece of the body. A client that takes nothing for so long ends this task."""
    task = asyncio.current_task()
    assert task is not None
    watchdog = Watchdog(timeout_s, lambda: _give_up(task))

    async def write(body: bytes) -> None:
        watchdog.start()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        watchdog.stop()

    try:
        yield write
    finally:
        watchdog.close()


def _give_up(task: asyncio.Task[Any]) -> None:
    log.warning("a client stopped reading; its request is cancelled")
    task.cancel()


async def _disconnected(receive: Receive) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
