"""When nothing satisfies the request: what is missing, in numbers, and what would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggufdeploy.errors import DoesNotFit
from ggufdeploy.hardware.catalog import list_gpus
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.advice import Invocation, avoid_offload
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import HOST_MARGIN_BYTES, Option, budget_bytes, eligible
from ggufdeploy.units import format_bytes, format_file_size, format_rate


def does_not_fit(options: Sequence[Option], request: PlanRequest, machine: Machine, typed: Invocation) -> DoesNotFit:
    """Return the error for a search that chose nothing: too large, or below the speed floor."""
    slow = eligible(options, request)
    if slow:
        return _too_slow(max(slow, key=lambda o: o.decode), options, request, machine, typed)
    if request.quantization is not None:
        wanted = request.quantization.upper()
        option = next(o for o in options if o.candidate.quantization.upper() == wanted)
    else:
        option = min(options, key=lambda o: o.candidate.total_bytes)
    size = format_file_size(option.candidate.total_bytes)
    what = f"{option.candidate.quantization} ({size}) does not fit at {request.context_tokens:,} tokens: "
    needs = []
    available = sum(max(budget_bytes(device, request), 0) for device in machine.devices)
    if machine.devices:
        where = ", ".join(f"{d.name} {format_bytes(d.free_bytes)} free" for d in machine.devices)
        needed = format_bytes(available + option.short_bytes)
        needs.append(f"{needed} of VRAM, of which {format_bytes(available)} may be used ({where})")
    if request.offload != "none" or not machine.devices:
        room = max(machine.ram_available_bytes - HOST_MARGIN_BYTES, 0)
        needs.append(f"{format_bytes(option.usage.host.total_bytes)} of RAM, of which {format_bytes(room)} may be used")
    hint = _ways_out(option, options, request, machine, typed)
    return DoesNotFit(
        f"{typed.ref} {what}it needs {', and '.join(needs)}",
        needed_bytes=available + option.short_bytes if machine.devices else option.usage.host.total_bytes,
        free_bytes=available if machine.devices else machine.ram_available_bytes,
        hint=hint or "choose a smaller model: ggufdeploy profiles list",
    )


def _too_slow(
    fastest: Option, options: Sequence[Option], request: PlanRequest, machine: Machine, typed: Invocation
) -> DoesNotFit:
    """Return the error for options that run, but slower than asked."""
    name, floor = fastest.candidate.quantization, request.min_decode_tokens_per_s or 0.0
    message = (
        f"{typed.ref} is too slow here at {request.context_tokens:,} tokens: {name}, the fastest, makes about "
        f"{format_rate(fastest.decode)}, and the preset asks for {format_rate(floor)}"
    )
    anyway = replace(request, quantization=name, min_decode_tokens_per_s=None)
    lines = [f"without the preset's floor: {typed.command('plan', anyway)}"]
    if fastest.verdict != "gpu" and machine.devices:
        lines += [f"{a.text}: {a.command}" for a in avoid_offload(fastest, (), anyway, machine, typed, list_gpus())]
    return DoesNotFit(message, hint="\n".join(lines))


def _ways_out(
    option: Option, options: Sequence[Option], request: PlanRequest, machine: Machine, typed: Invocation
) -> str:
    lines = [f"{a.text}: {a.command}" for a in avoid_offload(option, options, request, machine, typed, list_gpus())]
    best = next((o for o in options if o.verdict not in ("impossible", "gpu")), None)
    if not lines and best is not None:
        name = best.candidate.quantization
        lines = [f"{name} would run: {typed.command('plan', replace(request, quantization=name))}"]
    return "\n".join(lines)
