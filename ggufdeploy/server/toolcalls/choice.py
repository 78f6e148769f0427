"""Which parser reads a model's answers: the model's own chat template tells."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from ggufdeploy.server.toolcalls import (
    deepseek,
    gemma,
    generic,
    glm,
    gpt_oss,
    granite,
    hermes,
    kimi,
    llama3,
    minimax,
    mistral,
    qwen_coder,
)
from ggufdeploy.server.toolcalls.leading import Plain
from ggufdeploy.server.toolcalls.pieces import Call, Parser, Piece, Tools
from ggufdeploy.server.toolcalls.reasoning import ReasoningParser, tags_of

# The first that speaks a template's format reads it: markers that several share come last.
_FAMILIES: tuple[ModuleType, ...] = (
    gemma,
    deepseek,
    kimi,
    minimax,
    mistral,
    glm,
    qwen_coder,
    granite,
    hermes,
    llama3,
)

MakeParser = Callable[[str], Parser]
"""Given the end of the prompt, special tokens spelled out, return a parser for the answer."""


def takes_tools(template: str) -> bool:
    """Whether the template shows tools to the model."""
    return "tools" in template


def family(template: str) -> ModuleType:
    """Return the module that reads calls as this template has them written."""
    return next((each for each in _FAMILIES if each.speaks(template)), generic)


def choose(template: str, tools: Tools, *, parallel: bool = True) -> MakeParser | None:
    """Return what reads the answers of a model with this template; None when all text is content.

    tools: what may be called, empty for nothing. parallel: False keeps the first call alone.
    """
    if gpt_oss.speaks(template):
        return lambda prompt_end: _limit(_harmony(prompt_end), parallel)
    tags = tags_of(template)
    if not tools and tags is None:
        return None

    def make(prompt_end: str) -> Parser:
        answer: Parser = family(template).parser(tools) if tools else Plain()
        if tags is not None:
            answer = ReasoningParser(tags, answer, inside=prompt_end.rstrip().endswith(tags[0].strip()))
        return _limit(answer, parallel)

    return make


class FirstCall:
    """Drops every call after the first."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._called = False

    def feed(self, text: str) -> list[Piece]:
        """See Parser."""
        return self._first(self._parser.feed(text))

    def finish(self) -> list[Piece]:
        """See Parser."""
        return self._first(self._parser.finish())

    def _first(self, pieces: list[Piece]) -> list[Piece]:
        kept: list[Piece] = []
        for piece in pieces:
            if not isinstance(piece, Call) or not self._called:
                kept.append(piece)
            self._called = self._called or isinstance(piece, Call)
        return kept


def _limit(parser: Parser, parallel: bool) -> Parser:
    return parser if parallel else FirstCall(parser)


def _harmony(prompt_end: str) -> Parser:
    return gpt_oss.HarmonyParser(in_body=bool(prompt_end) and not prompt_end.rstrip().endswith("assistant"))
