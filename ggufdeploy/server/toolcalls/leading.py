"""Bare JSON: the whole answer is a call, without a marker."""

from __future__ import annotations

import re

from ggufdeploy.server.toolcalls.pieces import Call, Content, Parser, Piece, Tools
from ggufdeploy.server.toolcalls.values import json_calls

_BEGINNINGS = (
    '{"name":', '{"function":', '{"type":"function"', '[{"name":', '[{"function":', '[{"type":"function"',
)  # fmt: skip


class LeadingJson:
    """Takes an answer that begins as a call for one if it names a tool of the request; gives any other to `rest`."""

    def __init__(self, tools: Tools, rest: Parser) -> None:
        self._tools = tools
        self._rest = rest
        self._held = ""
        self._deciding = True

    def feed(self, text: str) -> list[Piece]:
        """See Parser."""
        if not self._deciding:
            return self._rest.feed(text)
        self._held += text
        begun = re.sub(r"\s", "", self._held[:200])
        if any(beginning.startswith(begun) or begun.startswith(beginning) for beginning in _BEGINNINGS):
            return []
        return self._release()

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._deciding:
            calls = self._calls()
            if calls:
                return list[Piece](calls)
        return [*self._release(), *self._rest.finish()]

    def _release(self) -> list[Piece]:
        self._deciding = False
        held, self._held = self._held, ""
        return self._rest.feed(held)

    def _calls(self) -> list[Call]:
        try:
            calls = json_calls(self._held)
        except ValueError:
            return []
        return calls if all(call.name in self._tools for call in calls) else []


class Plain:
    """Content alone."""

    def feed(self, text: str) -> list[Piece]:
        """See Parser."""
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        """See Parser."""
        return []
