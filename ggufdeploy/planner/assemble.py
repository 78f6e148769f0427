"""From a search result to the `Plan`: copy the figures, phrase the warnings, list the alternatives."""

from __future__ import annotations

from collections.abc import Sequence

from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.advice import Advice
from ggufdeploy.planner.plan import (
    Plan,
    PlanAlternative,
    PlanDevice,
    PlanEngine,
    PlanKvCache,
    PlanModel,
    PlanPlacement,
    PlanQuantization,
    PlanSpeed,
    PlanWarning,
)
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import (
    HOST_MARGIN_BYTES,
    Option,
    SearchResult,
    margin_bytes,
    overhead_bytes,
)
from ggufdeploy.units import format_bytes, format_file_size, format_rate


def make_plan(
    ref: str,
    name: str,
    repo: str | None,
    revision: str | None,
    request: PlanRequest,
    machine: Machine,
    chosen: Option,
    result: SearchResult,
    advice: Sequence[Advice],
) -> Plan:
    """Assemble the plan for `chosen`; `result` supplies the alternatives, `advice` the ways out of offloading."""
    info, placement = chosen.candidate.info, chosen.placement
    parts = (*chosen.usage.devices, chosen.usage.host)
    return Plan(
        model=PlanModel(
            ref, name, repo, revision, info.architecture, info.n_params, info.n_layers, info.n_experts,
            info.context_train_tokens,
        ),
        quantization=PlanQuantization(
            chosen.candidate.quantization,
            round(info.total_bytes * 8 / info.n_params, 3) if info.n_params else 0.0,
            chosen.candidate.files,
            chosen.candidate.total_bytes,
        ),
        context_tokens=request.context_tokens,
        slots=request.slots,
        kv_cache=PlanKvCache(request.kv_type, request.kv_type, sum(part.kv_bytes for part in parts)),
        verdict=chosen.verdict,
        placement=PlanPlacement(
            placement.n_gpu_layers,
            placement.n_layers_total,
            placement.strategy,
            "layer" if placement.n_devices > 1 else "none",
            placement.tensor_split,
            placement.overrides(),
        ),
        engine=PlanEngine(request.n_ubatch, request.n_ubatch, True, "mmap", max(machine.physical_cores, 1)),
        devices=_devices(chosen, request, machine),
        speed=_speed(chosen),
        memory_source=chosen.usage.source,
        header_source=chosen.candidate.header_source,
        warnings=_warnings(chosen, request, machine, advice),
        alternatives=tuple(_alternative(option, chosen, request) for option in result.options),
    )  # fmt: skip


def _devices(chosen: Option, request: PlanRequest, machine: Machine) -> tuple[PlanDevice, ...]:
    rows = []
    for device, part in zip(machine.devices, chosen.usage.devices, strict=True):
        overhead = overhead_bytes(device) if part.total_bytes else 0
        margin = (0 if device.kind == "rpc" else margin_bytes(device)) + request.reserve_bytes
        rows.append(
            PlanDevice(
                device.name, device.kind, device.total_bytes, device.free_bytes,
                part.weights_bytes, part.kv_bytes, part.compute_bytes, overhead, margin, part.total_bytes + overhead,
            )
        )  # fmt: skip
    host = chosen.usage.host
    rows.append(
        PlanDevice(
            "CPU", "cpu", machine.ram_total_bytes, machine.ram_available_bytes,
            host.weights_bytes, host.kv_bytes, host.compute_bytes, 0, HOST_MARGIN_BYTES, host.total_bytes,
        )
    )  # fmt: skip
    return tuple(rows)


def _speed(chosen: Option) -> PlanSpeed:
    now, best = chosen.speed.decode_tokens_per_s, chosen.all_gpu_speed.decode_tokens_per_s
    return PlanSpeed(
        decode_tokens_per_s=_round(now),
        prefill_tokens_per_s=_round(chosen.speed.prefill_tokens_per_s),
        all_gpu_decode_tokens_per_s=_round(best),
        slowdown=round(best / now, 2) if now and best else None,
    )


def _round(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)


def _warnings(
    chosen: Option, request: PlanRequest, machine: Machine, advice: Sequence[Advice]
) -> tuple[PlanWarning, ...]:
    warnings = []
    if chosen.verdict != "gpu" and machine.devices:
        hint = "\n".join(f"{a.text}: {a.command}" if a.command else a.text for a in advice) or None
        if chosen.placement.n_gpu_layers:
            warnings.append(PlanWarning("offload_speed", offload_sentence(chosen), hint))
        else:
            message = f"No layer fits on a GPU beside the KV cache: {offload_sentence(chosen)}"
            warnings.append(PlanWarning("cpu_only", message, hint))
    if chosen.verdict == "disk":
        short = chosen.usage.host.total_bytes + HOST_MARGIN_BYTES - machine.ram_available_bytes
        warnings.append(
            PlanWarning(
                "from_disk",
                f"{format_bytes(short)} of the weights do not fit in RAM and are read from disk again and again; "
                "the speed above assumes RAM.",
                "add RAM, or choose a smaller quantization",
            )
        )
    if chosen.speed.host_bandwidth_assumed and chosen.verdict != "gpu":
        warnings.append(
            PlanWarning(
                "ram_bandwidth_assumed",
                "This machine's RAM bandwidth is not known; the tokens/s assume a typical one.",
                None,
            )
        )
    if not chosen.candidate.exact:
        warnings.append(
            PlanWarning(
                "estimate",
                "The model's header could not be read, so sizes come from the profile and are estimates.",
                "go online, or name a local file",
            )
        )
    return tuple(warnings)


def offload_sentence(chosen: Option) -> str:
    """Say what stays in RAM and what that costs, in numbers (law 5)."""
    placement, host = chosen.placement, chosen.usage.host
    if placement.strategy == "experts":
        what = f"the experts of {placement.cpu_expert_layers} of {placement.n_layers} layers"
    else:
        what = f"{len(placement.host_layers)} of {placement.n_layers} layers"
    size = host.weights_bytes + host.kv_bytes
    now, best = chosen.speed.decode_tokens_per_s, chosen.all_gpu_speed.decode_tokens_per_s
    sentence = f"{what} ({format_bytes(size)} with their KV cache) stay in system RAM"
    if now is None or best is None:
        return sentence + "; the speed cost is unknown, because this GPU's bandwidth is."
    return (
        f"{sentence}: about {format_rate(now)} instead of {format_rate(best)} with everything in VRAM, "
        f"{best / now:.1f} times slower."
    )


def _alternative(option: Option, chosen: Option, request: PlanRequest) -> PlanAlternative:
    return PlanAlternative(
        option.candidate.quantization,
        request.kv_type,
        request.context_tokens,
        option.verdict,
        option.placement.n_gpu_layers,
        _round(option.speed.decode_tokens_per_s),
        option.quality,
        None if option.candidate is chosen.candidate else _why_not(option, chosen),
    )


def _why_not(option: Option, chosen: Option) -> str:
    if option.verdict == "impossible":
        short = f", {_short(option)} of VRAM short" if option.short_bytes else ""
        return f"does not fit: {format_file_size(option.candidate.total_bytes)}{short}"
    if option.verdict == "disk" and chosen.verdict not in ("gpu", "disk"):
        return "exceeds the RAM: part of it would be read from disk"
    if option.short_bytes and chosen.verdict == "gpu":
        now, rate = option.speed.decode_tokens_per_s, chosen.speed.decode_tokens_per_s
        slower = f", {rate / now:.1f} times slower" if now and rate else ""
        return f"does not fit in VRAM ({_short(option)} short){slower}"
    if option.quality is not None and chosen.quality is not None and option.quality < chosen.quality:
        return "lower quality than the chosen one"
    return "slower than the chosen one"


def _short(option: Option) -> str:
    return format_bytes(option.short_bytes)
