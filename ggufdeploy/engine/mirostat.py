"""Mirostat 1 and 2: the cut follows how surprising the text has been (arxiv.org/abs/2007.14966).

As llama.cpp's samplers `mirostat` and `mirostat_v2` (src/llama-sampler.cpp), natural logarithms instead of powers.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufdeploy.engine import cuts
from ggufdeploy.engine.backend import Logits
from ggufdeploy.engine.cuts import Ids

# Version 1 estimates the slope of the distribution from so many of the best tokens (common/sampling.cpp).
_N_FITTED = 100


class Mirostat:
    """The state of one generation. tau: the wanted surprise in bits. eta: how fast the cut follows it."""

    def __init__(self, version: Literal[1, 2], *, tau: float, eta: float) -> None:
        self._version = version
        self._tau = tau
        self._eta = eta
        self._limit = 2 * tau

    def candidates(self, logits: Logits) -> tuple[Ids, NDArray[np.float64]]:
        """Return the tokens that may be drawn and their probabilities. logits: already divided by the temperature."""
        best = float(logits.max())
        ids = self._steepness_cut(logits, best) if self._version == 1 else self._surprise_cut(logits, best)
        weights = np.exp(logits[ids] - best, dtype=np.float64)
        ids, weights = ids[weights > 0], weights[weights > 0]  # `observe` takes the logarithm
        return ids, weights / weights.sum()

    def observe(self, probability: float) -> None:
        """Learn that a token of this probability, among the candidates, was drawn."""
        self._limit -= self._eta * (-math.log2(probability) - self._tau)

    def _surprise_cut(self, logits: Logits, best: float) -> Ids:
        """Keep what is at most as surprising as the limit, and always the best."""
        total = best + math.log(np.exp(logits - best).sum(dtype=np.float64))
        ids = np.flatnonzero(logits >= total - self._limit * math.log(2))
        return ids if len(ids) else np.array([logits.argmax()])

    def _steepness_cut(self, logits: Logits, best: float) -> Ids:
        """Keep the k best; k follows from the limit and from Zipf's exponent, fitted to the best tokens."""
        n_fitted = min(_N_FITTED, len(logits))
        ranked = np.sort(logits if n_fitted == len(logits) else logits[cuts.top_k(logits, best, n_fitted)])[::-1]
        ranked = ranked[ranked > -np.inf].astype(np.float64)
        steps = np.log1p(1 / np.arange(1, len(ranked)))
        exponent = float((steps * -np.diff(ranked)).sum() / (steps**2).sum()) if len(ranked) > 1 else 0.0
        k = _zipf_cut(exponent, self._limit, len(logits))
        return cuts.top_k(logits, best, k) if k < len(logits) else np.arange(len(logits))


def _zipf_cut(exponent: float, limit: float, n_vocab: int) -> int:
    """Return after how many ranks of a Zipf distribution the surprise exceeds `limit`, 1..n_vocab.

    A result beyond the vocabulary keeps all of it. llama.cpp does the same up to 2**31; beyond, its conversion to int
    is undefined and gives 1 on x86, which makes the text deterministic and the limit grow for ever.
    """
    excess = exponent - 1
    # expm1(-x)/x tends to -1; both signs of `excess` give a positive ratio.
    span = math.log(n_vocab) if abs(excess) < 1e-9 else -math.expm1(-excess * math.log(n_vocab)) / excess
    log_k = (limit * math.log(2) - math.log(span)) / max(exponent, 1e-9) if span > 0 else math.inf
    return max(int(math.exp(log_k)), 1) if log_k < math.log(n_vocab) else n_vocab
