"""The candidates that each of llama.cpp's samplers leaves (src/llama-sampler.cpp), as arrays of token ids.

`row` holds the logits, `best` its largest one; `ids` are the candidates so far, None for the whole vocabulary.
Vectorised: candidates are cut down with a threshold before anything is sorted or weighed, because sorting a whole
vocabulary costs milliseconds, and exact all the same.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggufdeploy.engine.backend import Logits

Ids = NDArray[np.int64]

# Tokens whose logit is further below the best one are rarely chosen or needed; every use checks that.
_NEAR = 12.0
# Tokens this far below the best one have no weight in float32.
_NO_WEIGHT = 87.0
# How many tokens are sorted first where a few will mostly do.
_FIRST_SORTED = 512


def top_n_sigma(row: Logits, n: float) -> None:
    """Make tokens impossible, in place, that are more than `n` standard deviations of all logits below the best."""
    possible = row if row.min() > -np.inf else row[row > -np.inf]
    if not len(possible):
        return  # nothing can be drawn; the caller finds out
    apart = possible - possible.mean(dtype=np.float64).astype(np.float32)
    deviation = math.sqrt(float(np.dot(apart, apart)) / len(possible))
    row[row < float(possible.max()) - n * deviation] = -np.inf


def top_k(row: Logits, best: float, k: int) -> Ids:
    """Return the k most likely tokens; k is less than there are."""
    near = np.flatnonzero(row > best - _NEAR)
    if len(near) < k:
        return np.argpartition(row, len(row) - k)[len(row) - k :]
    if len(near) == k:
        return near
    return near[np.argpartition(row[near], len(near) - k)[len(near) - k :]]


def typical(row: Logits, best: float, ids: Ids | None, p: float) -> Ids:
    """Return the fewest tokens that hold more than `p`, those first whose surprise is closest to the expected one."""
    ids = np.flatnonzero(row >= best - _NO_WEIGHT) if ids is None else ids[row[ids] >= best - _NO_WEIGHT]
    below = row[ids] - best
    weights = np.exp(below)
    total = float(weights.sum(dtype=np.float64))
    # Surprise is ln(total) - below, and what is expected of it is the entropy: the constant cancels out.
    unexpected = np.abs(below - np.dot(weights, below) / np.float32(total))
    n_near = _FIRST_SORTED
    while n_near < len(ids):
        near = np.argpartition(unexpected, n_near)[:n_near]
        if weights[near].sum(dtype=np.float64) > p * total:
            ids, weights, unexpected = ids[near], weights[near], unexpected[near]
            break
        n_near *= 8
    order = np.argsort(unexpected, kind="stable")
    n = int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), p * total, side="right")) + 1
    return ids[order[:n]]


def top_p(row: Logits, best: float, ids: Ids | None, p: float) -> Ids:
    """Return the fewest most likely tokens that together hold at least `p` of the probability."""
    if ids is not None:
        order, cumulated = _ranked(row, best, ids)
        return order[: _n_holding(cumulated, p * cumulated[-1])]
    wanted = p * float(np.exp(row - best).sum())
    order, cumulated = _ranked(row, best, np.flatnonzero(row > best - _NEAR))
    if cumulated[-1] < wanted:
        order, cumulated = _ranked(row, best, np.arange(len(row)))
    return order[: _n_holding(cumulated, wanted)]


def xtc(row: Logits, best: float, ids: Ids | None, threshold: float) -> Ids | None:
    """Return the candidates without those of at least `threshold` probability, but for the least likely of them."""
    logits = row if ids is None else row[ids]
    weights = np.exp(logits - best)
    top = np.flatnonzero(weights >= threshold * weights.sum())
    if threshold > 0.5 or len(top) < 2:
        return ids
    kept = np.ones(len(logits), np.bool_)
    kept[top] = False
    kept[top[logits[top].argmin()]] = True
    return np.flatnonzero(kept) if ids is None else ids[kept]


def normalised_entropy(logits: Logits, best: float) -> float:
    """Return the entropy of the candidates' probabilities over the largest there could be, 0..1."""
    if len(logits) < 2:
        return 0.0
    weights = np.exp(logits - best, dtype=np.float64)
    shares = weights[weights > 0] / weights.sum()
    return float(-(shares * np.log(shares)).sum()) / math.log(len(logits))


def _ranked(row: Logits, best: float, ids: Ids) -> tuple[Ids, NDArray[np.float64]]:
    """Return `ids` from most to least likely, and their weights cumulated."""
    weights = np.exp(row[ids] - best)
    order = np.argsort(-weights, kind="stable")
    return ids[order], np.cumsum(weights[order], dtype=np.float64)


def _n_holding(cumulated: NDArray[np.float64], weight: float) -> int:
    return int(np.searchsorted(cumulated, weight, side="left")) + 1
