"""How likely each generated token was, and what else was: of the model's own distribution, before any sampling.

The same distribution as llama-server's with its default `post_sampling_probs: false` (tools/server/README.md).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import takewhile

import numpy as np

from ggufdeploy.engine.backend import Logits
from ggufdeploy.engine.request import Alternative, TokenLogprob

IMPOSSIBLE = -9999.0
"""Instead of minus infinity, which JSON does not have; OpenAI's API reference uses it for very unlikely tokens."""


class LogprobLog:
    """The logprobs of one generation, held back as long as the tokens' text is. Not shared between threads.

    n_top: alternatives per token. token_bytes: what a token stands for.
    """

    def __init__(self, n_top: int, token_bytes: Callable[[int], bytes]) -> None:
        self._n_top = n_top
        self._token_bytes = token_bytes
        self._held: deque[TokenLogprob] = deque()
        self._n_shown_chars = 0

    def note(self, row: Logits, token: int, start_chars: int) -> None:
        """Hold `token`, chosen from the model's `row`. start_chars: characters of text before it."""
        best = float(row.max())
        total = best + math.log(np.exp(row - best).sum(dtype=np.float64))
        top = tuple(
            Alternative(self._token_bytes(each), _logprob(row, each, total)) for each in _best(row, self._n_top)
        )
        self._held.append(
            TokenLogprob(self._token_bytes(token), _logprob(row, token, total), top, start_chars=start_chars)
        )

    def forget_last(self) -> None:
        """Drop the token noted last: it ends the generation and is no part of the text."""
        self._held.pop()

    def take(self, n_chars: int) -> tuple[TokenLogprob, ...]:
        """Return the tokens whose text begins in what has now been shown. n_chars: characters shown since last time."""
        self._n_shown_chars += n_chars
        ready = tuple(takewhile(lambda each: each.start_chars < self._n_shown_chars, self._held))
        for _ in ready:
            self._held.popleft()
        return ready

    def take_all(self) -> tuple[TokenLogprob, ...]:
        """Return all that is held."""
        ready = tuple(self._held)
        self._held.clear()
        return ready


def _best(row: Logits, n: int) -> list[int]:
    """Return the n most likely tokens, the most likely first."""
    n = min(n, len(row))
    if not n:
        return []
    ids = np.argpartition(row, len(row) - n)[len(row) - n :]
    best: list[int] = ids[np.argsort(-row[ids], kind="stable")].tolist()
    return best


def _logprob(row: Logits, token: int, total: float) -> float:
    return max(float(row[token]) - total, IMPOSSIBLE)
