"""Templates that show the tools but none of the markers known here: bare JSON, or JSON in <tool_call> tags."""

from __future__ import annotations

from ggufdeploy.server.toolcalls.blocks import BlockParser
from ggufdeploy.server.toolcalls.hermes import BLOCK
from ggufdeploy.server.toolcalls.leading import LeadingJson
from ggufdeploy.server.toolcalls.pieces import Parser, Tools


def parser(tools: Tools) -> Parser:
    """Return a parser for one generation."""
    return LeadingJson(tools, BlockParser(BLOCK))
