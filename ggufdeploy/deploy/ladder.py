"""Which of a source's quantizations fit a machine, by formulas alone: quick, and from at most 64 KiB of one file."""

from __future__ import annotations

from dataclasses import dataclass

from ggufdeploy.deploy.planning import prepare
from ggufdeploy.deploy.sources import Source
from ggufdeploy.deploy.wish import Wish, make_request
from ggufdeploy.errors import AccessDenied, BadGguf, GgufdeployError, NotFound, Unreachable
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.hub.catalog import Artifact
from ggufdeploy.planner.budget import HOST_MARGIN_BYTES, budget_bytes
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.placement import Strategy
from ggufdeploy.planner.request import HeaderSource
from ggufdeploy.planner.search import Option, Verdict, search


@dataclass(frozen=True)
class Fit:
    """How one quantization would run; figures are estimates.

    n_gpu_layers of n_layers_total as llama.cpp counts them. n_host_expert_layers: layers whose experts are in RAM.
    free_bytes: what a plan may still use beside it, of VRAM when all of it is on GPUs, of RAM when none is; else null.
    short_bytes: VRAM missing for all of it to be on GPUs, 0 when it is, null without a GPU.
    """

    verdict: Verdict
    strategy: Strategy
    n_gpu_layers: int
    n_layers_total: int
    n_host_expert_layers: int
    free_bytes: int | None
    short_bytes: int | None


@dataclass(frozen=True)
class Rung:
    """One quantization. bits_per_weight, fit: None when unknown."""

    artifact: Artifact
    bits_per_weight: float | None
    fit: Fit | None


@dataclass(frozen=True)
class Ladder:
    """Every quantization, the largest first. problem: why no fit is known, None when they are."""

    rungs: tuple[Rung, ...]
    context_tokens: int
    slots: int
    header_source: HeaderSource | None
    problem: GgufdeployError | None


def judge(source: Source, wish: Wish, machine: Machine) -> Ladder:
    """Judge every quantization of `source` for `wish` on `machine`.

    Without any header, and with a profile that does not tell the shape either, the sizes alone are the answer, and
    `problem` says why. Raises BadValue for a wish that the model or the engine cannot meet.
    """
    artifacts = sorted(source.artifacts, key=lambda artifact: -artifact.total_bytes)
    try:
        candidates, request = prepare(source, wish, machine)
        found = candidates.all()
    except (AccessDenied, BadGguf, NotFound, Unreachable) as problem:
        bare = tuple(Rung(artifact, None, None) for artifact in artifacts)
        request = make_request(wish, source.profile)
        return Ladder(bare, request.context_tokens, request.slots, None, problem)
    options = search(found, request, machine, FormulaMemory()).ladder
    fits = {option.candidate.quantization: _fit(option, machine) for option in options}
    n_params = candidates.n_params
    rungs = tuple(
        Rung(artifact, artifact.total_bytes * 8 / n_params if n_params else None, fits[artifact.quantization])
        for artifact in artifacts
    )
    return Ladder(rungs, request.context_tokens, request.slots, found[0].header_source, None)


def _fit(option: Option, machine: Machine) -> Fit:
    placement = option.placement
    return Fit(
        option.verdict,
        placement.strategy,
        placement.n_gpu_layers,
        placement.n_layers_total,
        placement.cpu_expert_layers,
        _free_bytes(option, machine),
        option.short_bytes if machine.devices else None,
    )


def _free_bytes(option: Option, machine: Machine) -> int | None:
    if option.verdict == "gpu":
        budgets = (budget_bytes(device, option.request) for device in machine.devices)
        pairs = zip(budgets, option.usage.devices, strict=True)
        return sum(max(budget - part.total_bytes, 0) for budget, part in pairs)
    if option.verdict == "cpu":
        return machine.ram_available_bytes - HOST_MARGIN_BYTES - option.usage.host.total_bytes
    return None
