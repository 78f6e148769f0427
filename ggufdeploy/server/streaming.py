"""Server-sent events in OpenAI's chunk format, as byte templates.

Building each chunk as a dict costs 7 us of JSON encoding per token, a template filled with the escaped text 0.3 us
(measured at 128k vocabulary on two cores).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ggufdeploy.engine.request import TokenLogprob
from ggufdeploy.server.logprobs import chat_logprobs, completion_logprobs

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
SSE_HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
# Legal inside a JSON string, but many SSE clients split lines with str.splitlines, which breaks at them.
_LINE_BREAKS = (
    ("\u0085".encode(), b"\\u0085"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


@dataclass(frozen=True)
class Dialect:
    """What differs between the two routes' chunks. opening: a choice's first chunk, None when there is none."""

    object: str
    opening: bytes | None
    text_before: bytes
    text_after: bytes
    closing: bytes
    logprobs: Callable[[Sequence[TokenLogprob]], dict[str, Any]]


CHAT = Dialect(
    object="chat.completion.chunk",
    opening=b'"delta":{"role":"assistant","content":""}',
    text_before=b'"delta":{"content":',
    text_after=b"}",
    closing=b'"delta":{}',
    logprobs=chat_logprobs,
)
COMPLETION = Dialect(
    object="text_completion",
    opening=None,
    text_before=b'"text":',
    text_after=b"",
    closing=b'"text":""',
    logprobs=completion_logprobs,
)


@dataclass(frozen=True)
class Head:
    """What all chunks and the whole answer of one request share. created: Unix time."""

    id: str
    created: int
    model: str
    fingerprint: str

    def fields(self, object_name: str) -> dict[str, Any]:
        """Return the leading fields of an answer or chunk of the type `object_name`."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def json_text(document: Any) -> bytes:
    """Return `document` as JSON that no line splitter cuts."""
    encoded = msgspec.json.encode(document)
    if not encoded.isascii():
        for char, escape in _LINE_BREAKS:
            encoded = encoded.replace(char, escape)
    return encoded


def event(document: Any) -> bytes:
    """Return one SSE event with `document` as its data."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


class Chunks:
    """Writes the chunks of one request. with_usage: every chunk carries `usage: null` before the one that has it."""

    def __init__(self, dialect: Dialect, head: Head, n_choices: int, *, with_usage: bool) -> None:
        self._dialect = dialect
        self._head = head
        start = b"data: " + msgspec.json.encode(head.fields(dialect.object))[:-1] + b',"choices":[{"index":'
        usage = b',"usage":null' if with_usage else b""
        self._before = [start + b"%d," % index for index in range(n_choices)]
        self._before_text = [before + dialect.text_before for before in self._before]
        self._after_logprobs = b',"finish_reason":null}]' + usage + b"}\n\n"
        self._after = b',"logprobs":null' + self._after_logprobs
        self._after_text = dialect.text_after + self._after
        self._end = b"}]" + usage + b"}\n\n"

    def opening(self, index: int) -> bytes:
        """Return the first chunk of a choice; empty where the format has none."""
        opening = self._dialect.opening
        return b"" if opening is None else self._before[index] + opening + self._after

    def text(self, index: int, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return a chunk with a piece of a choice's text; nothing for no text and no logprobs."""
        if logprobs:
            before = self._before_text[index] + json_text(text) + self._dialect.text_after
            return before + b',"logprobs":' + json_text(self._dialect.logprobs(logprobs)) + self._after_logprobs
        return self._before_text[index] + json_text(text) + self._after_text if text else b""

    def delta(self, index: int, delta: Mapping[str, Any], logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return a chat chunk with any `delta`: reasoning, a call, or content."""
        start = self._before[index] + b'"delta":' + json_text(delta)
        if logprobs:
            return start + b',"logprobs":' + json_text(self._dialect.logprobs(logprobs)) + self._after_logprobs
        return start + self._after

    def finish(self, index: int, reason: Literal["stop", "length", "tool_calls"]) -> bytes:
        """Return a choice's last chunk, which carries no text."""
        closing = self._dialect.closing + b',"logprobs":null,"finish_reason":"%s"' % reason.encode()
        return self._before[index] + closing + self._end

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """Return the chunk after the last choice's, whose `choices` is present and empty."""
        return event({**self._head.fields(self._dialect.object), "choices": [], "usage": usage})
