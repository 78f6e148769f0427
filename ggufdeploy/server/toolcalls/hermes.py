"""Hermes 2 and 3, Qwen 2.5, Qwen 3, QwQ, Granite 4: a JSON object in <tool_call> ... </tool_call> for each call.

Source: the models' chat templates; Hermes-Function-Calling's README.
"""

from __future__ import annotations

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Parser, Tools
from ggufdeploy.server.toolcalls.values import json_calls

BLOCK = Block("<tool_call>", ("</tool_call>",), json_calls)


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "<tool_call>" in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""
    return BlockParser(BLOCK)
