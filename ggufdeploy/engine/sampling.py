"""From one row of logits to one token, in llama.cpp's order.

bias -> penalties -> dry -> top_n_sigma -> top_k -> typical_p -> top_p -> min_p -> xtc -> temperature -> draw: the order
of common/sampling.cpp; with mirostat it is bias -> temperature -> mirostat alone. Each step means exactly what
llama.cpp's sampler of the same name means (src/llama-sampler.cpp). The drawn numbers come from Python's generator, so
the same seed gives the same text here but not the same text as in llama.cpp.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ggufdeploy.engine import cuts
from ggufdeploy.engine.backend import Logits
from ggufdeploy.engine.cuts import Ids
from ggufdeploy.engine.dry import Breakers, Dry
from ggufdeploy.engine.mirostat import Mirostat
from ggufdeploy.engine.request import SamplingParams
from ggufdeploy.errors import BadRequest, EngineError

# All tokens further away than ln(n_vocab) + this weigh less than e**-5 of the best one, together.
_FAR_SHARE = 5.0
# Below this the best token has all the probability, and float32 would overflow.
_GREEDY_BELOW = 1e-4


class Sampler:
    """Samples one request. Not shared between threads.

    banned: tokens that are never chosen. breakers: of params.dry_sequence_breakers, needed when DRY is on.

    Raises BadRequest from the constructor for parameters outside their range.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        n_vocab: int,
        banned: frozenset[int] = frozenset(),
        breakers: Breakers = MappingProxyType({}),
    ) -> None:
        _check(params)
        if params.mirostat:
            params = _mirostat_alone(params)
        self._params = params
        self._greedy = params.temperature < _GREEDY_BELOW and params.dynatemp_range == 0.0
        # top_k, top_p and min_p never take the best token away.
        self._may_cut_best = params.typical_p < 1.0 or (params.xtc_probability > 0.0 and params.xtc_threshold <= 0.5)
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
        self._mirostat = (
            Mirostat(params.mirostat, tau=params.mirostat_tau, eta=params.mirostat_eta) if params.mirostat else None
        )
        self._penalises = params.penalty_last_tokens > 0 and (
            params.repeat_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self._dry = Dry(params, breakers) if params.dry_multiplier > 0.0 and params.dry_last_tokens > 0 else None
        self._cuts_sigma = params.top_n_sigma > 0.0 and not self._greedy
        self._adjusts = bool(bias) or self._penalises or self._dry is not None or self._cuts_sigma
        self.is_plain_argmax = self._greedy and not self._adjusts and not self._may_cut_best

    def sample(self, row: Logits, history: Sequence[int]) -> int:
        """Return the next token. row: shape (n_vocab,), changed by bias and penalties. history: prompt and generated.

        Raises EngineError when the logits are not numbers.
        """
        if self._adjusts:
            self.adjust(row, history)
        if self._greedy and not self._may_cut_best:
            return checked_argmax(row)
        best = _best(row)
        if self._mirostat is not None:
            return self._draw_mirostat(self._mirostat, row)
        ids = self.candidates(row, best)
        if ids is not None:
            best = float(row[ids].max())
        if self._greedy:
            return int(row.argmax() if ids is None else ids[row[ids].argmax()])
        temperature = self.temperature(row, best, ids)
        if ids is None:
            return self._draw_from_all(row, best, temperature)
        cumulated = np.cumsum(np.exp((row[ids] - best) / temperature), dtype=np.float64)
        return int(ids[_draw(cumulated, self._random.random())])

    def adjust(self, row: Logits, history: Sequence[int]) -> None:
        """Apply bias, penalties, DRY and top_n_sigma to `row`, in place."""
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
        if self._dry is not None:
            self._dry.penalise(row, history)
        if self._cuts_sigma:
            cuts.top_n_sigma(row, self._params.top_n_sigma)

    def candidates(self, row: Logits, best: float) -> Ids | None:
        """Return the tokens that top_k, typical_p, top_p, min_p and xtc leave, or None when nothing is cut off.

        best: row.max(). xtc draws whether it cuts.
        """
        params = self._params
        ids: Ids | None = None
        if 0 < params.top_k < len(row):
            ids = cuts.top_k(row, best, params.top_k)
        if params.typical_p < 1.0:
            ids = cuts.typical(row, best, ids, params.typical_p)
        if params.top_p < 1.0:
            ids = cuts.top_p(row, best, ids, params.top_p)
        if params.min_p > 0.0:
            # Of what is left, as in llama.cpp: top_p may have kept another one of two equally likely best tokens.
            floor = (best if ids is None else float(row[ids].max())) + math.log(params.min_p)
            ids = np.flatnonzero(row >= floor) if ids is None else ids[row[ids] >= floor]
        if params.xtc_probability > 0.0 and self._random.random() <= params.xtc_probability:
            ids = cuts.xtc(row, best, ids, params.xtc_threshold)
        return ids

    def temperature(self, row: Logits, best: float, ids: Ids | None) -> float:
        """Return the temperature to draw with: with dynatemp_range, the higher the less certain the model is.

        best: the best logit of the candidates `ids`.
        """
        params = self._params
        temperature = params.temperature
        if params.dynatemp_range > 0.0:
            low, high = max(0.0, temperature - params.dynatemp_range), temperature + params.dynatemp_range
            uncertainty = cuts.normalised_entropy(row if ids is None else row[ids], best)
            temperature = low + (high - low) * uncertainty**params.dynatemp_exponent
        return max(temperature, _GREEDY_BELOW)

    def _draw_mirostat(self, mirostat: Mirostat, row: Logits) -> int:
        ids, shares = mirostat.candidates(row / self._params.temperature)
        at = _draw(np.cumsum(shares), self._random.random())
        mirostat.observe(float(shares[at]))
        return int(ids[at])

    def _draw_from_all(self, row: Logits, best: float, temperature: float) -> int:
        """Draw from the whole vocabulary by rejection: a far token is proposed with a weight it cannot exceed.

        Exact, and the far tokens' weights are hardly ever computed.
        """
        margin = math.log(len(row)) + _FAR_SHARE
        threshold = best - margin * temperature
        near = np.flatnonzero(row > threshold)
        cumulated = np.cumsum(np.exp((row[near] - best) / temperature), dtype=np.float64)
        cap, near_total = math.exp(-margin), float(cumulated[-1])
        total = near_total + cap * (len(row) - len(near))
        while True:
            drawn = self._random.random() * total
            if drawn < near_total:
                return int(near[_draw(cumulated, drawn / near_total)])
            token = self._random.randrange(len(row))
            while row[token] > threshold:
                token = self._random.randrange(len(row))
            if self._random.random() * cap < math.exp((float(row[token]) - best) / temperature):
                return token


def _mirostat_alone(params: SamplingParams) -> SamplingParams:
    """Return what counts beside mirostat; everything else is off."""
    return SamplingParams(
        temperature=params.temperature,
        seed=params.seed,
        logit_bias=params.logit_bias,
        mirostat=params.mirostat,
        mirostat_tau=params.mirostat_tau,
        mirostat_eta=params.mirostat_eta,
    )


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


def _check(params: SamplingParams) -> None:
    """Raise BadRequest unless every number is one the formulas above can take; the edge may be stricter."""
    ranges = (
        ("temperature", params.temperature, 0.0, 1e6),
        ("top_k", params.top_k, 0, 1 << 31),
        ("top_p", params.top_p, 0.0, 1.0),
        ("min_p", params.min_p, 0.0, 1.0),
        ("typical_p", params.typical_p, 0.0, 1.0),
        ("top_n_sigma", params.top_n_sigma, 0.0, 1e6),
        ("xtc_probability", params.xtc_probability, 0.0, 1.0),
        ("xtc_threshold", params.xtc_threshold, 0.0, 1.0),
        ("dynatemp_range", params.dynatemp_range, 0.0, 1e6),
        ("dynatemp_exponent", params.dynatemp_exponent, 0.0, 1e3),
        ("dry_multiplier", params.dry_multiplier, 0.0, 1e3),
        ("dry_base", params.dry_base, 1.0, 1e3),
        ("dry_allowed_length", params.dry_allowed_length, 0, 1 << 31),
        ("mirostat_tau", params.mirostat_tau, 0.0, 1e3),
        ("mirostat_eta", params.mirostat_eta, 0.0, 1e3),
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
