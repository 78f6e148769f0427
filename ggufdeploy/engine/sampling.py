"""From one row of logits to one token, in llama.cpp's order.

bias -> penalties -> top_k -> top_p -> min_p -> temperature -> draw. Each step means exactly what llama.cpp's sampler of
the same name means (src/llama-sampler.cpp); the drawn numbers come from Python's generator, so the same seed gives the
same text here but not the same text as in llama.cpp. Vectorised: the candidates are cut down with a threshold
before anything is sorted, because sorting a whole vocabulary costs milliseconds.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggufdeploy.engine.backend import Logits
from ggufdeploy.engine.request import SamplingParams
from ggufdeploy.errors import BadRequest, EngineError

# Logits further below the best one are rarely needed: a first guess that is checked, and widened when it was wrong.
_MARGIN = 12.0
# Below this the best token has all the probability, and float32 would overflow.
_GREEDY_BELOW = 1e-4


class Sampler:
    """Samples one request. banned: tokens that are never chosen. Not shared between threads.

    Raises BadRequest from the constructor for parameters outside their range.
    """

    def __init__(self, params: SamplingParams, *, n_vocab: int, banned: frozenset[int] = frozenset()) -> None:
        _check(params)
        self._params = params
        self._greedy = params.temperature < _GREEDY_BELOW
        self._random = random.Random(params.seed)
        bias = {token: value for token, value in params.logit_bias if value}
        for token in bias:
            if not 0 <= token < n_vocab:
                raise BadRequest(
                    f"logit_bias names token {token}, the model has {n_vocab:,} tokens", param="logit_bias"
                )
        bias.update(dict.fromkeys(banned, -math.inf))
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._penalises = params.penalty_last_tokens > 0 and (
            params.repeat_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self._adjusts = bool(bias) or self._penalises
        self.is_plain_argmax = self._greedy and not self._adjusts

    def sample(self, row: Logits, history: Sequence[int]) -> int:
        """Return the next token. row: shape (n_vocab,), left unchanged. history: prompt and generated tokens.

        Raises EngineError when the logits are not numbers.
        """
        if self._adjusts:
            row = self._adjusted(row, history)
        if self._greedy:
            return checked_argmax(row)
        ids, probabilities = self.candidates(row)
        cumulated = np.cumsum(probabilities, dtype=np.float64)
        drawn = int(np.searchsorted(cumulated, self._random.random() * cumulated[-1], side="right"))
        drawn = min(drawn, len(cumulated) - 1)
        return drawn if ids is None else int(ids[drawn])

    def candidates(self, row: Logits) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
        """Return the tokens that may be drawn and their weights, not normalised; None for the whole vocabulary."""
        params = self._params
        best = row.max()
        if not math.isfinite(best):
            raise _not_numbers()
        ids: NDArray[np.int64] | None = None
        if 0 < params.top_k < len(row):
            ids = _top_k(row, best, params.top_k)
        if params.top_p < 1.0:
            ids = _top_p(row, best, ids, params.top_p)
        if params.min_p > 0.0:
            floor = best + math.log(params.min_p)
            ids = np.flatnonzero(row >= floor) if ids is None else ids[row[ids] >= floor]
        kept = row if ids is None else row[ids]
        return ids, np.exp((kept - best) / np.float32(params.temperature))

    def _adjusted(self, row: Logits, history: Sequence[int]) -> Logits:
        row = row.copy()
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self._penalises:
            params = self._params
            counts = Counter(history[-params.penalty_last_tokens :])
            ids = np.fromiter(counts.keys(), np.int64, len(counts))
            times = np.fromiter(counts.values(), np.float32, len(counts))
            seen = row[ids]
            seen = np.where(seen <= 0, seen * params.repeat_penalty, seen / params.repeat_penalty)
            row[ids] = seen - times * params.frequency_penalty - params.presence_penalty
        return row


def checked_argmax(row: Logits) -> int:
    """Return the best token. Raises EngineError when it is not a number."""
    best = int(row.argmax())
    if not math.isfinite(row[best]):
        raise _not_numbers()
    return best


def _top_k(row: Logits, best: np.float32, k: int) -> NDArray[np.int64]:
    near = np.flatnonzero(row > best - _MARGIN)
    if len(near) < k:
        return np.argpartition(row, len(row) - k)[len(row) - k :]
    if len(near) == k:
        return near
    return near[np.argpartition(row[near], len(near) - k)[len(near) - k :]]


def _top_p(row: Logits, best: np.float32, ids: NDArray[np.int64] | None, p: float) -> NDArray[np.int64]:
    """Return the fewest most likely tokens that together hold at least `p` of the probability."""
    if ids is None:
        target = p * float(np.exp(row - best).sum(dtype=np.float64))
        ids = np.flatnonzero(row > best - _MARGIN)
        if float(np.exp(row[ids] - best).sum(dtype=np.float64)) < target:
            ids = np.arange(len(row))
        weights = np.exp(row[ids] - best)
    else:
        weights = np.exp(row[ids] - best)
        target = p * float(weights.sum(dtype=np.float64))
    order = np.argsort(-weights, kind="stable")
    cumulated = np.cumsum(weights[order], dtype=np.float64)
    n_kept = int(np.searchsorted(cumulated, target, side="left")) + 1
    return ids[order[:n_kept]]


def _check(params: SamplingParams) -> None:
    """Raise BadRequest unless every number is one the formulas above can take; the edge may be stricter."""
    ranges = (
        ("temperature", params.temperature, 0.0, 1e6),
        ("top_k", params.top_k, 0, 1 << 31),
        ("top_p", params.top_p, 0.0, 1.0),
        ("min_p", params.min_p, 0.0, 1.0),
        ("repeat_penalty", params.repeat_penalty, 1e-3, 1e3),
        ("presence_penalty", params.presence_penalty, -1e3, 1e3),
        ("frequency_penalty", params.frequency_penalty, -1e3, 1e3),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:  # also refuses NaN
            raise BadRequest(f"{name} is {value}, it must be between {low:g} and {high:g}", param=name)
    if not all(abs(value) <= 1e6 for _, value in params.logit_bias):
        raise BadRequest("logit_bias values must be finite numbers", param="logit_bias")


def _not_numbers() -> EngineError:
    return EngineError(
        "The model produced logits that are not finite numbers.",
        hint="the file may be damaged, or this quantization broken; try another quantization",
    )
