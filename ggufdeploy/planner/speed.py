"""How fast a placement runs: what each token reads, over how fast that can be read, plus a cost per layer.

Decode reads every active weight and the used KV cells once per token: t = bytes / (efficiency x bandwidth) + layers x
cost, summed over the devices, which work one after the other. `work` counts, `rates` has the constants and their
sources, `calibration` applies what was measured on this machine. docs/speed-model.md has the formula and its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.hardware.samples import HOST
from ggufdeploy.planner import rates
from ggufdeploy.planner.calibration import WEAKEST_FIRST, Basis, Scale, prefill_from_samples, scales
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.work import SpeedPart, active_params, host_of, token_parts, work_per_token
from ggufdeploy.units import format_bytes

_SMALL_PART = 0.1  # of a token's time: what it rests on does not decide what the whole rests on


@dataclass(frozen=True)
class Speed:
    """tokens/s of one stream at a context that is half full; None when the hardware's figures are unknown.

    host_bandwidth_assumed: the RAM bandwidth was not known, so a typical one was used.
    decode_low_tokens_per_s, decode_high_tokens_per_s: where it will be, nine times of ten. basis: what that rests on:
    "measured": runs of this model or its kind on this machine; "calibrated": this machine's bandwidth; "estimated":
    data sheets and published runs. parts: where a token's time goes, device by device; empty when unknown.
    """

    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    host_bandwidth_assumed: bool
    decode_low_tokens_per_s: float | None = None
    decode_high_tokens_per_s: float | None = None
    basis: Basis = "estimated"
    parts: tuple[SpeedPart, ...] = ()


def predict(
    model: ModelInfo, request: PlanRequest, placement: Placement, machine: Machine, *, used_tokens: int | None = None
) -> Speed:
    """Predict the speed of one stream. used_tokens: filled KV cells, by default half the requested context."""
    used = request.context_tokens // 2 if used_tokens is None else used_tokens
    works = work_per_token(model, request.kv_type, placement, machine, used)
    parts = token_parts(works, machine)
    assumed = host_of(machine).assumed and any(work.device == HOST for work in works)
    prefill = _prefill(model, request, placement, machine)
    if not parts:
        return Speed(None, prefill, assumed)
    corrections = scales(parts, model, placement, machine)
    parts = tuple(_scaled(part, scale) for part, scale in zip(parts, corrections, strict=True))
    total_s = sum(part.total_s for part in parts)
    fast_s = sum(part.total_s * scale.fast for part, scale in zip(parts, corrections, strict=True))
    slow_s = sum(part.total_s * scale.slow for part, scale in zip(parts, corrections, strict=True))
    basis = min(
        (s.basis for p, s in zip(parts, corrections, strict=True) if p.total_s >= _SMALL_PART * total_s),
        key=WEAKEST_FIRST.index,
    )
    return Speed(1 / total_s, prefill, assumed, 1 / slow_s, 1 / fast_s, basis, parts)


def bottleneck(speed: Speed) -> str | None:
    """Say in one sentence what a token waits for most, and how much of its time; None when the speed is unknown."""
    if not speed.parts:
        return None
    host = [part for part in speed.parts if part.device == HOST]
    gpus = [part for part in speed.parts if part.device != HOST]
    layers = sum(part.layers for part in speed.parts)
    causes = [
        (sum(part.read_s for part in host), f"is spent reading {_read(host)} from RAM"),
        (sum(part.read_s for part in gpus), f"is spent reading {_read(gpus)} from {_memory(gpus)}"),
        (sum(part.attention_s for part in host), "is spent on attention over its context, computed by the CPU"),
        (
            sum(part.fixed_s for part in speed.parts),
            f"is the fixed cost of its {layers} layers: faster memory would not help",
        ),
    ]
    seconds, what = max(causes)
    return f"{seconds / sum(part.total_s for part in speed.parts):.0%} of each token {what}".replace("%", " %", 1)


def _read(parts: Sequence[SpeedPart]) -> str:
    return format_bytes(sum(part.read_bytes for part in parts))


def _memory(gpus: Sequence[SpeedPart]) -> str:
    return f"the memory of {len(gpus)} GPUs, one after the other" if len(gpus) > 1 else "VRAM"


def _scaled(part: SpeedPart, scale: Scale) -> SpeedPart:
    return replace(
        part,
        read_s=part.read_s * scale.factor,
        fixed_s=part.fixed_s * scale.factor,
        attention_s=part.attention_s * scale.factor,
    )


def _prefill(model: ModelInfo, request: PlanRequest, placement: Placement, machine: Machine) -> float | None:
    """Return prompt tokens/s: bound by arithmetic and by copying the host's weights once per ubatch. None: unknown."""
    measured = prefill_from_samples(model, placement, machine)
    if measured is not None or placement.output_device is None:
        return measured
    flops = _prefill_flops(machine.devices[placement.output_device])
    if flops is None:
        return None
    if model.n_experts:
        flops *= rates.PREFILL_EXPERT_SHARE
    host = sum(model.layers[index].total_bytes for index in placement.host_layers)
    host += sum(
        layer.expert_bytes
        for layer in model.layers
        if layer.index not in placement.host_layers and placement.experts_on_host(layer.index)
    )
    return 1 / (2 * active_params(model) / flops + host / rates.HOST_TO_GPU_BYTES_PER_S / request.n_ubatch)


def _prefill_flops(device: Device) -> float | None:
    """Return the FLOP/s a dense model's prompt reaches on this card: published for it, else a share of its peak."""
    published = rates.PREFILL_FLOPS_PER_S.get(device.catalogue_id or "")
    if published is not None or device.fp16_flops_per_s is None:
        return published
    return rates.PREFILL_EFFICIENCY * device.fp16_flops_per_s
