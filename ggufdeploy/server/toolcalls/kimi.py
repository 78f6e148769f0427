"""Kimi K2: a section of calls, each functions.name:index and JSON between its markers. Source: the chat template."""

from __future__ import annotations

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import named_call, split_calls

_SECTION, _SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return _SECTION in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""
    return BlockParser(Block(_SECTION, (_SECTION_END,), _read))


def _read(text: str) -> list[Call]:
    return [_call(each) for each in split_calls(text, _CALL, _CALL_END)]


def _call(text: str) -> Call:
    name, _, arguments = text.partition(_ARGUMENTS)
    return named_call(name.strip().removeprefix("functions.").rpartition(":")[0], arguments)
