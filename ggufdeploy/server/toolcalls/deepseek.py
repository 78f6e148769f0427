"""DeepSeek V3, R1 and V3.1: a section of calls between markers with full-width bars.

V3 and R1: function<sep>name, then a fenced JSON block; V3.1: name<sep>JSON. Source: the models' chat templates.
"""

from __future__ import annotations

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import named_call, split_calls

_SECTION, _SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return _SECTION in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""
    return BlockParser(Block(_SECTION, (_SECTION_END,), _read))


def _read(text: str) -> list[Call]:
    return [_call(each) for each in split_calls(text, _CALL, _CALL_END)]


def _call(text: str) -> Call:
    before, _, after = text.partition(_SEPARATOR)
    if before.strip() != "function":
        return named_call(before, after)
    name, _, fenced = after.strip().partition("\n")
    arguments = fenced.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    return named_call(name, arguments)
