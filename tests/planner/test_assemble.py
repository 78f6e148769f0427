"""The plan's words: why others were not chosen, and what staying in RAM costs."""

from ggufdeploy.planner.advice import Advice
from ggufdeploy.planner.assemble import make_plan
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.plan import Plan
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import search
from ggufdeploy.units import GIB
from tests.planner.models import candidate, gpu, machine, model

LADDER = [candidate("F16", model(layer_bytes=16 * GIB)), candidate("Q8_0", model(layer_bytes=2 * GIB)), candidate()]


def plan(host, **changes) -> Plan:
    wish = PlanRequest(**{"context_tokens": 8192, "slots": 4, **changes})
    result = search(LADDER, wish, host, FormulaMemory())
    assert result.chosen is not None
    advice = (Advice("buy more", "ggufdeploy plan m"),)
    return make_plan("m", "m", None, None, wish, host, result.chosen, result, advice)


def reasons(made: Plan) -> dict[str, str | None]:
    return {row.quantization: row.why_not for row in made.alternatives}


def test_without_a_gpu_nothing_is_short_of_vram():
    why = reasons(plan(machine(ram_bytes=16 * GIB)))
    assert why["Q4_K_M"] is None
    assert why["Q8_0"] == "exceeds the RAM: part of it would be read from disk"
    assert why["F16"].startswith("does not fit: ")
    assert "short" not in why["F16"]


def test_a_model_that_does_not_fit_says_by_how_much():
    why = reasons(plan(machine(gpu(14 * GIB), ram_bytes=16 * GIB)))
    assert why["Q4_K_M"] is None
    assert "of VRAM short" in why["F16"]


def test_a_gpu_that_holds_no_layer_is_a_warning_with_the_cost_and_the_ways_out():
    warning = plan(machine(gpu(GIB), ram_bytes=64 * GIB)).warnings[0]
    assert warning.code == "cpu_only"
    assert "10 of 10 layers" in warning.message
    assert "times slower" in warning.message
    assert warning.hint == "1. buy more: ggufdeploy plan m"


def test_the_chosen_row_says_the_same_as_the_plan():
    made = plan(machine(gpu(9 * GIB)), quantization="Q4_K_M")
    row = next(row for row in made.alternatives if row.why_not is None)
    assert (row.quantization, row.verdict, row.n_gpu_layers, row.decode_tokens_per_s) == (
        made.quantization.name, made.verdict, made.placement.n_gpu_layers, made.speed.decode_tokens_per_s,
    )  # fmt: skip
