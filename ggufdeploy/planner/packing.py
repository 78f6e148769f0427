"""Several GPUs: which of the last layers go on which, so that the fullest card is as little full as possible."""

from __future__ import annotations

from collections.abc import Sequence

from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.planner.memory import compute_bytes, kv_layer_bytes, pipeline_bytes, staging_bytes
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import PlanRequest

_STEPS = 20


def balanced(model: ModelInfo, request: PlanRequest, items: int, experts: int, budgets: Sequence[int]) -> Placement:
    """Return the last `items` (blocks and the output layer) over devices of these budgets, in order.

    experts: the first this many blocks keep their experts on the host. By the formulas alone: it is the answer to
    whether any split holds them, as every device gets a run of layers and takes as many as it can.
    """
    sketch = Placement(model.n_layers, (items,) + (0,) * (len(budgets) - 1), experts)
    fixed = compute_bytes(model, request) + staging_bytes(model, sketch) + pipeline_bytes(model, request, sketch)[0]
    costs = [_block_bytes(model, request, i, sketch) for i in range(model.n_layers)] + [model.output_bytes]
    shares = pack(costs[len(costs) - items :], [max(budget - fixed, 0) for budget in budgets])
    return Placement(model.n_layers, shares, experts)


def _block_bytes(model: ModelInfo, request: PlanRequest, index: int, placement: Placement) -> int:
    layer = model.layers[index]
    weights = layer.dense_bytes if placement.experts_on_host(index) else layer.total_bytes
    return weights + kv_layer_bytes(layer, request)


def pack(costs: Sequence[int], budgets: Sequence[int]) -> tuple[int, ...]:
    """Cut `costs` into one run per budget, in order, and return their lengths.

    The fullest budget is as little full as possible; beyond 1 only when no cut fits. Without any budget the first
    takes all.
    """
    if not any(budgets):
        return (len(costs),) + (0,) * (len(budgets) - 1)
    low, high = 0.0, 1.0
    while (best := _greedy(costs, budgets, high)) is None:
        low, high = high, high * 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = _greedy(costs, budgets, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _greedy(costs: Sequence[int], budgets: Sequence[int], fill: float) -> tuple[int, ...] | None:
    """Fill each budget up to the share `fill` of it; None when something is left over."""
    shares, start = [], 0
    for budget in budgets:
        end, room = start, budget * fill
        while end < len(costs) and costs[end] <= room:
            room -= costs[end]
            end += 1
        shares.append(end - start)
        start = end
    return tuple(shares) if start == len(costs) else None
