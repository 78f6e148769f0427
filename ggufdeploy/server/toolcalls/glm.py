"""GLM 4.5 to 4.7: <tool_call>name, then <arg_key>k</arg_key> and <arg_value>v</arg_value> in turn.

Source: the chat templates.
"""

from __future__ import annotations

import re

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import text_call

_CALL = re.compile(r"\s*([^\s<{]+)\s*((?:<arg_key>.*</arg_value>)?)\s*\Z", re.DOTALL)
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "<arg_key>" in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""

    def read(text: str) -> list[Call]:
        match = _CALL.match(text)
        if match is None:
            raise ValueError("no call")
        pairs = [(key.strip(), value) for key, value in _PAIR.findall(match[2])]
        return [text_call(match[1], pairs, tools)]

    return BlockParser(Block("<tool_call>", ("</tool_call>",), read))
