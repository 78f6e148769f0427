"""How good a quantization is, as far as anyone has measured it."""

from __future__ import annotations

import math
import re

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
_PREFIX = re.compile(r"^(UD-|I1-)+", re.IGNORECASE)


def rank(quantization: str) -> float | None:
    """Return the place in the order of quality, 0 is best; None for an unknown name.

    Dynamic mixes (`UD-`) stand half a place above the plain name: measured KLD is lower at about equal size.
    """
    place = _RANK.get(_PREFIX.sub("", quantization).upper())
    if place is None:
        return None
    return place - 0.5 if quantization.upper().startswith("UD-") else float(place)


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
