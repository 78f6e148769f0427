"""From a search result to the `Plan`: copy the figures, phrase the warnings, list the alternatives."""

from __future__ import annotations

from collections.abc import Sequence

from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.advice import Advice, numbered
from ggufdeploy.planner.budget import HOST_MARGIN_BYTES, available_bytes, kept_free_bytes, overhead_bytes, ram_tier
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.plan import (
    Plan,
    PlanAlternative,
    PlanDevice,
    PlanEngine,
    PlanKvCache,
    PlanModel,
    PlanPlacement,
    PlanPoint,
    PlanQuantization,
    PlanSpeed,
    PlanWarning,
)
from ggufdeploy.planner.reasons import why_chosen, why_not
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import Option, SearchResult, front, longest_context_tokens
from ggufdeploy.planner.speed import bottleneck
from ggufdeploy.units import format_bytes, format_rate


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
    info, placement, wish = chosen.candidate.info, chosen.placement, chosen.request
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
        context_tokens=wish.context_tokens,
        slots=wish.slots,
        kv_cache=PlanKvCache(wish.kv_type, wish.kv_type, sum(part.kv_bytes for part in parts)),
        verdict=chosen.verdict,
        placement=PlanPlacement(
            placement.n_gpu_layers,
            placement.n_layers_total,
            placement.strategy,
            "layer" if placement.n_devices > 1 else "none",
            placement.tensor_split,
            placement.overrides(),
        ),
        engine=PlanEngine(wish.n_ubatch, wish.n_ubatch, True, "mmap", max(machine.physical_cores, 1)),
        devices=_devices(chosen, request, machine),
        speed=_speed(chosen),
        memory_source=chosen.usage.source,
        header_source=chosen.candidate.header_source,
        warnings=_warnings(chosen, request, machine, advice),
        alternatives=tuple(_alternative(option, chosen, machine) for option in result.ladder),
        simulated=machine.simulated,
        reason=why_chosen(chosen, result, request),
        kv_pool_tokens=wish.kv_pool_tokens,
        pareto=tuple(_point(option) for option in front(result.options)),
    )  # fmt: skip


def _devices(chosen: Option, request: PlanRequest, machine: Machine) -> tuple[PlanDevice, ...]:
    rows = []
    for device, part in zip(machine.devices, chosen.usage.devices, strict=True):
        overhead = overhead_bytes(device) if part.total_bytes else 0
        extra = request.extra_bytes if part.total_bytes else 0
        rows.append(
            PlanDevice(
                device.name, device.kind, device.total_bytes, device.free_bytes,
                part.weights_bytes, part.kv_bytes, part.compute_bytes, overhead, kept_free_bytes(device, request),
                part.total_bytes + overhead + extra, extra,
            )
        )  # fmt: skip
    host, extra = chosen.usage.host, 0 if machine.devices else request.extra_bytes
    rows.append(
        PlanDevice(
            "CPU", "cpu", machine.ram_total_bytes, machine.ram_available_bytes,
            host.weights_bytes, host.kv_bytes, host.compute_bytes, 0, HOST_MARGIN_BYTES, host.total_bytes + extra,
            extra,
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
        decode_low_tokens_per_s=_round(chosen.speed.decode_low_tokens_per_s),
        decode_high_tokens_per_s=_round(chosen.speed.decode_high_tokens_per_s),
        basis=chosen.speed.basis if now else None,
        bottleneck=bottleneck(chosen.speed),
    )


def _round(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)


def _warnings(
    chosen: Option, request: PlanRequest, machine: Machine, advice: Sequence[Advice]
) -> tuple[PlanWarning, ...]:
    warnings = []
    if chosen.verdict != "gpu" and machine.devices:
        hint = numbered(advice) or None
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
    elif chosen.verdict != "gpu" and ram_tier(chosen.usage.host, machine, request) == "tight":
        left = format_bytes(machine.ram_available_bytes - chosen.usage.host.total_bytes)
        message = f"Only {left} of RAM stay free: what else runs can push the weights out, to be read from disk again."
        warnings.append(PlanWarning("ram_tight", message, "close other programs, or choose a smaller quantization"))
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
    n_host = len(placement.host_layers)
    experts = sum(
        placement.experts_on_host(layer.index) and layer.expert_bytes > 0 and layer.index >= n_host
        for layer in chosen.candidate.info.layers
    )
    parts = [f"{n_host} of {placement.n_layers} layers"] if n_host or not experts else []
    parts += [f"the experts of {experts} of {placement.n_layers} layers"] if experts else []
    what = " and ".join(parts)
    size = format_bytes(host.weights_bytes + host.kv_bytes) + (" with their KV cache" if host.kv_bytes else "")
    now, best = chosen.speed.decode_tokens_per_s, chosen.all_gpu_speed.decode_tokens_per_s
    sentence = f"{what} ({size}) stay in system RAM"
    if now is None or best is None:
        return sentence + "; the speed cost is unknown, because this GPU's bandwidth is."
    return (
        f"{sentence}: about {format_rate(now)} instead of {format_rate(best)} with everything in VRAM, "
        f"{best / now:.1f} times slower."
    )


def _alternative(option: Option, chosen: Option, machine: Machine) -> PlanAlternative:
    wish, used = option.request, sum(part.total_bytes for part in option.usage.devices)
    return PlanAlternative(
        option.candidate.quantization,
        wish.kv_type,
        wish.context_tokens,
        option.verdict,
        option.placement.n_gpu_layers,
        _round(option.speed.decode_tokens_per_s),
        option.quality,
        None if option is chosen else why_not(option, chosen),
        option.candidate.total_bytes,
        option.placement.strategy,
        option.placement.cpu_expert_layers,
        used if machine.devices else None,
        available_bytes(machine, wish) if machine.devices else None,
        longest_context_tokens(option.candidate, wish, machine, FormulaMemory()),
    )


def _point(option: Option) -> PlanPoint:
    assert option.score is not None
    return PlanPoint(
        option.candidate.quantization, option.request.kv_type, option.verdict, option.score, round(option.decode, 2)
    )
