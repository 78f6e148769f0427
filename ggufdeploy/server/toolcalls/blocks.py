"""Calls between markers: what most formats have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggufdeploy.server.toolcalls.pieces import Call, Content, Piece, held_back


@dataclass(frozen=True)
class Block:
    """Calls from the marker `opens` to one of `closes`, or to the end of the text.

    read: the text between -> its calls; ValueError when it is none. A closing marker after which `read` fails is taken
    for text inside an argument. reopens: the closing marker is the beginning of the next block.
    """

    opens: str
    closes: tuple[str, ...]
    read: Callable[[str], list[Call]]
    reopens: bool = False


class BlockParser:
    """Content and blocks. What only looked like a block comes out as content; blank text around calls is dropped."""

    def __init__(self, *blocks: Block) -> None:
        self._blocks = blocks
        self._openers = tuple(block.opens for block in blocks)
        self._text = ""
        self._block: Block | None = None
        self._searched = 0
        self._blank = ""
        self._after_call = False

    def feed(self, text: str) -> list[Piece]:
        """See Parser."""
        self._text += text
        pieces: list[Piece] = []
        while self._outside(pieces) if self._block is None else self._inside(self._block, pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = []
        block, rest = self._block, self._text
        calls = None if block is None else _read(block, rest)
        if block is None or calls is None:
            self._say(rest if block is None else block.opens + rest, pieces)
        else:
            self._call(calls, pieces)
        if self._blank and not self._after_call:
            pieces.append(Content(self._blank))
        return pieces

    def _outside(self, pieces: list[Piece]) -> bool:
        """Look for the next block; return whether one has begun."""
        found = [(at, block) for block in self._blocks if (at := self._text.find(block.opens)) >= 0]
        if not found:
            shown = len(self._text) - held_back(self._text, self._openers)
            self._say(self._text[:shown], pieces)
            self._text = self._text[shown:]
            return False
        at, self._block = min(found, key=lambda each: each[0])
        self._say(self._text[:at], pieces)
        self._text = self._text[at + len(self._block.opens) :]
        self._searched = 0
        return True

    def _inside(self, block: Block, pieces: list[Piece]) -> bool:
        """Look for the end of the block; return whether it was found."""
        while True:
            found = [(at, mark) for mark in block.closes if (at := self._text.find(mark, self._searched)) >= 0]
            if not found:
                longest = max((len(mark) for mark in block.closes), default=1)
                self._searched = max(self._searched, len(self._text) - longest + 1)
                return False
            at, mark = min(found)
            calls = _read(block, self._text[:at])
            self._searched = at + len(mark)
            if calls is not None:
                self._call(calls, pieces)
                self._text = self._text[at if block.reopens else self._searched :]
                self._block = None
                return True

    def _say(self, text: str, pieces: list[Piece]) -> None:
        text = self._blank + text
        if self._after_call:
            text = text.lstrip()
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if shown:
            pieces.append(Content(shown))
            self._after_call = False

    def _call(self, calls: list[Call], pieces: list[Piece]) -> None:
        pieces.extend(calls)
        self._blank = ""
        self._after_call = True


def _read(block: Block, text: str) -> list[Call] | None:
    try:
        return block.read(text)
    except ValueError:
        return None
