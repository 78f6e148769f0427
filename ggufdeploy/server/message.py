"""An assistant's message in the making: content, reasoning and tool calls, as a parser finds them in the text."""

from __future__ import annotations

import secrets
import string
from typing import Any

from ggufdeploy.server.toolcalls.pieces import Call, Content, Parser, Piece, Reasoning

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # Mistral's templates refuse a history whose ids have any other length


class Message:
    """What one choice has said so far. `feed` and `finish` add to it, `fresh` tells what is new since it was called."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._fresh: list[dict[str, Any]] = []

    @property
    def has_calls(self) -> bool:
        """Whether there is any call."""
        return bool(self._calls)

    def feed(self, text: str) -> None:
        """Take more of the model's text."""
        self._take(self._parser.feed(text))

    def finish(self) -> None:
        """Take note that no text follows."""
        self._take(self._parser.finish())

    def fresh(self) -> list[dict[str, Any]]:
        """Return the `delta` objects of chunks for what is new: a call's name first, then its arguments."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def document(self) -> dict[str, Any]:
        """Return the `message` of a whole answer; its content is null when there are only calls."""
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        return {
            "role": "assistant",
            "content": None if self._calls and not content else content,
            "refusal": None,
            **({"reasoning_content": reasoning} if reasoning else {}),
            **({"tool_calls": self._calls} if self._calls else {}),
        }

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Content):
                self._content.append(piece.text)
                self._fresh.append({"content": piece.text})
            elif isinstance(piece, Reasoning):
                self._reasoning.append(piece.text)
                self._fresh.append({"reasoning_content": piece.text})
            else:
                self._call(piece)

    def _call(self, call: Call) -> None:
        index = len(self._calls)
        id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
        whole = {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        begun = {"index": index, **whole, "function": {"name": call.name, "arguments": ""}}
        self._calls.append(whole)
        self._fresh.append({"tool_calls": [begun]})
        self._fresh.append({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]})
