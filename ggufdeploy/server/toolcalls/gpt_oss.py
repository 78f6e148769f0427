"""gpt-oss (harmony): messages in channels. analysis is reasoning, final is content, a recipient makes a call.

`<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f <|message|>{}` and then
<|call|>, which ends the generation. Commentary without a recipient is a preamble: content.
Source: OpenAI's page on the harmony response format; the model's chat template.
"""

from __future__ import annotations

import re

from ggufdeploy.server.toolcalls.pieces import Content, Piece, Reasoning, held_back
from ggufdeploy.server.toolcalls.values import named_call

_BODY = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


def speaks(template: str) -> bool:
    """Whether the template has this format; it is read with and without tools."""
    return "<|channel|>" in template and _BODY in template


class HarmonyParser:
    """A generation begins inside a header, as the prompt ends with `<|start|>assistant`.

    in_body: it continues a message of the final channel instead.
    """

    def __init__(self, *, in_body: bool = False) -> None:
        self._text = ""
        self._channel: str | None = "final" if in_body else None
        self._function: str | None = None
        self._searched = 0

    def feed(self, text: str) -> list[Piece]:
        """See Parser."""
        self._text += text
        pieces: list[Piece] = []
        while self._header() if self._channel is None else self._body(self._channel, pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser. A header without a message is shown: whatever it is, it is no header."""
        rest, self._text = self._text, ""
        return self._show(self._channel or "final", rest, whole=True)

    def _header(self) -> bool:
        header, found, rest = self._text.partition(_BODY)
        if not found:
            return False
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._channel = channel[1] if channel else "final"
        self._function = recipient[1] if recipient else None
        self._text = rest
        return True

    def _body(self, channel: str, pieces: list[Piece]) -> bool:
        found = [(at, mark) for mark in _ENDS if (at := self._text.find(mark, self._searched)) >= 0]
        if found:
            at, mark = min(found)
            pieces += self._show(channel, self._text[:at], whole=True)
            self._text = self._text[at if mark == "<|channel|>" else at + len(mark) :]
            self._channel = self._function = None
            self._searched = 0
            return True
        shown = len(self._text) - held_back(self._text, _ENDS)
        if self._function is not None:
            self._searched = shown  # a call leaves as a whole
        else:
            pieces += self._show(channel, self._text[:shown], whole=False)
            self._text = self._text[shown:]
        return False

    def _show(self, channel: str, text: str, *, whole: bool) -> list[Piece]:
        if whole and self._function is not None:
            try:
                return [named_call(self._function, text)]
            except ValueError:
                return [Content(text)] if text else []
        if not text:
            return []
        return [Reasoning(text) if channel == "analysis" else Content(text)]
