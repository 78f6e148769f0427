"""Granite 3: <|tool_call|> and a JSON list to the end of the answer. Source: the chat template of Granite 3.3."""

from __future__ import annotations

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Parser, Tools
from ggufdeploy.server.toolcalls.values import json_calls


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "<|tool_call|>" in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation. Some answers spell the marker without its bars."""
    return BlockParser(Block("<|tool_call|>", (), json_calls), Block("<tool_call>", ("</tool_call>",), json_calls))
