"""From one row of logits to one token, in llama.cpp's order.

bias -> penalties -> top_k -> top_p -> min_p -> temperature -> draw. Each step means exactly what llama.cpp's sampler of
the same name means (src/llama-sampler.cpp); the drawn numbers come from Python's generator, so the same seed gives the
same text here but not the same text as in llama.cpp. Vectorised: candidates are cut down with a threshold before
anything is sorted or weighed, because sorting a whole vocabulary costs milliseconds, and exact all the same.
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

Ids = NDArray[np.int64]

# Tokens whose logit is further below the best one are rarely chosen or needed; every use checks that.
_NEAR = 12.0
# All tokens further away than ln(n_vocab) + this weigh less than e**-5 of the best one, together.
_FAR_SHARE = 5.0
# Below this the best token has all the probability, and float32 would overflow.
_GREEDY_BELOW = 1e-4


class Sampler:
    """Samples one request. banned: tokens that are never chosen. Not shared between threads.

    Raises BadRequest from the constructor for parameters outside their range.
    """

    def __init__(self, params: SamplingParams, *, n_vocab: int, banned: frozenset[int] = frozenset()) -> None:
        _check(params)
        self._params = params
        self._per_temperature = 1.0 / max(params.temperature, _GREEDY_BELOW)
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
        """Return the next token. row: shape (n_vocab,), changed by bias and penalties. history: prompt and generated.

        Raises EngineError when the logits are not numbers.
        """
        if self._adjusts:
            self.adjust(row, history)
        if self._greedy:
            return checked_argmax(row)
        best = _best(row)
        ids = self.candidates(row, best)
        if ids is None:
            return self._draw_from_all(row, best)
        cumulated = np.cumsum(np.exp((row[ids] - best) * self._per_temperature), dtype=np.float64)
        return int(ids[_draw(cumulated, self._random.random())])

    def adjust(self, row: Logits, history: Sequence[int]) -> None:
        """Apply bias and penalties to `row`, in place."""
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

    def candidates(self, row: Logits, best: float) -> Ids | None:
        """Return the tokens that top_k, top_p and min_p leave, or None when nothing is cut off. best: row.max()."""
        params = self._params
        ids: Ids | None = None
        if 0 < params.top_k < len(row):
            ids = _top_k(row, best, params.top_k)
        if params.top_p < 1.0:
            ids = _top_p(row, best, ids, params.top_p)
        if params.min_p > 0.0:
            # Of what is left, as in llama.cpp: top_p may have kept another one of two equally likely best tokens.
            floor = (best if ids is None else float(row[ids].max())) + math.log(params.min_p)
            ids = np.flatnonzero(row >= floor) if ids is None else ids[row[ids] >= floor]
        return ids

    def _draw_from_all(self, row: Logits, best: float) -> int:
        """Draw from the whole vocabulary by rejection: a far token is proposed with a weight it cannot exceed.

        Exact, and the far tokens' weights are hardly ever computed.
        """
        margin = math.log(len(row)) + _FAR_SHARE
        threshold = best - margin * self._params.temperature
        near = np.flatnonzero(row > threshold)
        cumulated = np.cumsum(np.exp((row[near] - best) * self._per_temperature), dtype=np.float64)
        cap, near_total = math.exp(-margin), float(cumulated[-1])
        total = near_total + cap * (len(row) - len(near))
        while True:
            drawn = self._random.random() * total
            if drawn < near_total:
                return int(near[_draw(cumulated, drawn / near_total)])
            token = self._random.randrange(len(row))
            while row[token] > threshold:
                token = self._random.randrange(len(row))
            if self._random.random() * cap < math.exp((float(row[token]) - best) * self._per_temperature):
                return token


def checked_argmax(row: Logits) -> int:
    """Return the best token. Raises EngineError when it is not a number."""
    best = int(row.argmax())
    if not math.isfinite(row[best]):
        raise _not_numbers()
    return best


def _best(row: Logits) -> float:
    best = float(row.max())
    if not math.isfinite(best):  # the largest of numbers and NaN is NaN
        raise _not_numbers()
    return best


def _draw(cumulated: NDArray[np.float64], fraction: float) -> int:
    """Return the index whose share of the cumulated weights covers `fraction`, 0..1."""
    index = int(np.searchsorted(cumulated, fraction * cumulated[-1], side="right"))
    return min(index, len(cumulated) - 1)


def _top_k(row: Logits, best: float, k: int) -> Ids:
    near = np.flatnonzero(row > best - _NEAR)
    if len(near) < k:
        return np.argpartition(row, len(row) - k)[len(row) - k :]
    if len(near) == k:
        return near
    return near[np.argpartition(row[near], len(near) - k)[len(near) - k :]]


def _top_p(row: Logits, best: float, ids: Ids | None, p: float) -> Ids:
    """Return the fewest most likely tokens that together hold at least `p` of the probability."""
    if ids is not None:
        order, cumulated = _ranked(row, best, ids)
        return order[: _n_holding(cumulated, p * cumulated[-1])]
    wanted = p * float(np.exp(row - best).sum())
    order, cumulated = _ranked(row, best, np.flatnonzero(row > best - _NEAR))
    if cumulated[-1] < wanted:
        order, cumulated = _ranked(row, best, np.arange(len(row)))
    return order[: _n_holding(cumulated, wanted)]


def _ranked(row: Logits, best: float, ids: Ids) -> tuple[Ids, NDArray[np.float64]]:
    """Return `ids` from most to least likely, and their weights cumulated."""
    weights = np.exp(row[ids] - best)
    order = np.argsort(-weights, kind="stable")
    return ids[order], np.cumsum(weights[order], dtype=np.float64)


def _n_holding(cumulated: NDArray[np.float64], weight: float) -> int:
    return int(np.searchsorted(cumulated, weight, side="left")) + 1


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
