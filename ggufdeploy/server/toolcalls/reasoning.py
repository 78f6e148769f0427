"""Thinking aloud before the answer, split from it by the tags the chat template mentions."""

from __future__ import annotations

from ggufdeploy.server.toolcalls.pieces import Parser, Piece, Reasoning, held_back

TAGS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, QwQ, GLM, Kimi, MiniMax, SmolLM3, ...
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3 Reasoning
    ("<|channel>thought\n", "<channel|>"),  # Gemma 4
)
"""Where reasoning begins and ends. Source: the models' chat templates."""


def tags_of(template: str) -> tuple[str, str] | None:
    """Return the tags a template mentions, or None."""
    return next((tags for tags in TAGS if tags[0].strip() in template and tags[1] in template), None)


class ReasoningParser:
    """Reasoning at the beginning of the answer; what follows goes to `rest`.

    inside: the prompt ended in the opening tag, so the answer begins with reasoning.
    """

    def __init__(self, tags: tuple[str, str], rest: Parser, *, inside: bool) -> None:
        self._opens, self._closes = tags
        self._rest = rest
        self._inside = inside
        self._begun = False
        self._held = ""
        self._spoken = False
        self._passed = False
        self._blank_dropped = True

    def feed(self, text: str) -> list[Piece]:
        """See Parser."""
        if self._passed:
            return self._pass(text)
        self._held += text
        if not self._begun and not self._begin():
            return []
        return self._think() if self._inside else self._release()

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._inside and not self._passed:
            return [*self._reason(self._held.rstrip()), *self._rest.finish()]
        return [*self._release(), *self._rest.finish()]

    def _begin(self) -> bool:
        """Decide whether the answer opens with the tag; return whether that is known."""
        start = self._held.lstrip()
        if self._opens.startswith(start) and start != self._opens:
            return False
        self._begun = True
        if start.startswith(self._opens):
            self._inside = True
            self._held = start[len(self._opens) :]
        return True

    def _think(self) -> list[Piece]:
        text, found, after = self._held.partition(self._closes)
        if found:
            self._inside, self._held, self._blank_dropped = False, after, False
            return [*self._reason(text.rstrip()), *self._release()]
        shown = text[: len(text) - held_back(text, (self._closes,))].rstrip()
        self._held = text[len(shown) :]
        return self._reason(shown)

    def _reason(self, text: str) -> list[Piece]:
        if not self._spoken:
            text = text.lstrip()
        self._spoken = self._spoken or bool(text)
        return [Reasoning(text)] if text else []

    def _release(self) -> list[Piece]:
        self._passed = True
        held, self._held = self._held, ""
        return self._pass(held)

    def _pass(self, text: str) -> list[Piece]:
        """Give text to `rest`, without the blanks between reasoning and answer."""
        if not self._blank_dropped:
            text = text.lstrip()
            self._blank_dropped = bool(text)
        return self._rest.feed(text) if text else []
