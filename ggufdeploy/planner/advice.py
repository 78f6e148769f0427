"""What would help when a plan is slow or impossible: each piece of advice is a fact with the command that uses it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ggufdeploy.hardware.catalog import GpuSpec, simulate
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.memory import FormulaMemory, MemoryModel, kv_type_misfit
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import CONTEXT_STEP_TOKENS, Candidate, PlanRequest
from ggufdeploy.planner.search import Option, evaluate, fits, spread
from ggufdeploy.units import format_rate


@dataclass(frozen=True)
class Advice:
    """text: what it brings, with numbers. command: what to type; None when it is not a command of ours."""

    text: str
    command: str | None


_MIN_CONTEXT_TOKENS = 2048
"""A shorter context is no advice."""


@dataclass(frozen=True)
class Invocation:
    """What the user typed: the model, and the flags besides quantization, context and KV type that stay as they are."""

    ref: str
    flags: Mapping[str, object] = field(default_factory=dict)

    def command(self, verb: str, request: PlanRequest, **flags: object) -> str:
        """Return a command line for `request` with the user's other flags; None leaves a flag out."""
        kv_type = None if request.kv_type == "f16" else request.kv_type
        words = ["ggufdeploy", verb, self.ref]
        asked = {"quant": request.quantization, "ctx": request.context_tokens, "kv_type": kv_type}
        for name, value in {**asked, **self.flags, **flags}.items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)


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


def avoid_offload(
    chosen: Option,
    options: Sequence[Option],
    request: PlanRequest,
    machine: Machine,
    typed: Invocation,
    gpus: Sequence[GpuSpec],
) -> tuple[Advice, ...]:
    """Return the ways to have everything in VRAM: a smaller quantization, context or KV type, more or other GPUs."""
    memory = FormulaMemory()
    same = replace(request, quantization=chosen.candidate.quantization)
    found = [
        _smaller_quantization(options, request, typed),
        _shorter_context(chosen, same, machine, memory, typed),
        _smaller_kv(chosen, same, machine, memory, typed),
        _other_gpu(chosen, same, machine, gpus, typed),
    ]
    return tuple(advice for advice in found if advice is not None)


def _smaller_quantization(options: Sequence[Option], request: PlanRequest, typed: Invocation) -> Advice | None:
    for option in options:
        if option.verdict == "gpu":
            name = option.candidate.quantization
            rate = option.speed.decode_tokens_per_s
            speed = f", about {format_rate(rate)}" if rate else ""
            line = typed.command("run", replace(request, quantization=name))
            return Advice(f"{name} runs wholly in VRAM at this context{speed}", line)
    return None


def _shorter_context(
    chosen: Option, request: PlanRequest, machine: Machine, memory: MemoryModel, typed: Invocation
) -> Advice | None:
    tokens = longest_context_tokens(chosen.candidate, request, machine, memory)
    if tokens is None or not _MIN_CONTEXT_TOKENS <= tokens < request.context_tokens:
        return None
    text = f"{request.quantization} is wholly in VRAM up to {tokens:,} tokens of context"
    return Advice(text, typed.command("run", replace(request, context_tokens=tokens)))


def _smaller_kv(
    chosen: Option, request: PlanRequest, machine: Machine, memory: MemoryModel, typed: Invocation
) -> Advice | None:
    wish = replace(request, kv_type="q8_0")
    if request.kv_type not in ("f16", "bf16", "f32") or kv_type_misfit(chosen.candidate.info, wish.kv_type) is not None:
        return None
    if evaluate(chosen.candidate, wish, machine, memory).verdict != "gpu":
        return None
    return Advice(f"with a q8_0 KV cache {request.quantization} is wholly in VRAM", typed.command("run", wish))


def _other_gpu(
    chosen: Option, request: PlanRequest, machine: Machine, gpus: Sequence[GpuSpec], typed: Invocation
) -> Advice | None:
    """Return more of the same GPU if the machine has a known one, else the smallest single GPU that holds it."""
    ids = {device.catalogue_id for device in machine.devices}
    same = [(spec, n) for spec in gpus if spec.id in ids for n in (2, 4, 8) if n > len(machine.devices)]
    for spec, count in same + [(spec, 1) for spec in by_memory(gpus)]:
        if _holds(chosen.candidate, request, simulate(spec, count, base=machine)):
            gpu = spec.id if count == 1 else f"{spec.id}:{count}"
            line = typed.command("plan", request, gpu=gpu)
            what = f"{count} x {spec.name} hold" if count > 1 else f"one {spec.name} holds"
            return Advice(f"{what} {request.quantization} wholly in VRAM", line)
    return None


def by_memory(gpus: Sequence[GpuSpec]) -> list[GpuSpec]:
    """Return the GPUs smallest first."""
    return sorted(gpus, key=lambda spec: spec.llama_free_bytes)


def _holds(candidate: Candidate, request: PlanRequest, machine: Machine) -> bool:
    memory = FormulaMemory()
    full: Placement = spread(candidate.info.n_layers + 1, candidate, request, machine, memory)
    return fits(memory.usage(candidate.info, request, full), machine, request)
