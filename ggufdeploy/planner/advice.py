"""What would help when a plan is slow or impossible: each piece of advice is a fact with the command that uses it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ggufdeploy.hardware.catalog import GpuSpec, simulate
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.budget import fits
from ggufdeploy.planner.fitting import whole
from ggufdeploy.planner.memory import FormulaMemory, MemoryModel, kv_type_misfit
from ggufdeploy.planner.request import Candidate, PlanRequest
from ggufdeploy.planner.search import Option, evaluate, longest_context_tokens
from ggufdeploy.units import format_rate


@dataclass(frozen=True)
class Advice:
    """text: what it brings, with numbers. command: what to type; None when it is not a command of ours."""

    text: str
    command: str | None


_MIN_CONTEXT_TOKENS = 2048
"""A shorter context is no advice."""
USEFUL_TOKENS_PER_S = 10.0
"""About as fast as one reads; another model is advised only if it runs faster, or as fast as the floor asked for."""
_MODELS_NAMED = 3


@dataclass(frozen=True)
class Invocation:
    """What the user typed: the model, and the flags besides quantization, context and KV type that stay as they are.

    A flag that may be given several times has a tuple of its values.
    """

    ref: str
    flags: Mapping[str, object] = field(default_factory=dict)

    def command(self, verb: str, request: PlanRequest, *, ref: str | None = None, **flags: object) -> str:
        """Return a command line for `request` with the user's other flags; None leaves a flag out."""
        kv_type = None if request.other_kv_types else request.kv_type
        words = ["ggufdeploy", verb, ref or self.ref]
        asked = {"quant": request.quantization, "ctx": request.context_tokens, "kv_type": kv_type}
        for name, value in {**asked, **self.flags, **flags}.items():
            for item in value if isinstance(value, tuple) else (value,):
                if item is not None:
                    words += [f"--{name.replace('_', '-')}", str(item)]
        return shlex.join(words)


@dataclass(frozen=True)
class OtherModel:
    """A model that could run instead, at an estimated size. name: what to type."""

    name: str
    candidate: Candidate


def numbered(advice: Sequence[Advice]) -> str:
    """Return the advice as a numbered list, one line each; empty without any."""
    lines = [f"{item.text}: {item.command}" if item.command else item.text for item in advice]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def avoid_offload(
    chosen: Option,
    options: Sequence[Option],
    request: PlanRequest,
    machine: Machine,
    typed: Invocation,
    gpus: Sequence[GpuSpec],
    models: Sequence[OtherModel] = (),
) -> tuple[Advice, ...]:
    """Return the ways out of a plan that is slow or impossible, the nearest to the wish first.

    Another quantization, a q8_0 KV cache, a smaller context, experts or layers in RAM, more of this GPU, another GPU,
    another model.
    """
    memory = FormulaMemory()
    same = replace(request, quantization=chosen.candidate.quantization)
    found = [
        _smaller_quantization(options, request, typed),
        _smaller_kv(chosen, same, machine, memory, typed),
        _shorter_context(chosen, same, machine, memory, typed),
        _part_in_ram(chosen, same, machine, memory, typed),
        _more_of_the_same(chosen, same, machine, gpus, typed),
        _one_gpu(chosen, same, machine, gpus, typed),
        *models_that_run(models, request, machine, typed),
    ]
    return tuple(advice for advice in found if advice is not None)


def _smaller_quantization(options: Sequence[Option], request: PlanRequest, typed: Invocation) -> Advice | None:
    for option in options:
        if option.verdict == "gpu":
            name, kv_type = option.key
            with_kv = f" with a {kv_type} KV cache" if kv_type != request.kv_type else ""
            line = typed.command("run", replace(request, quantization=name))
            return Advice(f"{name} runs wholly in VRAM at this context{with_kv}{_about(option)}", line)
    return None


def _about(option: Option) -> str:
    rate = option.speed.decode_tokens_per_s
    return f", about {format_rate(rate)}" if rate else ""


def _shorter_context(
    chosen: Option, request: PlanRequest, machine: Machine, memory: MemoryModel, typed: Invocation
) -> Advice | None:
    wish = replace(request, kv_pool_tokens=None)
    tokens = longest_context_tokens(chosen.candidate, wish, machine, memory) if machine.devices else None
    if tokens is None or not _MIN_CONTEXT_TOKENS <= tokens < request.context_tokens:
        return None
    text = f"{request.quantization} is wholly in VRAM up to {tokens:,} tokens of context"
    return Advice(text, typed.command("run", replace(request, context_tokens=tokens), kv_pool=None))


def _smaller_kv(
    chosen: Option, request: PlanRequest, machine: Machine, memory: MemoryModel, typed: Invocation
) -> Advice | None:
    wish = replace(request, kv_type="q8_0", other_kv_types=())
    if request.kv_type not in ("f16", "bf16", "f32") or kv_type_misfit(chosen.candidate.info, wish.kv_type) is not None:
        return None
    if evaluate(chosen.candidate, wish, machine, memory).verdict != "gpu":
        return None
    return Advice(f"with a q8_0 KV cache {request.quantization} is wholly in VRAM", typed.command("run", wish))


def _part_in_ram(
    chosen: Option, request: PlanRequest, machine: Machine, memory: MemoryModel, typed: Invocation
) -> Advice | None:
    """Return what a stricter offload policy than `auto` forbids: experts in RAM, or layers of a dense model."""
    if request.offload == "auto" or not machine.devices or chosen.placement.strategy == "experts":
        return None
    option = evaluate(chosen.candidate, replace(request, offload="auto"), machine, memory)
    if option.verdict != "offload" or (chosen.verdict == "offload" and option.decode <= chosen.decode):
        return None
    what = "experts" if option.placement.cpu_expert_layers else "layers"
    policy = "experts" if option.placement.strategy == "experts" else "auto"
    line = typed.command("run", request, offload=policy)
    return Advice(f"with some of its {what} in RAM {request.quantization} runs{_about(option)}", line)


def _more_of_the_same(
    chosen: Option, request: PlanRequest, machine: Machine, gpus: Sequence[GpuSpec], typed: Invocation
) -> Advice | None:
    ids = {device.catalogue_id for device in machine.devices}
    for spec in gpus:
        for count in (2, 4, 8) if spec.id in ids else ():
            if count > len(machine.devices) and _holds(chosen, request, simulate(spec, count, base=machine)):
                line = typed.command("plan", request, gpu=f"{spec.id}:{count}", vram_budget=None)
                return Advice(f"{count} x {spec.name} hold {request.quantization} wholly in VRAM", line)
    return None


def _one_gpu(
    chosen: Option, request: PlanRequest, machine: Machine, gpus: Sequence[GpuSpec], typed: Invocation
) -> Advice | None:
    """Return the smallest single GPU that would do."""
    for spec in by_memory(gpus):
        if _holds(chosen, request, simulate(spec, 1, base=machine)):
            line = typed.command("plan", request, gpu=spec.id, vram_budget=None)
            return Advice(f"one {spec.name} holds {request.quantization} wholly in VRAM", line)
    return None


def models_that_run(
    models: Sequence[OtherModel], request: PlanRequest, machine: Machine, typed: Invocation
) -> list[Advice]:
    """Return the largest models that run wholly in VRAM (in RAM without a GPU) at a useful speed."""
    floor = request.min_decode_tokens_per_s or USEFUL_TOKENS_PER_S
    wish = replace(request, quantization=None, kv_type="f16")
    found = []
    for model in sorted(models, key=lambda model: -model.candidate.info.n_params):
        trained = model.candidate.info.context_train_tokens
        if trained is not None and trained < request.context_tokens:
            continue
        option = evaluate(model.candidate, wish, machine, FormulaMemory())
        if option.verdict in ("gpu", "cpu") and option.decode >= floor and (machine.devices or option.verdict == "cpu"):
            text = f"{model.name} runs wholly {'in VRAM' if machine.devices else 'in RAM'}{_about(option)} (estimate)"
            found.append(Advice(text, typed.command("plan", wish, ref=model.name)))
    return found[:_MODELS_NAMED]


def by_memory(gpus: Sequence[GpuSpec]) -> list[GpuSpec]:
    """Return the GPUs smallest first."""
    return sorted(gpus, key=lambda spec: spec.llama_free_bytes)


def _holds(chosen: Option, request: PlanRequest, machine: Machine) -> bool:
    wish = replace(request, vram_budgets=())
    return fits(whole(chosen.candidate, wish, machine, FormulaMemory())[1], machine, wish)
