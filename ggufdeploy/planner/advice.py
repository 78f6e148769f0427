"""What would help when a plan is slow or impossible: each piece of advice is a fact with the command that uses it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggufdeploy.hardware.catalog import GpuSpec, simulate
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.memory import FormulaMemory, MemoryModel
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import CONTEXT_STEP_TOKENS, Candidate, PlanRequest
from ggufdeploy.planner.search import Option, evaluate, fits, spread
from ggufdeploy.units import format_rate


@dataclass(frozen=True)
class Advice:
    """text: what it brings, with numbers. command: what to type; None when it is not a command of ours."""

    text: str
    command: str | None


def longest_context_tokens(
    candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel
) -> int | None:
    """Return the longest context with everything on GPUs, at most the training context; None if none fits."""
    limit = candidate.info.context_train_tokens or request.context_tokens
    low, high = 0, max(limit // CONTEXT_STEP_TOKENS, 1)
    while low < high:
        middle = (low + high + 1) // 2
        wish = replace(request, context_tokens=middle * CONTEXT_STEP_TOKENS)
        full = spread(candidate.info.n_layers + 1, candidate, wish, machine, memory)
        if fits(memory.usage(candidate.info, wish, full), machine, wish):
            low = middle
        else:
            high = middle - 1
    return low * CONTEXT_STEP_TOKENS or None


def command(verb: str, ref: str, **flags: object) -> str:
    """Return a `ggufdeploy` command line; flags that are None are left out."""
    words = ["ggufdeploy", verb, ref]
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def avoid_offload(
    chosen: Option,
    options: Sequence[Option],
    request: PlanRequest,
    machine: Machine,
    ref: str,
    gpus: Sequence[GpuSpec],
) -> tuple[Advice, ...]:
    """Return the ways to have everything in VRAM: a smaller quantization, context or KV type, more or other GPUs."""
    memory = FormulaMemory()
    found = [
        _smaller_quantization(options, request, ref),
        _shorter_context(chosen, request, machine, memory, ref),
        _smaller_kv(chosen, request, machine, memory, ref),
        _other_gpu(chosen, request, machine, gpus, ref),
    ]
    return tuple(advice for advice in found if advice is not None)


def _smaller_quantization(options: Sequence[Option], request: PlanRequest, ref: str) -> Advice | None:
    for option in options:
        if option.verdict == "gpu":
            name = option.candidate.quantization
            rate = option.speed.decode_tokens_per_s
            speed = f", about {format_rate(rate)}" if rate else ""
            line = command("run", ref, quant=name, ctx=request.context_tokens)
            return Advice(f"{name} runs wholly in VRAM at this context{speed}", line)
    return None


def _shorter_context(
    chosen: Option, request: PlanRequest, machine: Machine, memory: MemoryModel, ref: str
) -> Advice | None:
    tokens = longest_context_tokens(chosen.candidate, request, machine, memory)
    if tokens is None or tokens >= request.context_tokens:
        return None
    name = chosen.candidate.quantization
    text = f"{name} is wholly in VRAM up to {tokens:,} tokens of context"
    return Advice(text, command("run", ref, quant=name, ctx=tokens))


def _smaller_kv(chosen: Option, request: PlanRequest, machine: Machine, memory: MemoryModel, ref: str) -> Advice | None:
    if request.kv_type != "f16":
        return None
    wish = replace(request, kv_type="q8_0")
    option = evaluate(chosen.candidate, wish, machine, memory)
    if option.verdict != "gpu":
        return None
    name = chosen.candidate.quantization
    line = command("run", ref, quant=name, ctx=request.context_tokens, kv_type="q8_0")
    return Advice(f"with a q8_0 KV cache {name} is wholly in VRAM", line)


def _other_gpu(
    chosen: Option, request: PlanRequest, machine: Machine, gpus: Sequence[GpuSpec], ref: str
) -> Advice | None:
    """Return more of the same GPU if the machine has a known one, else the smallest single GPU that holds it."""
    name = chosen.candidate.quantization
    ids = {device.catalogue_id for device in machine.devices}
    same = [spec for spec in gpus if spec.id in ids]
    for spec, count in [(s, n) for s in same for n in (2, 4, 8)] or [(s, 1) for s in by_memory(gpus)]:
        if _holds(chosen.candidate, request, simulate(spec, count, base=machine)):
            gpu = spec.id if count == 1 else f"{spec.id}:{count}"
            line = command("plan", ref, quant=name, ctx=request.context_tokens, gpu=gpu)
            what = f"{count} x {spec.name} hold" if count > 1 else f"one {spec.name} holds"
            return Advice(f"{what} {name} wholly in VRAM", line)
    return None


def by_memory(gpus: Sequence[GpuSpec]) -> list[GpuSpec]:
    """Return the GPUs smallest first."""
    return sorted(gpus, key=lambda spec: spec.llama_free_bytes)


def _holds(candidate: Candidate, request: PlanRequest, machine: Machine) -> bool:
    memory = FormulaMemory()
    full: Placement = spread(candidate.info.n_layers + 1, candidate, request, machine, memory)
    return fits(memory.usage(candidate.info, request, full), machine, request)
