"""The speed model's constants: fitted on published llama.cpp runs by `python -m benchmarks.fit_speed`.

benchmarks/data/speeds.csv holds the runs, each with its source; `tests/planner/test_rates.py` keeps the constants at
what the fit says. docs/speed-model.md has the formula and how far it is off: on GPUs left out of the fit in turn, a
predicted decode speed misses the published one by 5 % in the median and by 18 % at the 90th percentile.
"""

from __future__ import annotations

from typing import Literal

MemoryClass = Literal["hbm", "gddr", "unified"]

# Compute capabilities of cards with HBM, and of those that share the system's LPDDR (Orin, Thor, GB10); the others
# have GDDR. Source: NVIDIA's list of CUDA GPUs and their data sheets.
_HBM = frozenset({"6.0", "7.0", "8.0", "9.0", "10.0", "10.3"})
_UNIFIED = frozenset({"8.7", "11.0", "12.1"})

EFFICIENCY: dict[MemoryClass, float] = {"hbm": 0.657, "gddr": 0.855, "unified": 0.868}
"""Share of a GPU's peak bandwidth that decoding reaches."""
LAYER_S: dict[MemoryClass, float] = {"hbm": 60e-6, "gddr": 30e-6, "unified": 47e-6}
"""What a block costs besides reading its bytes: launches, attention, synchronisation. Builds of 2025 and later."""
EXPERT_LAYER_S = 7e-6
"""More for a block with routed experts."""
WIDE_EXPERTS = 256
WIDE_EXPERT_LAYER_S = 58e-6
"""More again when each token chooses among WIDE_EXPERTS or more. Four runs of two models."""
HOST_EXPERT_LAYER_S = 83e-6
"""More for a block on a GPU whose experts are in RAM: two trips over PCIe. Three user-submitted runs on one card."""
HOP_S = 380e-6
"""From one GPU to the next, per token. Layer splits over 2 and 4 GPUs, May 2024."""

# Measured on 2 cores, docs/benchmarks.md: an 8B model at 76 and 524 tokens of context, a 135M one at 76 to 4,108; all
# six within 20 %. Published runs on desktops reach 82 % of the DIMMs' peak, about nine tenths of what cores read.
HOST_EFFICIENCY = 0.92
"""Share of the RAM's measured read bandwidth."""
HOST_LAYER_S = 100e-6
ATTENTION_MACS_PER_S_AND_CORE = 2.4e9

LOW, HIGH = 0.83, 1.11
"""Measured / predicted decode speed of nine of ten published runs on GPUs left out of the fit."""

PREFILL_EFFICIENCY = 0.28
"""Share of the dense FP16 peak, where the card is not in PREFILL_FLOPS_PER_S. Six cards reach 0.15 to 0.48."""
PREFILL_EXPERT_SHARE = 0.47
"""What a mixture of experts reaches of that, per active parameter: each expert sees few tokens of a batch."""
# 2 x parameters x prompt tokens/s: each card's fastest dense run of its newest build.
PREFILL_FLOPS_PER_S: dict[str, float] = {
    "a100-80gb": 71.3e12, "a100-pcie-80gb": 102.5e12, "a40": 52.0e12, "h100-pcie": 138.9e12, "h100-sxm": 151.8e12,
    "l40s": 150.4e12, "rtx-3060": 28.8e12, "rtx-3070": 36.7e12, "rtx-3080": 57.1e12, "rtx-3080-ti": 57.1e12,
    "rtx-3090": 69.8e12, "rtx-4070-ti": 58.7e12, "rtx-4080": 81.3e12, "rtx-4090": 199.1e12, "rtx-5080": 127.9e12,
    "rtx-5090": 201.8e12, "rtx-6000-ada": 128.6e12, "rtx-a6000": 65.9e12, "rtx-pro-6000": 224.0e12,
}  # fmt: skip
# Effective host-to-GPU copy rate; weights in RAM cross it once per n_ubatch prompt tokens. PCIe 4.0 x16.
HOST_TO_GPU_BYTES_PER_S = 22_000_000_000

# Assumed when nothing is known about the host: beside data-centre GPUs 60 % of eight DDR5-4800 channels, else what
# cores read from two channels of DDR4-3200. Every figure that rests on this says so.
ASSUMED_SERVER_BYTES_PER_S = 184_000_000_000
ASSUMED_DESKTOP_BYTES_PER_S = 45_600_000_000
ASSUMED_SERVER_CORES = 32
ASSUMED_DESKTOP_CORES = 8


def memory_class(compute_capability: str | None) -> MemoryClass:
    """Return what kind of memory a card has; an unknown one counts as GDDR."""
    if compute_capability in _HBM:
        return "hbm"
    return "unified" if compute_capability in _UNIFIED else "gddr"
