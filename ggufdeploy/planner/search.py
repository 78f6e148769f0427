"""Which quantization, and which placement of it: for every candidate the best placement, then the best candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner import quality
from ggufdeploy.planner.memory import FormulaMemory, MemoryModel, Usage
from ggufdeploy.planner.packing import balanced
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import Candidate, PlanRequest
from ggufdeploy.planner.speed import Speed, predict
from ggufdeploy.units import GIB, MIB

Verdict = Literal["gpu", "offload", "cpu", "disk", "impossible"]

# Kept free on each GPU. H100: text serving grew by about 65 MiB after the load (two published nvidia-smi accounts), so
# 384 MiB is ample; any other GPU keeps llama.cpp's own default of 1 GiB.
_MARGIN_BYTES = {"h100-sxm": 384 * MIB, "h100-pcie": 384 * MIB}
DEFAULT_MARGIN_BYTES = GIB
# Outside llama.cpp's own account: cuBLAS workspace (32 MiB from compute capability 9.0 on, else 4 MiB) and the pool for
# quantized activations, 65 to 190 MiB in text serving. Source: llama.cpp ggml-cuda/common.cuh; docs/memory-model.md.
_POOL_BYTES = 190 * MIB
# The host keeps this much for everything else that runs.
HOST_MARGIN_BYTES = GIB
# Weights that stay in RAM are mapped from the file, so more of them than RAM means reading from disk at every token;
# beyond this multiple of RAM that is no longer a deployment.
_DISK_LIMIT = 2
# `balanced` offloads the best quantization that keeps this share of the speed of the fastest acceptable one.
_BALANCED_SPEED_SHARE = 0.7


@dataclass(frozen=True)
class Option:
    """One candidate at its best placement. short_bytes: VRAM missing to hold all of it, 0 when it fits."""

    candidate: Candidate
    placement: Placement
    usage: Usage
    verdict: Verdict
    speed: Speed
    all_gpu_speed: Speed
    short_bytes: int

    @property
    def quality(self) -> float | None:
        """See `quality.quality`."""
        return quality.quality(self.candidate.quantization)

    @property
    def decode(self) -> float:
        """Decode tokens/s for comparing; an unknown speed compares as 0."""
        return self.speed.decode_tokens_per_s or 0.0


@dataclass(frozen=True)
class SearchResult:
    """options: every candidate, best quality first. chosen: None when nothing can run."""

    chosen: Option | None
    options: tuple[Option, ...]


def margin_bytes(device: Device) -> int:
    """Return what stays free on this GPU, before the user's own reserve."""
    if device.display:
        return DEFAULT_MARGIN_BYTES
    return _MARGIN_BYTES.get(device.catalogue_id or "", DEFAULT_MARGIN_BYTES)


def overhead_bytes(device: Device) -> int:
    """Return what the engine allocates on this GPU outside llama.cpp's own account."""
    if device.kind == "rpc":
        return 0
    major = int((device.compute_capability or "0").split(".")[0])
    return _POOL_BYTES + (32 if major >= 9 else 4) * MIB


def budget_bytes(device: Device, request: PlanRequest) -> int:
    """Return the bytes llama.cpp may allocate on this GPU."""
    margin = 0 if device.kind == "rpc" else margin_bytes(device)
    return device.free_bytes - margin - overhead_bytes(device) - request.reserve_bytes


def fits(usage: Usage, machine: Machine, request: PlanRequest) -> bool:
    """Tell whether every device holds its part."""
    return all(
        part.total_bytes <= budget_bytes(device, request)
        for part, device in zip(usage.devices, machine.devices, strict=True)
        if part.total_bytes
    )


def spread(
    items: int, candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel, *, experts: int = 0
) -> Placement:
    """Distribute `items` (the output layer plus the last blocks) over the GPUs.

    One GPU when one holds everything, the fastest such; else all of them, equally full. experts: the first this many
    blocks keep their experts on the host.
    """
    info, n_devices = candidate.info, len(machine.devices)
    if n_devices <= 1 or items == 0:
        return Placement(info.n_layers, (items,) * n_devices, experts)
    for index in sorted(range(n_devices), key=lambda i: -(machine.devices[i].bandwidth_bytes_per_s or 0)):
        single = Placement(info.n_layers, tuple(items if d == index else 0 for d in range(n_devices)), experts)
        # The formula first, because the engine takes a fraction of a second per question.
        if all(fits(m.usage(info, request, single), machine, request) for m in (FormulaMemory(), memory)):
            return single
    return balanced(info, request, items, experts, [budget_bytes(device, request) for device in machine.devices])


def best_placement(
    candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel
) -> tuple[Placement, Usage]:
    """Return everything on GPUs if that fits, else what the offload policy allows, else the CPU."""
    info = candidate.info
    full = spread(info.n_layers + 1, candidate, request, machine, memory)
    usage = memory.usage(info, request, full)
    if not machine.devices or request.offload == "none" or fits(usage, machine, request):
        return full, usage
    if request.offload == "experts" and info.n_experts:
        placed = _fewest_host_experts(candidate, request, machine, memory)
        if placed is not None:
            return placed
    return _most_layers(candidate, request, machine, memory)


def _most_layers(
    candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel
) -> tuple[Placement, Usage]:
    """Return the largest `n_gpu_layers` that fits; memory grows with every layer, so bisection finds it."""
    info = candidate.info

    def at(items: int) -> tuple[Placement, Usage]:
        placement = spread(items, candidate, request, machine, memory)
        return placement, memory.usage(info, request, placement)

    low, high = 0, info.n_layers  # `low` fits: nothing is on a GPU; `high` + 1 does not
    while low < high:
        middle = (low + high + 1) // 2
        if fits(at(middle)[1], machine, request):
            low = middle
        else:
            high = middle - 1
    return at(low)


def _fewest_host_experts(
    candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel
) -> tuple[Placement, Usage] | None:
    """Return the placement with the experts of the fewest first layers on the host, None if even all are too few."""
    info = candidate.info

    def at(experts: int) -> tuple[Placement, Usage]:
        placement = spread(info.n_layers + 1, candidate, request, machine, memory, experts=experts)
        return placement, memory.usage(info, request, placement)

    low, high = 1, info.n_layers
    if not fits(at(high)[1], machine, request):
        return None
    while low < high:
        middle = (low + high) // 2
        if fits(at(middle)[1], machine, request):
            high = middle
        else:
            low = middle + 1
    return at(low)


def host_verdict(usage: Usage, machine: Machine, on_gpu: bool) -> Verdict:
    """Say what the host's share means: it fits in RAM, is read from disk, or is out of the question.

    KV and compute buffers must be in RAM; weights are mapped from the file and can be read again from disk.
    """
    fixed = usage.host.kv_bytes + usage.host.compute_bytes
    room = machine.ram_available_bytes - HOST_MARGIN_BYTES
    if fixed > room or usage.host.weights_bytes > _DISK_LIMIT * machine.ram_total_bytes:
        return "impossible"
    if fixed + usage.host.weights_bytes > room:
        return "disk"
    return "offload" if on_gpu else "cpu"


def evaluate(candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel) -> Option:
    """Place one candidate as well as possible and say what comes of it."""
    placement, usage = best_placement(candidate, request, machine, memory)
    return as_option(candidate, request, machine, memory, placement, usage)


def as_option(
    candidate: Candidate,
    request: PlanRequest,
    machine: Machine,
    memory: MemoryModel,
    placement: Placement,
    usage: Usage,
) -> Option:
    """Judge a placement: verdict, speed, and what is missing for everything to be on GPUs."""
    info = candidate.info
    full = Placement(info.n_layers, (info.n_layers + 1,) + (0,) * max(len(machine.devices) - 1, 0))
    all_gpu = predict(info, request, full, machine) if machine.devices else Speed(None, None, False)
    verdict: Verdict
    if machine.devices and placement.strategy == "full":
        verdict = "gpu" if fits(usage, machine, request) else "impossible"
    else:
        verdict = host_verdict(usage, machine, placement.n_gpu_layers > 0)
    short = 0
    if machine.devices and verdict != "gpu":
        whole = memory.usage(info, request, spread(info.n_layers + 1, candidate, request, machine, memory))
        short = max(_short_bytes(whole, machine, request), 1)
    speed = predict(info, request, placement, machine)
    return Option(candidate, placement, usage, verdict, speed, all_gpu, short)


def _short_bytes(usage: Usage, machine: Machine, request: PlanRequest) -> int:
    """Return the VRAM that is missing: of all cards together, or more where a layer fits into no single rest."""
    parts = list(zip(usage.devices, (budget_bytes(device, request) for device in machine.devices), strict=True))
    together = sum(part.total_bytes for part, _ in parts) - sum(max(budget, 0) for _, budget in parts)
    return max(together, sum(max(part.total_bytes - max(budget, 0), 0) for part, budget in parts))


def search(
    candidates: Sequence[Candidate], request: PlanRequest, machine: Machine, memory: MemoryModel
) -> SearchResult:
    """Evaluate every candidate and choose by the request's preference."""
    options = [evaluate(candidate, request, machine, memory) for candidate in candidates]
    options.sort(key=_quality_key)
    return SearchResult(choose(options, request), tuple(options))


def _quality_key(option: Option) -> tuple[float, int]:
    place = quality.rank(option.candidate.quantization)
    return (place if place is not None else 1000.0, -option.candidate.total_bytes)


def eligible(options: Sequence[Option], request: PlanRequest) -> list[Option]:
    """Return the options that run and that the request allows, whatever their speed; from disk only if nothing else."""
    wanted = request.quantization
    named = [o for o in options if wanted is None or o.candidate.quantization.upper() == wanted.upper()]
    running = [o for o in named if o.verdict != "impossible"]
    return [o for o in running if o.verdict != "disk"] or running


def fast_enough(option: Option, request: PlanRequest) -> bool:
    """Tell whether the speed floor is met; nothing speaks against an unknown speed."""
    floor, rate = request.min_decode_tokens_per_s, option.speed.decode_tokens_per_s
    return floor is None or rate is None or rate >= floor


def choose(options: Sequence[Option], request: PlanRequest) -> Option | None:
    """Choose among options that are sorted by quality, best first. None when none runs, or none is fast enough."""
    usable = [o for o in eligible(options, request) if fast_enough(o, request)]
    if not usable:
        return None
    if request.quantization is not None or request.prefer == "quality":
        return usable[0]
    good = [o for o in usable if quality.meets_floor(o.candidate.quantization)]
    if request.prefer == "speed":
        return max(good or usable, key=lambda o: o.decode)
    pool = good or usable
    on_gpu = [o for o in pool if o.verdict == "gpu"]
    if on_gpu:
        return on_gpu[0]
    fastest = max(o.decode for o in pool)
    return next(o for o in pool if o.decode >= _BALANCED_SPEED_SHARE * fastest)
