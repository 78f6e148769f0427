"""MiniMax M2: <invoke name="f"> with <parameter name="k">v</parameter> in <minimax:tool_call>.

Source: the chat template.
"""

from __future__ import annotations

import re

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import text_call

_INVOKE = re.compile(r'<invoke name="([^"]+)">(.*?)</invoke>', re.DOTALL)
_PARAMETER = re.compile(r'<parameter name="([^"]+)">\n?(.*?)\n?</parameter>', re.DOTALL)


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "<minimax:tool_call>" in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""

    def read(text: str) -> list[Call]:
        calls = [text_call(name, _PARAMETER.findall(body), tools) for name, body in _INVOKE.findall(text)]
        if not calls:
            raise ValueError("no call")
        return calls

    return BlockParser(Block("<minimax:tool_call>", ("</minimax:tool_call>",), read))
