"""Token bytes to text that may be shown: whole characters only, and never any part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one generation. `push` returns what may leave now; `stopped` tells that a stop string came up.

    n_chars: whole characters so far, those held back included. spelled: control tokens are part of the text, by their
    names; kept for whoever pushes.
    Bytes that are no UTF-8 become U+FFFD; a character cut off by the end of the generation is dropped.
    """

    def __init__(self, stop: Sequence[str] = (), *, spelled: bool = False) -> None:
        self.spelled = spelled
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        self.n_chars = 0

    def push(self, data: bytes) -> str:
        """Take the bytes of one token; return the text that is safe to show, often "".

        When a stop string is complete, the text before it is returned, `stopped` is set, and nothing follows.
        """
        if self.stopped:
            return ""
        fresh = self._decoder.decode(data)
        self.n_chars += len(fresh)
        text = self._held + fresh
        if not self._stop or not text:
            return text
        found = [index for stop in self._stop if (index := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Return what was held back for a stop string that never came. Called once, at the end."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
