"""How good a quantization is, as far as anyone has measured it."""

from __future__ import annotations

import math
import re
from functools import cache

# Mean KL divergence to F16 on Llama-3-8B, best first: with an importance matrix (WikiText, 10M tokens) from Q4_K_M on,
# without one above, where it makes no difference. Source: llama.cpp tools/perplexity/README.md.
# None: the place is agreed (bits per weight, perplexity of 70B models) but no comparable figure is published.
_KLD: dict[str, float | None] = {
    "F32": 0.0,
    "BF16": None,
    "F16": 0.000551,
    "Q8_0": 0.001355,
    "Q6_K": 0.005452,
    "Q5_K_M": 0.010762,
    "Q5_K_S": 0.016595,
    "Q5_1": 0.018045,
    "Q5_0": 0.022239,
    "Q4_K_L": None,
    "Q4_K_M": 0.028152,
    "Q4_K_S": 0.031951,
    "IQ4_NL": 0.035742,
    "IQ4_XS": 0.036334,
    "NVFP4": None,
    "MXFP4": None,
    "MXFP4_MOE": None,
    "Q4_1": 0.071683,
    "Q4_0": 0.071940,
    "Q3_K_XL": None,
    "Q3_K_L": 0.073077,
    "Q3_K_M": 0.084358,
    "IQ3_M": 0.102534,
    "IQ3_S": 0.111278,
    "IQ3_XS": 0.138693,
    "IQ3_XXS": 0.183625,
    "Q3_K_S": 0.199821,
    "IQ2_M": 0.325989,
    "Q2_K_L": None,
    "Q2_K": 0.332223,
    "Q2_K_S": 0.403360,
    "IQ2_S": 0.439197,
    "IQ2_XS": 0.546290,
    "IQ2_XXS": 0.812022,
    "TQ2_0": None,
    "Q2_0": None,
    "IQ1_M": 1.393084,
    "TQ1_0": None,
    "IQ1_S": 2.254554,
    "Q1_0": None,
}
_RANK = {name: rank for rank, name in enumerate(_KLD)}
FLOOR = "Q3_K_S"
"""The last quantization that `balanced` accepts when something better would run with part of it in system RAM."""
# Mean KL divergence of a KV cache (keys and values alike) to an f16 one. q8_0: 0.0010 on Llama-3-8B at 512 tokens
# (llama.cpp pull request 7412), 0.0067 on a Qwen 35B at 8,192 (LLMKube issue 601); the larger one counts. The others:
# not measured at long contexts, so what that type does to weights stands for it.
_KV_KLD = {"q8_0": 0.0067} | {kind: _KLD[kind.upper()] or 0.0 for kind in ("q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")}
# Three times what q8_0 costs, and about the step from Q4_K_M to Q6_K: a clearly better quantization.
_KV_PRICE = 0.02
_PREFIX = re.compile(r"^(UD-|I1-)+", re.IGNORECASE)


@cache
def rank(quantization: str) -> float | None:
    """Return the place in the order of quality, 0 is best; None for an unknown name.

    Dynamic mixes (`UD-`) stand half a place above the plain name: measured KLD is lower at about equal size.
    """
    place = _RANK.get(_PREFIX.sub("", quantization).upper())
    if place is None:
        return None
    return place - 0.5 if quantization.upper().startswith("UD-") else float(place)


@cache
def quality(quantization: str) -> float | None:
    """Return exp(-KLD): 1 is as F16, lower is worse. Interpolated between measured neighbours; None if unknown."""
    place = rank(quantization)
    if place is None:
        return None
    known = [(_RANK[name], kld) for name, kld in _KLD.items() if kld is not None]
    below = max((item for item in known if item[0] <= place), default=known[0])
    above = min((item for item in known if item[0] >= place), default=known[-1])
    share = 0.0 if above[0] == below[0] else (place - below[0]) / (above[0] - below[0])
    return round(math.exp(-(below[1] + share * (above[1] - below[1]))), 4)


def meets_floor(quantization: str) -> bool:
    """Tell whether `balanced` accepts it; unknown names are accepted, nothing speaks against them."""
    place = rank(quantization)
    return place is None or place <= _RANK[FLOOR]


def kv_quality(kv_type: str) -> float:
    """Return what a KV type leaves of the quality: exp(-KLD), 1 for 16 and 32 bits."""
    return math.exp(-_KV_KLD.get(kv_type, 0.0))


def kv_price(kv_type: str) -> float:
    """Return how much better the weights must be for `balanced` to take a KV cache of this type; 0 for 16 bits."""
    return _KV_PRICE if kv_type in _KV_KLD else 0.0
