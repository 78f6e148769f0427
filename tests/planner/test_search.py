"""Placement and choice."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufdeploy.planner.budget import budget_bytes, fits
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.rates import EFFICIENCY
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import evaluate, search
from ggufdeploy.units import GIB
from tests.planner.models import candidate, gpu, machine, model

MEMORY = FormulaMemory()


def request(**changes) -> PlanRequest:
    return PlanRequest(**{"context_tokens": 8192, "slots": 4, **changes})


def test_everything_goes_on_the_gpu_when_it_fits():
    option = evaluate(candidate(), request(), machine(gpu(24 * GIB)), MEMORY)
    assert option.verdict == "gpu"
    assert option.placement.n_gpu_layers == 11
    assert option.short_bytes == 0


def test_the_largest_number_of_layers_that_fits_is_chosen_and_one_more_would_not_fit():
    host = machine(gpu(8 * GIB))
    option = evaluate(candidate(), request(), host, MEMORY)
    assert option.verdict == "offload"
    chosen = option.placement
    assert 1 < chosen.n_gpu_layers < 11
    assert fits(option.usage, host, request())
    more = replace(chosen, items_per_device=(chosen.n_gpu_layers + 1,))
    assert not fits(MEMORY.usage(candidate().info, request(), more), host, request())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(256, 65536), st.integers(1, 3))
def test_a_placement_never_exceeds_any_budget(free_gib, context, n_gpus):
    host = machine(*(gpu(free_gib * GIB // (i + 1), i) for i in range(n_gpus)))
    wish = request(context_tokens=context)
    option = evaluate(candidate(), wish, host, MEMORY)
    for part, device in zip(option.usage.devices, host.devices, strict=True):
        assert part.total_bytes == 0 or part.total_bytes <= budget_bytes(device, wish)


def test_experts_of_the_fewest_layers_go_to_ram_when_asked():
    moe = candidate(info=model(expert_bytes=GIB * 3 // 4))
    host = machine(gpu(10 * GIB))
    option = evaluate(moe, request(offload="experts"), host, MEMORY)
    assert option.placement.strategy == "experts"
    assert option.placement.n_gpu_layers == 11
    fewer = option.placement.with_experts_on_host(option.placement.cpu_expert_layers - 1)
    assert not fits(MEMORY.usage(moe.info, request(), fewer), host, request())


def test_one_gpu_is_preferred_when_it_holds_everything():
    host = machine(gpu(11 * GIB, 0), gpu(24 * GIB, 1))
    option = evaluate(candidate(), request(), host, MEMORY)
    assert option.placement.items_per_device == (0, 11)


def test_two_unequal_gpus_share_the_layers():
    host = machine(gpu(6 * GIB, 0), gpu(10 * GIB, 1))
    option = evaluate(candidate(), request(), host, MEMORY)
    assert option.verdict == "gpu"
    first, second = option.placement.items_per_device
    assert first + second == 11
    assert 0 < first < second


def quantizations() -> list:
    return [
        candidate("Q8_0", model(layer_bytes=2 * GIB)),
        candidate("Q4_K_M", model(layer_bytes=GIB)),
        candidate("Q3_K_M", model(layer_bytes=GIB * 3 // 4)),
        candidate("Q2_K", model(layer_bytes=GIB // 2)),
    ]


def chosen(free_bytes: int, **changes) -> str | None:
    option = search(quantizations(), request(**changes), machine(gpu(free_bytes)), MEMORY).chosen
    return option.candidate.quantization if option else None


@pytest.mark.parametrize(("free_gib", "name"), [(30, "Q8_0"), (14, "Q4_K_M"), (11, "Q3_K_M")])
def test_balanced_takes_the_best_quantization_wholly_in_vram(free_gib, name):
    assert chosen(free_gib * GIB) == name


def test_balanced_offloads_rather_than_go_below_the_quality_floor():
    result = search(quantizations(), request(), machine(gpu(8 * GIB)), MEMORY)
    assert result.chosen is not None
    assert result.chosen.verdict == "offload"
    assert result.chosen.candidate.quantization == "Q3_K_M"


def test_without_offloading_the_small_one_is_taken_below_the_floor():
    assert chosen(8 * GIB, offload="none") == "Q2_K"


def test_nothing_is_chosen_when_nothing_can_run():
    tiny = machine(gpu(2 * GIB), ram_bytes=2 * GIB)
    assert search(quantizations(), request(), tiny, MEMORY).chosen is None


def test_quality_and_speed_pull_in_opposite_directions():
    assert chosen(14 * GIB, prefer="quality") == "Q8_0"
    assert chosen(30 * GIB, prefer="speed") == "Q3_K_M"


def test_a_named_quantization_is_never_replaced():
    assert chosen(8 * GIB, quantization="q8_0") == "Q8_0"


def test_a_machine_without_gpu_runs_on_the_cpu():
    option = search(quantizations(), request(), machine(), MEMORY).chosen
    assert option is not None
    assert option.verdict == "cpu"
    assert option.placement.n_gpu_layers == 0


def test_weights_beyond_ram_are_read_from_disk_and_far_beyond_it_impossible():
    assert evaluate(candidate(), request(), machine(ram_bytes=8 * GIB), MEMORY).verdict == "disk"
    assert evaluate(candidate(), request(), machine(ram_bytes=4 * GIB), MEMORY).verdict == "impossible"


def test_reserve_is_kept_free():
    assert chosen(14 * GIB, reserve_bytes=3 * GIB) == "Q3_K_M"


def test_a_cut_that_fits_is_found_where_equal_shares_would_not():
    """Two cards of 6 GiB of budget: blocks of 1, 1 and 1 GiB, then an output of 5."""
    info = replace(model(n_layers=3), output_bytes=5 * GIB)
    host = machine(gpu(8 * GIB, 0), gpu(8 * GIB, 1))
    option = evaluate(candidate(info=info), request(), host, MEMORY)
    assert option.verdict == "gpu"
    assert option.placement.items_per_device in ((3, 1), (2, 2))


def test_experts_stay_on_the_host_only_as_far_as_both_cards_are_full():
    moe = candidate(info=model(expert_bytes=GIB * 3 // 4))
    host = machine(gpu(6 * GIB, 0), gpu(6 * GIB, 1))
    option = evaluate(moe, request(offload="experts"), host, MEMORY)
    assert option.placement.strategy == "experts"
    for part, device in zip(option.usage.devices, host.devices, strict=True):
        assert part.total_bytes > 0.7 * budget_bytes(device, request())


def test_a_speed_floor_refuses_what_is_slower_also_when_it_is_named():
    assert chosen(30 * GIB, min_decode_tokens_per_s=1.0) == "Q8_0"
    assert chosen(30 * GIB, min_decode_tokens_per_s=50.0) == "Q4_K_M"
    assert chosen(30 * GIB, min_decode_tokens_per_s=50.0, quantization="Q8_0") is None
    assert chosen(30 * GIB, min_decode_tokens_per_s=5000.0) is None


def test_an_unknown_speed_is_no_reason_to_refuse():
    host = machine(replace(gpu(30 * GIB), bandwidth_bytes_per_s=None))
    option = search(quantizations(), request(min_decode_tokens_per_s=50.0), host, MEMORY).chosen
    assert option is not None
    assert option.speed.decode_tokens_per_s is None


def test_windowed_layers_read_only_their_window():
    info = replace(model(), layers=tuple(replace(x, window_tokens=512) for x in model().layers))
    host, wish = machine(gpu(40 * GIB)), request(context_tokens=65536)
    windowed, whole = (evaluate(candidate(info=i), wish, host, MEMORY) for i in (info, model()))
    unread_s = (32768 - 512) * 4096 * 10 / (EFFICIENCY["gddr"] * 1e12)
    assert 1 / whole.decode - 1 / windowed.decode == pytest.approx(unread_s)
