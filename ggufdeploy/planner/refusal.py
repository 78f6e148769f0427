"""When nothing satisfies the request: what is missing, in numbers, and what would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggufdeploy.errors import DoesNotFit
from ggufdeploy.hardware.catalog import list_gpus
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.advice import Advice, Invocation, OtherModel, avoid_offload, models_that_run, numbered
from ggufdeploy.planner.budget import HOST_MARGIN_BYTES, available_bytes
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import Option, eligible, good_enough
from ggufdeploy.units import format_bytes, format_file_size, format_rate


def does_not_fit(
    options: Sequence[Option],
    request: PlanRequest,
    machine: Machine,
    typed: Invocation,
    models: Sequence[OtherModel] = (),
) -> DoesNotFit:
    """Return the error for a search that chose nothing: too large, or below the floor of speed or quality."""
    slow = eligible(options, request)
    if slow:
        return _too_slow(max(slow, key=lambda o: o.decode), request, machine, typed, models)
    wanted = request.quantization
    named = [o for o in options if wanted is None or o.candidate.quantization.upper() == wanted.upper()]
    if not any(good_enough(option, request) for option in named):
        return _too_coarse(named, request, typed)
    option = min(named, key=lambda o: o.candidate.total_bytes)
    size = format_file_size(option.candidate.total_bytes)
    what = f"{option.candidate.quantization} ({size}) does not fit at {request.context_tokens:,} tokens: "
    needs = []
    available = available_bytes(machine, request)
    if machine.devices:
        where = ", ".join(f"{d.name} {format_bytes(d.free_bytes)} free" for d in machine.devices)
        needed = format_bytes(available + option.short_bytes)
        needs.append(f"{needed} of VRAM, of which {format_bytes(available)} may be used ({where})")
    if request.offload != "none" or not machine.devices:
        room = max(machine.ram_available_bytes - HOST_MARGIN_BYTES, 0)
        needs.append(f"{format_bytes(option.usage.host.total_bytes)} of RAM, of which {format_bytes(room)} may be used")
    hint = _ways_out(option, options, request, machine, typed, models)
    return DoesNotFit(
        f"{typed.ref} {what}it needs {', and '.join(needs)}",
        needed_bytes=available + option.short_bytes if machine.devices else option.usage.host.total_bytes,
        free_bytes=available if machine.devices else machine.ram_available_bytes,
        hint=hint or "choose a smaller model: ggufdeploy profiles list",
    )


def _too_slow(
    fastest: Option, request: PlanRequest, machine: Machine, typed: Invocation, models: Sequence[OtherModel]
) -> DoesNotFit:
    """Return the error for options that run, but slower than asked."""
    name, floor = fastest.candidate.quantization, request.min_decode_tokens_per_s or 0.0
    message = (
        f"{typed.ref} is too slow here at {request.context_tokens:,} tokens: {name}, the fastest, makes about "
        f"{format_rate(fastest.decode)}, and {format_rate(floor)} are asked for"
    )
    anyway = replace(request, quantization=name, min_decode_tokens_per_s=None)
    advice = [Advice("without the floor", typed.command("plan", anyway, min_speed=None, preset=None))]
    if fastest.verdict != "gpu" and machine.devices:
        advice += avoid_offload(fastest, (), request, machine, typed, list_gpus(), models)
    else:
        advice += models_that_run(models, request, machine, typed)
    return DoesNotFit(message, hint=numbered(advice))


def _too_coarse(options: Sequence[Option], request: PlanRequest, typed: Invocation) -> DoesNotFit:
    """Return the error when no quantization on offer reaches the quality floor."""
    best = max(options, key=lambda o: o.quality or 0.0)
    quality = f"{best.quality:.3f}" if best.quality is not None else "unknown"
    message = (
        f"{typed.ref} has no quantization of quality {request.min_quality or 0.0:.3f} or more"
        f"{' under that name' if request.quantization else ''}; the best is {best.candidate.quantization} at {quality}"
    )
    anyway = replace(request, min_quality=None)
    return DoesNotFit(message, hint=f"without the floor: {typed.command('plan', anyway, min_quality=None)}")


def _ways_out(
    option: Option,
    options: Sequence[Option],
    request: PlanRequest,
    machine: Machine,
    typed: Invocation,
    models: Sequence[OtherModel],
) -> str:
    advice = list(avoid_offload(option, options, request, machine, typed, list_gpus(), models))
    best = next((o for o in options if o.verdict not in ("impossible", "gpu")), None)
    if best is not None:
        name = best.candidate.quantization
        advice.insert(0, Advice(f"{name} would run", typed.command("plan", replace(request, quantization=name))))
    return numbered(advice)
