"""Gemma 4: <|tool_call>call:name{key:value,...}<tool_call|>, strings between <|"|> marks, keys bare.

Source: the model's chat template, which writes calls of the history in this notation.
"""

from __future__ import annotations

import re
from typing import Any

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import load, named_call

_QUOTE = '<|"|>'
_HEAD = re.compile(r"\s*call:([^{\s]+)\s*(?=\{)")
_KEY = re.compile(r"\s*([^:,{}\[\]]+?)\s*:")
_SCALAR = re.compile(r"[^,{}\[\]]+")
_MAX_DEPTH = 64


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "<|tool_call>call:" in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""
    return BlockParser(Block("<|tool_call>", ("<tool_call|>",), _read))


def _read(text: str) -> list[Call]:
    head = _HEAD.match(text)
    if head is None:
        raise ValueError("no call")
    notation = _Notation(text, head.end())
    arguments = notation.value()
    notation.end()
    return [named_call(head[1], arguments)]


class _Notation:
    """A reader of Gemma's notation. All methods raise ValueError."""

    def __init__(self, text: str, at: int) -> None:
        self._text = text
        self._at = at
        self._depth = 0

    def end(self) -> None:
        if self._text[self._at :].strip():
            raise ValueError("text after the call")

    def value(self) -> Any:
        self._blank()
        if self._take(_QUOTE):
            return self._until(_QUOTE)
        if self._take("{"):
            return dict(self._items("}", self._pair))
        if self._take("["):
            return self._items("]", self.value)
        return load(self._match(_SCALAR)[0])

    def _items(self, close: str, item: Any) -> list[Any]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        items: list[Any] = []
        self._blank()
        while not self._take(close):
            if items and not self._take(","):
                raise ValueError("no comma")
            items.append(item())
            self._blank()
        self._depth -= 1
        return items

    def _pair(self) -> tuple[str, Any]:
        self._blank()
        if self._take(_QUOTE):
            key = self._until(_QUOTE)
            if not self._take(":"):
                raise ValueError("no colon")
        else:
            key = self._match(_KEY)[1]
        return key, self.value()

    def _until(self, mark: str) -> str:
        end = self._text.find(mark, self._at)
        if end < 0:
            raise ValueError("an open string")
        text, self._at = self._text[self._at : end], end + len(mark)
        return text

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError("not in this notation")
        self._at = match.end()
        return match

    def _take(self, mark: str) -> bool:
        found = self._text.startswith(mark, self._at)
        self._at += len(mark) * found
        return found

    def _blank(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
