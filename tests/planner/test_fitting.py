"""The search for the boundary, and how many questions it costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.planner.fitting import longest, smallest
from ggufdeploy.planner.memory import DeviceUsage, FormulaMemory, Usage
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import evaluate
from ggufdeploy.units import GIB, MIB
from tests.planner.models import candidate, gpu, machine, model

REQUEST = PlanRequest(context_tokens=8192, slots=4)


class Counting:
    """A memory model that needs `more_bytes` more on each GPU than the formula says, and counts its questions."""

    def __init__(self, more_bytes: int = 0) -> None:
        self.questions, self._more = 0, more_bytes

    def usage(self, info, request, placement) -> Usage:
        self.questions += 1
        plain = FormulaMemory().usage(info, request, placement)
        more = tuple(
            DeviceUsage(part.weights_bytes, part.kv_bytes, part.compute_bytes + (self._more if part.total_bytes else 0))
            for part in plain.devices
        )
        return Usage(more, plain.host, "engine")


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 120), st.one_of(st.none(), st.integers(0, 60)))
def test_the_smallest_good_count_is_found_from_every_guess(low, length, boundary, guess):
    high = low + length
    near = None if guess is None else min(low + guess, high)
    asked: list[int] = []

    def at(count: int) -> int:
        asked.append(count)
        return count

    found = smallest(at, low, high, lambda count: count >= boundary, near)
    assert found == (max(boundary, low) if boundary <= high else None)
    assert len(asked) == len(set(asked)) <= 14
    assert all(low <= count <= high for count in asked)


@given(st.integers(1, 100), st.integers(0, 120))
def test_the_longest_good_count_is_found(limit, boundary):
    assert longest(limit, lambda count: count <= boundary) == min(limit, boundary)


@pytest.mark.parametrize("info", [model(n_layers=60), model(n_layers=60, expert_bytes=GIB * 3 // 4)])
def test_where_the_formula_is_right_the_engine_is_asked_three_times(info):
    """Everything on the GPU, the formula's boundary, and one less on the host."""
    host = machine(gpu(30 * GIB))
    memory = Counting()
    option = evaluate(candidate(info=info), REQUEST, host, memory)
    assert option.placement == evaluate(candidate(info=info), REQUEST, host, FormulaMemory()).placement
    assert memory.questions == 3


@pytest.mark.parametrize("more_mib", [-900, -100, 100, 900, 5000])
@pytest.mark.parametrize("info", [model(n_layers=60), model(n_layers=60, expert_bytes=GIB * 3 // 4)])
def test_where_the_engine_disagrees_its_own_boundary_is_found_with_few_questions(info, more_mib):
    host, memory = machine(gpu(30 * GIB)), Counting(more_mib * MIB)
    option = evaluate(candidate(info=info), REQUEST, host, memory)
    room = machine(gpu(30 * GIB - more_mib * MIB))
    assert option.placement == evaluate(candidate(info=info), REQUEST, room, FormulaMemory()).placement
    assert memory.questions <= 9
