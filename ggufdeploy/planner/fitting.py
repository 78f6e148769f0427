"""The best placement of one model under the budgets: as little as possible in system RAM, exactly.

Whether a placement fits is monotone in what is moved to the host, except where a larger host weight enters the staging
buffer (`memory.staging_bytes`). So the search goes through the stretches between such weights and bisects within one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.budget import budget_bytes, fits, short_bytes
from ggufdeploy.planner.kv import kv_layer_bytes
from ggufdeploy.planner.memory import FormulaMemory, MemoryModel, Usage
from ggufdeploy.planner.packing import balanced
from ggufdeploy.planner.placement import Placement, on_cpu
from ggufdeploy.planner.request import Candidate, PlanRequest
from ggufdeploy.planner.speed import predict

Placed = tuple[Placement, Usage]
T = TypeVar("T")


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


def whole(candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel) -> Placed:
    """Return everything on GPUs, whether it fits or not; without a GPU, everything on the host."""
    placement = spread(candidate.info.n_layers + 1, candidate, request, machine, memory)
    return placement, memory.usage(candidate.info, request, placement)


def offloaded(candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel) -> Placed:
    """Return the best placement for a model that is not wholly in VRAM, as the offload policy allows.

    The formulas say which kind of placement and about how much; another memory model, which may take a fraction of a
    second per question, then only moves the boundary.
    """
    sketch = _fastest(candidate, request, machine, FormulaMemory())
    if memory == FormulaMemory():
        return sketch
    placement = sketch[0]
    if placement.strategy != "experts":
        host = placement.n_layers_total - placement.n_gpu_layers
        return most_layers(candidate, request, machine, memory, experts=placement.cpu_expert_layers, guess=host)
    found = fewest_host_experts(candidate, request, machine, memory, guess=placement.cpu_expert_layers)
    return found or _fastest(candidate, request, machine, memory)


def _fastest(candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel) -> Placed:
    """Return the fastest kind of placement that the policy allows.

    A mixture of experts first gives up experts: a token reads few of them, so they cost the least speed where the RAM
    is slow. `auto` compares that with moving whole layers and takes the faster; experts on a tie.
    """
    info = candidate.info
    missing = short_bytes(whole(candidate, request, machine, memory)[1], machine, request)
    experts = _how_many(missing, [layer.expert_bytes for layer in info.layers])
    layers = _how_many(missing, [layer.total_bytes + kv_layer_bytes(layer, request) for layer in info.layers])
    placed: list[Placed | None] = []
    if info.n_experts and request.offload in ("auto", "experts"):
        placed = [fewest_host_experts(candidate, request, machine, memory, guess=experts)]
        if placed[0] is None:  # the dense part alone is too large: as much of it as fits, and no expert
            placed = [most_layers(candidate, request, machine, memory, experts=info.n_layers)]
    if request.offload != "experts" or not placed:
        placed.append(most_layers(candidate, request, machine, memory, guess=layers))
    found = [item for item in placed if item is not None]
    rates = [predict(info, request, placement, machine).decode_tokens_per_s or 0.0 for placement, _ in found]
    return found[rates.index(max(rates))]


def _how_many(missing_bytes: int, sizes: Sequence[int]) -> int | None:
    """Return about how many of the sizes make up for the bytes that are missing; None when they are nothing."""
    total = sum(sizes)
    return min(max(-(-missing_bytes * len(sizes) // total), 1), len(sizes)) if total else None


def most_layers(
    candidate: Candidate,
    request: PlanRequest,
    machine: Machine,
    memory: MemoryModel,
    *,
    experts: int = 0,
    guess: int | None = None,
) -> Placed:
    """Return the largest `n_gpu_layers` that fits, below all of them; 0 when not even the output layer does.

    experts: the first this many blocks keep their experts on the host. guess: how many blocks probably stay there.
    """
    info = candidate.info

    def at(host_blocks: int) -> Placed:
        items = info.n_layers + 1 - host_blocks
        placement = spread(items, candidate, request, machine, memory, experts=experts)
        return placement, memory.usage(info, request, placement)

    copies = [layer.largest_host_copy_bytes for layer in info.layers]
    found = _first_fitting(at, copies, lambda placed: fits(placed[1], machine, request), guess)
    if found is None:
        nothing = on_cpu(info.n_layers, len(machine.devices))
        return nothing, memory.usage(info, request, nothing)
    return found


def fewest_host_experts(
    candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel, *, guess: int | None = None
) -> Placed | None:
    """Return all layers on GPUs, the experts of the fewest first blocks on the host; None if even all are too few.

    guess: of how many blocks, probably.
    """
    info = candidate.info

    def at(experts: int) -> Placed:
        placement = spread(info.n_layers + 1, candidate, request, machine, memory, experts=experts)
        return placement, memory.usage(info, request, placement)

    copies = [layer.largest_host_copy_bytes if layer.expert_bytes else 0 for layer in info.layers]
    return _first_fitting(at, copies, lambda placed: fits(placed[1], machine, request), guess)


def _stretches(copies: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs (first, last) of 1..n in which the largest of the first i copies stays the same."""
    starts, largest = [], -1
    for count, copy in enumerate(copies, start=1):
        if copy > largest:
            starts.append(count)
            largest = copy
    return list(zip(starts, [start - 1 for start in starts[1:]] + [len(copies)], strict=True))


def _first_fitting(
    at: Callable[[int], Placed], copies: Sequence[int], good: Callable[[Placed], bool], guess: int | None
) -> Placed | None:
    """Return `at` the smallest of 1..n that is good, None when none is. copies: what each of the n adds to staging."""
    for low, high in _stretches(copies):
        near = guess if guess is not None and low <= guess <= high else None
        found = smallest(at, low, high, good, near)
        if found is not None:
            return found
    return None


def smallest(
    at: Callable[[int], T], low: int, high: int, good: Callable[[T], bool], guess: int | None = None
) -> T | None:
    """Return `at` the smallest of low..high that is good, None when none is; from a good one on, all must be.

    guess: where to begin, with growing steps until the boundary is surrounded; without it, bisect.
    """
    best: T | None = None
    bad_below, good_from, step = low, high + 1, 1
    probe = high if guess is None else guess
    while bad_below < good_from:
        found = at(probe)
        if good(found):
            best, good_from = found, probe
        else:
            bad_below = probe + 1
        if guess is not None and best is None:
            probe = min(bad_below + step - 1, high)
        elif guess is not None and bad_below == low:
            probe = max(good_from - step, low)
        else:
            probe = (bad_below + good_from) // 2
        step *= 2
    return best


def longest(limit_steps: int, good: Callable[[int], bool]) -> int:
    """Return the largest count up to limit_steps that is good, 0 when none is; fewer never harms.

    Asks about the ends first: most often one of them is the answer.
    """
    if good(limit_steps):
        return limit_steps
    if limit_steps == 1 or not good(1):
        return 0
    low, high = 1, limit_steps - 1
    while low < high:
        middle = (low + high + 1) // 2
        if good(middle):
            low = middle
        else:
            high = middle - 1
    return low


def windowed_or_recurrent(info: ModelInfo) -> bool:
    """Tell whether the number of slots changes the size of the cache: a window or a state for each."""
    return any(layer.window_tokens is not None or not layer.kv_heads for layer in info.layers)
