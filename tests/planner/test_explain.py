"""The plan in words."""

from __future__ import annotations

from ggufdeploy.planner import explain
from ggufdeploy.planner.assemble import make_plan
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.plan import Plan
from ggufdeploy.planner.request import ExtraFile, PlanRequest
from ggufdeploy.planner.search import search
from ggufdeploy.units import GIB
from tests.planner.models import candidate, gpu, machine, model

LADDER = [candidate("Q8_0", model(layer_bytes=2 * GIB)), candidate(), candidate("Q3_K_M", model(layer_bytes=GIB // 2))]


def plan(host, candidates=LADDER, **changes) -> Plan:
    wish = PlanRequest(**{"context_tokens": 65_536, "slots": 4, "other_kv_types": ("q8_0",), **changes})
    result = search(candidates, wish, host, FormulaMemory())
    assert result.chosen is not None
    return make_plan("m", "m", None, None, wish, host, result.chosen, result, ())


def test_the_ladder_shows_placement_vram_and_the_longest_context_of_every_quantization():
    made = plan(machine(gpu(int(13.5 * GIB))))
    header, *rows = explain.ladder(made)
    assert header.split("  ")[-1] == "why"
    q8, q4, q3 = rows
    assert q8.startswith("   Q8_0")
    assert "GPU 5/11, RAM" in q8
    assert q4.startswith("*  Q4_K_M")
    assert " q8_0  GPU " in q4
    assert "11.8/12.3" in q4
    assert q4.endswith("best quality wholly in VRAM; a q8_0 KV cache makes room for it instead of Q3_K_M")
    assert "65,536" in q3
    assert q3.endswith("lower quality than the chosen one")


def test_experts_in_ram_are_named_in_the_ladder_and_the_placement():
    made = plan(machine(gpu(10 * GIB)), [candidate(info=model(expert_bytes=GIB * 3 // 4))])
    kept = len(made.placement.overrides)
    assert f"GPU, experts of {kept} in RAM" in explain.ladder(made)[1]
    assert explain.placement_line(made) == f"n_gpu_layers 11 of 11, experts of {kept} layers in RAM"


def test_without_a_gpu_there_is_no_column_for_vram():
    lines = explain.ladder(plan(machine()))
    assert "VRAM" not in lines[0]
    assert lines[0].split()[:5] == ["quantization", "size", "KV", "where", "longest"]
    assert all("RAM" in line for line in lines[1:])


def test_files_beside_the_model_stand_in_the_receipt():
    made = plan(machine(gpu(30 * GIB)), extra_files=(ExtraFile("adapter.gguf", GIB),))
    assert any(line.split() == ["other", "files", "1.00", "GiB", "held", "back"] for line in explain.receipt(made))
    assert made.devices[0].used_bytes == sum(
        (made.devices[0].weights_bytes, made.devices[0].kv_bytes, made.devices[0].compute_bytes,
         made.devices[0].overhead_bytes, GIB),
    )  # fmt: skip


def test_a_pool_is_what_the_receipt_counts():
    made = plan(machine(gpu(30 * GIB)), context_tokens=8192, kv_pool_tokens=32_768)
    assert any("32,768 tokens" in line for line in explain.receipt(made))
    assert (made.context_tokens, made.kv_pool_tokens) == (8192, 32_768)


def test_little_ram_left_is_a_warning_of_its_own():
    codes = [w.code for w in plan(machine(gpu(8 * GIB), ram_bytes=7 * GIB), LADDER[1:2]).warnings]
    assert "ram_tight" in codes
    assert "ram_tight" not in [w.code for w in plan(machine(gpu(8 * GIB)), LADDER[1:2]).warnings]
