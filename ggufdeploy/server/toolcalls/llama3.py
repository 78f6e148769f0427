"""Llama 3.1 to 3.3: bare JSON with "parameters", or <|python_tag|> before JSON or before `tool.call(key="value")`.

Source: Meta's prompt format pages for Llama 3.1 and 3.2; the models' chat templates.
"""

from __future__ import annotations

import ast

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.leading import LeadingJson
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import json_calls, named_call


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "<|start_header_id|>" in template and '"parameters": ' in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""

    return LeadingJson(tools, BlockParser(Block("<|python_tag|>", ("<|eom_id|>", "<|eot_id|>"), _read)))


def _read(text: str) -> list[Call]:
    return json_calls(text) if text.lstrip().startswith(("{", "[")) else [_dotted(text)]


def _dotted(text: str) -> Call:
    """Read `brave_search.call(query="...")`. Raises ValueError."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("no call") from error
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "call":
        raise ValueError("no call")
    if node.args or not isinstance(node.func.value, ast.Name):
        raise ValueError("no call with named arguments")
    return named_call(
        node.func.value.id, {each.arg: ast.literal_eval(each.value) for each in node.keywords if each.arg}
    )
