"""What a model's text is made of, and what every parser does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text the model thinks aloud."""

    text: str


@dataclass(frozen=True)
class Call:
    """One whole call. arguments: a JSON object as text, translated from the format's own notation."""

    name: str
    arguments: str


Piece = Content | Reasoning | Call


class Parser(Protocol):
    """Reads one generation. Whatever the text is cut into, the joined pieces are the same.

    No part of a marker, and no part of a call, ever leaves as content while it may still become one.
    """

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is certain now."""
        ...

    def finish(self) -> list[Piece]:
        """Return what was held back. Called once, after the last text."""
        ...


@dataclass(frozen=True)
class Tool:
    """A function the model may call. properties: a JSON schema per parameter; some formats write all values as text."""

    name: str
    properties: Mapping[str, Any] = field(default_factory=dict)


Tools = Mapping[str, Tool]


def held_back(text: str, markers: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of a marker."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(len(text), longest), 0, -1):
        end = text[-length:]
        if any(len(marker) > length and marker.startswith(end) for marker in markers):
            return length
    return 0
