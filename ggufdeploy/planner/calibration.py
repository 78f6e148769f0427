"""What runs measured on this machine change about a prediction, and how far the result can be trusted.

A sample says how long a known amount of work really took; its ratio to the constants' prediction corrects other
predictions for the kind of device that took most of its time: first runs of the same model, then of the same kind of
model (dense, or a mixture of experts), then any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.hardware.samples import HOST, SpeedSample
from ggufdeploy.planner import rates
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.work import SpeedPart, active_params, host_of, token_parts

Basis = Literal["measured", "calibrated", "estimated"]
WEAKEST_FIRST: tuple[Basis, ...] = ("estimated", "calibrated", "measured")
_MOSTLY = 0.8  # a run tells about a kind of device that took at least this share of its time


@dataclass(frozen=True)
class Scale:
    """Predicted seconds times `factor` are the best guess; nine of ten times the truth is within fast..slow of it."""

    factor: float
    fast: float
    slow: float
    basis: Basis


# Published runs on GPUs left out of the fit: measured / predicted speed; see rates.LOW. The other widths are judgement,
# to be replaced once several machines have been measured; runs on 2 cores repeat within 10 %.
_ESTIMATED = Scale(1.0, 1 / rates.HIGH, 1 / rates.LOW, "estimated")
_ASSUMED_HOST = Scale(1.0, 0.5, 2.0, "estimated")
_MEASURED_BANDWIDTH = Scale(1.0, 0.8, 1.25, "calibrated")
_SAME_MODEL = Scale(1.0, 0.9, 1.1, "measured")
_SAME_KIND = Scale(1.0, 0.85, 1.2, "measured")
_ANY_RUN = Scale(1.0, 0.75, 1.3, "calibrated")


def scales(parts: Sequence[SpeedPart], model: ModelInfo, placement: Placement, machine: Machine) -> tuple[Scale, ...]:
    """Return one scale per part."""
    ratios = [(sample, ratio) for sample in machine.speed_samples if (ratio := _ratio(sample, machine)) is not None]
    same = [ratio for sample, ratio in ratios if is_of(sample, model) and _placed_alike(sample, placement)]
    if same:
        return (_times(_SAME_MODEL, same),) * len(parts)
    return tuple(_scale(part.device == HOST, ratios, model, machine) for part in parts)


def _scale(on_host: bool, ratios: Sequence[tuple[SpeedSample, float]], model: ModelInfo, machine: Machine) -> Scale:
    telling = [(sample, ratio) for sample, ratio in ratios if _mostly_on(sample, on_host, machine)]
    same_model = [ratio for sample, ratio in telling if is_of(sample, model)]
    same_kind = [ratio for sample, ratio in telling if _has_experts(sample) == bool(model.n_experts)]
    any_run = [ratio for _, ratio in telling]
    for width, found in ((_SAME_MODEL, same_model), (_SAME_KIND, same_kind), (_ANY_RUN, any_run)):
        if found:
            return _times(width, found)
    if not on_host:
        return _ESTIMATED
    return _ASSUMED_HOST if host_of(machine).assumed else _MEASURED_BANDWIDTH


def prefill_from_samples(model: ModelInfo, placement: Placement, machine: Machine) -> float | None:
    """Return prompt tokens/s from runs placed alike: prefill does the same arithmetic per active parameter."""
    alike = [s for s in machine.speed_samples if s.prefill_tokens_per_s and _placed_alike(s, placement)]
    same = [s for s in alike if is_of(s, model)] or [s for s in alike if _has_experts(s) == bool(model.n_experts)]
    if not same:
        return None
    flops = median(s.active_params * (s.prefill_tokens_per_s or 0.0) for s in same)
    return flops / active_params(model)


def is_of(sample: SpeedSample, model: ModelInfo) -> bool:
    """Tell whether the run was of this model at this quantization."""
    return (sample.architecture, sample.n_params, sample.weights_bytes) == (
        model.architecture,
        model.n_params,
        model.total_bytes,
    )


def _placed_alike(sample: SpeedSample, placement: Placement) -> bool:
    """Tell whether both run wholly on the host, wholly on as many GPUs, or leave the very same layers on the host."""
    blocks = sum(work.layers for work in sample.work)
    if (sample.n_gpu_layers == 0) != (placement.n_gpu_layers == 0):
        return False
    gpus = sum(work.device != HOST for work in sample.work)
    if gpus != sum(items > 0 for items in placement.items_per_device):
        return False
    both_whole = sample.n_gpu_layers == blocks + 1 and placement.strategy == "full" and not sample.cpu_expert_layers
    exactly = (sample.n_gpu_layers, sample.cpu_expert_layers) == (placement.n_gpu_layers, placement.cpu_expert_layers)
    return both_whole or exactly


def _has_experts(sample: SpeedSample) -> bool:
    return any(work.expert_layers for work in sample.work)


def _mostly_on(sample: SpeedSample, on_host: bool, machine: Machine) -> bool:
    parts = token_parts(sample.work, machine) or ()
    return sum(p.total_s for p in parts if (p.device == HOST) == on_host) >= _MOSTLY * sum(p.total_s for p in parts)


def _ratio(sample: SpeedSample, machine: Machine) -> float | None:
    """Return measured over predicted seconds of a token; None for a sample of a GPU that is not here."""
    parts = token_parts(sample.work, machine)
    return None if parts is None else 1 / sample.decode_tokens_per_s / sum(part.total_s for part in parts)


def _times(width: Scale, ratios: Sequence[float]) -> Scale:
    return Scale(median(ratios), width.fast, width.slow, width.basis)
