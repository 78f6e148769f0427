"""DRY: what would continue a repetition is made less likely, the more so the longer it is.

As llama.cpp's sampler `dry` (src/llama-sampler.cpp; github.com/oobabooga/text-generation-webui/pull/5677).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ggufdeploy.engine.backend import Logits, Vocabulary
from ggufdeploy.engine.request import SamplingParams

Breakers = Mapping[int, frozenset[tuple[int, ...]]]
"""The first token of each breaker -> the tokens that may follow it; nothing when the token alone holds the breaker."""

# Tokens looked at behind the first one of a breaker; llama.cpp's MAX_SEQ_LEN.
_MAX_TAIL_TOKENS = 20
# Clients choose the texts, so what is remembered is bounded.
_MAX_REMEMBERED = 64
# The logarithm of the largest float32: the penalty's exponent stops growing there.
_FLOAT_MAX_LOG = 88.7228391
# As good as impossible; but the only token that a ban or a grammar leaves must stay possible, and float32 must still
# tell such logits apart. llama.cpp goes up to infinity.
_MAX_PENALTY = 1e6


class Dry:
    """The penalty of one request. breakers: sequences that a repetition does not reach across."""

    def __init__(self, params: SamplingParams, breakers: Breakers) -> None:
        self._multiplier = params.dry_multiplier
        self._base = params.dry_base
        self._allowed = params.dry_allowed_length
        self._n_last = params.dry_last_tokens
        self._breakers = breakers
        self._max_length = math.inf
        if params.dry_base > 1.000001:
            self._max_length = self._allowed + int(_FLOAT_MAX_LOG / math.log(params.dry_base))

    def penalise(self, row: Logits, history: Sequence[int]) -> None:
        """Lower the logits of tokens that continue a repetition, in place. history: prompt and generated."""
        recent = history[-self._n_last :]
        if len(recent) <= self._allowed:
            return
        limit = self._reach(recent)
        for token, length in _repetitions(recent, self._allowed, min(limit, self._max_length)).items():
            if () not in self._breakers.get(token, ()):
                penalty = self._multiplier * self._base ** (length - self._allowed)
                row[token] -= min(penalty, _MAX_PENALTY)

    def _reach(self, recent: Sequence[int]) -> int:
        """Return how many of the last tokens come after the last breaker."""
        for n_after, token in enumerate(reversed(recent)):
            tails = self._breakers.get(token)
            if tails is None:
                continue
            following = tuple(recent[len(recent) - n_after :][:_MAX_TAIL_TOKENS])
            lengths = [len(tail) for tail in tails if following[: len(tail)] == tail]
            if lengths:
                return n_after - max(lengths)
        return len(recent)


def _repetitions(recent: Sequence[int], least: int, most: float) -> dict[int, int]:
    """Return the tokens that came after what `recent` ends with, and how many last tokens were equal there.

    Those of at least `least` equal tokens, counted up to `most`.
    """
    tokens = np.array(recent, np.int64)
    last = len(tokens) - 1
    ends = np.arange(last)
    found: dict[int, int] = {}
    length = 0
    while length <= most and len(ends):
        if length >= least:
            found.update(dict.fromkeys(tokens[ends + 1].tolist(), length))
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[last - length]]
        length += 1
    return found


class BreakerIndex:
    """Finds the tokens in which a breaker begins; reading the whole vocabulary, so what was found is remembered.

    Thread-safe. Control tokens hold no text and begin no breaker.
    """

    def __init__(self, vocabulary: Vocabulary, n_vocab: int) -> None:
        self._vocabulary = vocabulary
        self._n_vocab = n_vocab
        self._found: dict[str, Breakers] = {}
        self._lock = threading.Lock()

    def find(self, texts: Sequence[str]) -> Breakers:
        """Return the breakers that spell any of `texts`."""
        merged: dict[int, frozenset[tuple[int, ...]]] = {}
        for text in texts:
            for token, tails in self._of(text).items():
                merged[token] = merged.get(token, frozenset()) | tails
        return merged

    def _of(self, text: str) -> Breakers:
        with self._lock:
            found = self._found.get(text)
            if found is None:
                found = self._search(text)
                if len(self._found) >= _MAX_REMEMBERED:
                    del self._found[next(iter(self._found))]
                self._found[text] = found
            return found

    def _search(self, text: str) -> Breakers:
        wanted = text.encode("utf-8", errors="replace")
        found: dict[int, frozenset[tuple[int, ...]]] = {}
        for token in range(self._n_vocab):
            piece = self._vocabulary.token_bytes(token)
            if wanted[:1] not in piece:
                continue
            if wanted in piece:
                found[token] = frozenset([()])
            elif tails := [wanted[len(piece) - at :] for at in range(len(piece)) if wanted.startswith(piece[at:])]:
                found[token] = frozenset(filter(None, map(self._tail, tails)))
        return {token: tails for token, tails in found.items() if tails}

    def _tail(self, data: bytes) -> tuple[int, ...] | None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None  # a token that ends within a character: its other half cannot be given to the tokenizer
        return tuple(self._vocabulary.tokenize(text, add_special=False)[:_MAX_TAIL_TOKENS])
