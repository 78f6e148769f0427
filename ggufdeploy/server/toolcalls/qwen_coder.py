"""Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5, Seed-OSS: <function=name>, then <parameter=key>value</parameter> each.

The values are text; the tool's schema tells their type. Qwen3-Coder sometimes leaves out the outer <tool_call>.
Source: the models' chat templates and the tool parser published with Qwen3-Coder.
"""

from __future__ import annotations

import re

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import text_call

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>\s*|\s*\Z)", re.DOTALL)
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>\s*|(?=<parameter=)|\Z)(?=<parameter=|\s*\Z)", re.DOTALL
)


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "<function=" in template and "<parameter=" in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""

    def read(text: str) -> list[Call]:
        return _calls(text, tools)

    def read_bare(text: str) -> list[Call]:
        return _calls(f"<function={text}</function>", tools)

    return BlockParser(
        Block("<tool_call>", ("</tool_call>",), read),
        Block("<seed:tool_call>", ("</seed:tool_call>",), read),
        Block("<function=", ("</function>",), read_bare),
        Block("</tool_call>", ("",), _nothing),  # the end of a block whose beginning was left out
    )


def _nothing(text: str) -> list[Call]:
    return []


def _calls(text: str, tools: Tools) -> list[Call]:
    calls: list[Call] = []
    for function in _each(_FUNCTION, text):
        pairs = [(match[1].strip(), match[2]) for match in _each(_PARAMETER, function[2])]
        calls.append(text_call(function[1], pairs, tools))
    if not calls:
        raise ValueError("no function")
    return calls


def _each(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Return matches that cover all of `text` but blanks. Raises ValueError."""
    matches: list[re.Match[str]] = []
    at = 0
    while text[at:].strip():
        match = pattern.match(text, at)
        if match is None:
            raise ValueError("not in this format")
        matches.append(match)
        at = match.end()
    return matches
