"""What a plan may use of GPUs and RAM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ggufdeploy.hardware.catalog import find_gpu, simulate
from ggufdeploy.planner.budget import (
    DEFAULT_MARGIN_BYTES,
    HOST_MARGIN_BYTES,
    available_bytes,
    budget_bytes,
    kept_free_bytes,
    margin_bytes,
    overhead_bytes,
    ram_tier,
)
from ggufdeploy.planner.memory import DeviceUsage
from ggufdeploy.planner.request import ExtraFile, Learned, Lesson, PlanRequest
from ggufdeploy.units import GIB, MIB
from tests.planner.models import gpu, machine

H100 = simulate(find_gpu("h100-sxm"), 1, base=machine()).devices[0]


def request(**changes) -> PlanRequest:
    return PlanRequest(context_tokens=8192, slots=4, **changes)


def lesson(device: str, n_bytes: int, when: str = "2026-01-01T00:00:00+00:00") -> Lesson:
    return Lesson(device, n_bytes, "grew after the load", when)


def test_the_margin_is_the_models_own_and_1_gib_for_unknown_cards_and_displays():
    assert margin_bytes(H100) == 384 * MIB
    assert margin_bytes(gpu(8 * GIB)) == DEFAULT_MARGIN_BYTES == GIB
    assert margin_bytes(replace(H100, display=True)) == GIB
    assert margin_bytes(replace(H100, kind="rpc")) == 0


def test_margin_overhead_reserve_and_lessons_add_up():
    learned = Learned((lesson("CUDA0", 300 * MIB),))
    wish = request(reserve_bytes=2 * GIB, learned=learned)
    assert kept_free_bytes(gpu(20 * GIB), wish) == 3 * GIB + 300 * MIB
    assert budget_bytes(gpu(20 * GIB), wish) == 17 * GIB - 300 * MIB - overhead_bytes(gpu(1))
    assert kept_free_bytes(gpu(20 * GIB, 1), wish) == 3 * GIB


def test_a_lesson_belongs_to_the_card_not_to_its_place_and_the_newest_holds():
    card = replace(gpu(20 * GIB), uuid="GPU-1")
    old, new = lesson("GPU-1", 100 * MIB), lesson("GPU-1", 700 * MIB, "2026-02-01T00:00:00+00:00")
    assert Learned((new, old)).extra_bytes(card) == 700 * MIB
    assert Learned((lesson("CUDA0", 100 * MIB),)).extra_bytes(card) == 0
    assert Learned().extra_bytes(card) == 0


@pytest.mark.parametrize(
    ("budgets", "most"),
    [
        (((None, 10 * GIB),), 10 * GIB),
        ((("CUDA0", 10 * GIB),), 10 * GIB),
        ((("CUDA1", 10 * GIB),), 19 * GIB),
        ((("CUDA0", 12 * GIB), (None, 11 * GIB)), 11 * GIB),
        ((("CUDA0", 100 * GIB),), 19 * GIB),
    ],
)
def test_a_budget_caps_everything_on_the_gpu_and_never_eats_the_margin(budgets, most):
    card = gpu(20 * GIB)
    assert budget_bytes(card, request(vram_budgets=budgets)) + overhead_bytes(card) == most


def test_files_beside_the_model_are_held_back():
    files = (ExtraFile("adapter.gguf", GIB), ExtraFile("mmproj.gguf", 2 * GIB))
    card = gpu(20 * GIB)
    assert budget_bytes(card, request()) - budget_bytes(card, request(extra_files=files)) == 3 * GIB
    two = machine(gpu(20 * GIB), gpu(2 * GIB, 1))
    assert available_bytes(two, request(extra_files=files)) == budget_bytes(card, request(extra_files=files))


def test_the_tiers_of_ram():
    host = machine(gpu(GIB), ram_bytes=16 * GIB)
    tiers = [ram_tier(DeviceUsage(n * GIB, GIB, 0), host, request()) for n in (8, 13, 14, 15, 32, 33)]
    assert tiers == ["fits", "fits", "tight", "disk", "disk", "impossible"]
    assert HOST_MARGIN_BYTES == GIB
    assert ram_tier(DeviceUsage(0, 16 * GIB, 0), host, request()) == "impossible"


def test_without_a_gpu_files_beside_the_model_take_ram():
    host = machine(ram_bytes=16 * GIB)
    wish = request(extra_files=(ExtraFile("adapter.gguf", 16 * GIB),))
    assert ram_tier(DeviceUsage(GIB, 0, 0), host, wish) == "impossible"
    assert ram_tier(DeviceUsage(GIB, 0, 0), host, request()) == "fits"
