"""Mistral: [TOOL_CALLS] and a JSON list (Nemo, 7B v0.3), or [TOOL_CALLS]name[ARGS]{...} per call (Small 3.2, Devstral).

Small 3.2 puts [CALL_ID]id between name and [ARGS]. Source: the models' chat templates; mistral-common's tokenizers.
"""

from __future__ import annotations

from ggufdeploy.server.toolcalls.blocks import Block, BlockParser
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Tools
from ggufdeploy.server.toolcalls.values import json_calls, named_call


def speaks(template: str) -> bool:
    """Whether the template asks for this format."""
    return "[TOOL_CALLS]" in template


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""
    return BlockParser(Block("[TOOL_CALLS]", ("[TOOL_CALLS]",), _read, reopens=True))


def _read(text: str) -> list[Call]:
    if text.lstrip().startswith(("[", "{")):
        return json_calls(text)
    head, found, arguments = text.partition("[ARGS]")
    if not found:  # without the marker the name ends where the object begins
        head, brace, rest = text.partition("{")
        arguments = brace + rest
    return [named_call(head.partition("[CALL_ID]")[0], arguments.strip() or "{}")]
