"""Formulas against figures llama.cpp printed."""

from dataclasses import replace

import pytest

from ggufdeploy.gguf.model import LayerInfo
from ggufdeploy.planner.memory import (
    FormulaMemory,
    compute_bytes,
    kv_bytes,
    kv_layer_bytes,
    kv_row_bytes,
    kv_type_misfit,
    mask_bytes,
    pipeline_bytes,
    staging_bytes,
    windowed_cells,
)
from ggufdeploy.planner.placement import Placement, on_cpu
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.scale import Shape, derive, scale
from ggufdeploy.units import GIB, MIB
from tests.planner.models import model

MIXTRAL = Shape("llama", "mixtral", 56, 48, 8, 128, 8, 2, 140_630_071_296, 39_161_468_928, 65536)


def request(**changes) -> PlanRequest:
    return PlanRequest(**{"context_tokens": 8192, "slots": 4, **changes})


@pytest.mark.parametrize(
    ("kv_type", "row_bytes"),
    [("f16", 4096), ("f32", 8192), ("q8_0", 2176), ("q4_0", 1152), ("q5_1", 1536), ("iq4_nl", 1152)],
)
def test_kv_row_counts_block_scales(kv_type, row_bytes):
    assert kv_row_bytes(model().layers[0], kv_type) == row_bytes


def test_a_layer_without_kv_heads_costs_nothing():
    assert kv_row_bytes(LayerInfo(0, 1, 0, 0, 128, 128, 0), "f16") == 0


def test_mixtral_8x22b_at_65536_tokens_keeps_15_032_385_536_bytes_of_f16_kv():
    info = derive(MIXTRAL, 80_489_373_696)
    assert kv_bytes(info, request(context_tokens=65536)) == 15_032_385_536


def test_context_is_rounded_up_to_256_cells():
    assert request(context_tokens=1000).kv_cells == 1024
    assert request(context_tokens=1024).kv_cells == 1024


def test_compute_of_mixtral_8x22b_matches_the_292_mib_llama_cpp_reserves_at_65536():
    """Shape facts: embedding 6144, feed-forward 16384, 2 of 8 experts; source: a dry run of llama.cpp 0c1e57098."""
    info = derive(MIXTRAL, 80_489_373_696)
    assert info.embedding_length == 6144
    assert info.expert_feed_forward_length == pytest.approx(16384, rel=0.01)
    got = compute_bytes(info, request(context_tokens=65536))
    assert got / MIB == pytest.approx(292.01, rel=0.02)


def test_a_quantized_kv_cache_needs_an_f16_copy_of_one_layer():
    plain = compute_bytes(model(), request(context_tokens=65536))
    quantized = compute_bytes(model(), request(context_tokens=65536, kv_type="q8_0"))
    assert quantized - plain > 100 * MIB


def test_full_placement_puts_all_but_the_token_embedding_on_the_gpu():
    usage = FormulaMemory().usage(model(), request(), Placement(10, (11,)))
    assert usage.devices[0].weights_bytes == 10 * GIB + 100 * MIB
    assert usage.host.weights_bytes == 100 * MIB
    assert usage.devices[0].kv_bytes == 8192 * 4096 * 10
    assert usage.host.kv_bytes == 0


def test_partial_placement_splits_weights_and_kv_by_layer_and_stages_host_weights():
    usage = FormulaMemory().usage(model(), request(), Placement(10, (4,)))
    assert usage.devices[0].weights_bytes == 3 * GIB + 100 * MIB
    assert usage.host.weights_bytes == 7 * GIB + 100 * MIB
    assert usage.devices[0].kv_bytes == 8192 * 4096 * 3
    assert usage.host.kv_bytes == 8192 * 4096 * 7
    assert staging_bytes(model(), Placement(10, (4,))) == GIB // 2
    assert staging_bytes(model(), Placement(10, (11,))) == 0


def test_tied_embeddings_cost_a_second_copy_on_the_gpu_but_not_on_the_cpu():
    tied = model(tied=True)
    on_gpu = FormulaMemory().usage(tied, request(), Placement(10, (11,)))
    assert on_gpu.devices[0].weights_bytes + on_gpu.host.weights_bytes == tied.total_bytes + 100 * MIB
    alone = FormulaMemory().usage(tied, request(), on_cpu(10, 0))
    assert alone.host.weights_bytes == tied.total_bytes


def test_experts_on_the_host_move_only_the_experts():
    moe = model(expert_bytes=GIB * 3 // 4)
    usage = FormulaMemory().usage(moe, request(), Placement(10, (11,)).with_experts_on_host(4))
    assert usage.host.weights_bytes == 4 * GIB * 3 // 4 + 100 * MIB
    assert usage.devices[0].weights_bytes == 10 * GIB - 4 * GIB * 3 // 4 + 100 * MIB
    assert usage.host.kv_bytes == 0


def test_the_engines_own_kv_total_is_shared_among_layers():
    usage = FormulaMemory(kv_total_bytes=10_000_000).usage(model(), request(), Placement(10, (6,)))
    assert usage.devices[0].kv_bytes == 5_000_000
    assert usage.host.kv_bytes == 5_000_000


def test_scaling_keeps_the_total_and_the_kv():
    scaled = scale(model(), 5 * GIB)
    assert scaled.total_bytes == 5 * GIB
    parts = scaled.token_embedding_bytes + scaled.output_bytes + sum(layer.total_bytes for layer in scaled.layers)
    assert parts == pytest.approx(5 * GIB, rel=1e-6)
    assert kv_bytes(scaled, request()) == kv_bytes(model(), request())


def test_a_derived_model_has_the_profiles_bytes_and_expert_share():
    info = derive(MIXTRAL, 80_489_373_696)
    parts = info.token_embedding_bytes + info.output_bytes + sum(layer.total_bytes for layer in info.layers)
    assert parts == pytest.approx(80_489_373_696, rel=1e-6)
    experts = sum(layer.expert_bytes for layer in info.layers)
    assert experts / parts == pytest.approx(135_291_469_824 / 140_630_071_296, rel=0.01)


def with_kv_heads(heads):
    info = model(n_layers=len(heads))
    return replace(info, layers=tuple(replace(x, kv_heads=h) for x, h in zip(info.layers, heads, strict=True)))


def test_a_purely_recurrent_model_still_has_the_state_the_engine_reports():
    usage = FormulaMemory(kv_total_bytes=4000).usage(with_kv_heads([0] * 4), request(), Placement(4, (3,)))
    assert usage.devices[0].kv_bytes == 2000
    assert usage.host.kv_bytes == 2000


def test_a_hybrids_state_lies_with_its_recurrent_layers_and_its_kv_with_the_others():
    info = with_kv_heads([0, 0, 0, 8])
    layers = tuple(replace(layer, state_elements=0 if layer.kv_heads else 1000) for layer in info.layers)
    usage = FormulaMemory().usage(replace(info, layers=layers), request(), Placement(4, (2,)))
    assert usage.devices[0].kv_bytes == kv_bytes(info, request())
    assert usage.host.kv_bytes == 3 * 4 * 1000 * 4


def test_experts_on_the_host_are_staged_on_the_gpu_for_prompts_too():
    moe = model(expert_bytes=GIB * 3 // 4)
    placement = Placement(10, (11,)).with_experts_on_host(4)
    assert staging_bytes(moe, placement) == GIB * 3 // 8
    plain = FormulaMemory().usage(moe, request(), Placement(10, (11,))).devices[0].compute_bytes
    assert FormulaMemory().usage(moe, request(), placement).devices[0].compute_bytes >= plain + GIB * 3 // 8


def test_the_first_gpu_computes_prompts_for_host_layers_even_without_a_layer_of_its_own():
    usage = FormulaMemory().usage(model(), request(), Placement(10, (0, 4)))
    assert usage.devices[0].weights_bytes == 0
    assert usage.devices[0].compute_bytes > staging_bytes(model(), Placement(10, (0, 4)))
    assert FormulaMemory().usage(model(), request(), Placement(10, (0, 11))).devices[0].total_bytes == 0


def test_windowed_layers_have_a_mask_of_their_own():
    windowed = replace(
        model(), layers=tuple(replace(x, window_tokens=1024 if x.index else None) for x in model().layers)
    )
    wish = request(context_tokens=65536)
    assert mask_bytes(model(), wish) == 2 * 512 * 65536
    assert mask_bytes(windowed, wish) == 2 * 512 * (65536 + 1024 * 4 + 512)


def test_two_gpus_with_every_layer_overlap_batches_and_keep_four_copies_of_what_is_handed_over():
    """Figures: a dry run of llama.cpp 0c1e57098 of Llama 3.1 8B at 8,192 tokens on two devices, and on one."""
    info = replace(model(n_layers=32), n_vocab=128256)
    usage = FormulaMemory().usage(info, request(), Placement(32, (21, 12)))
    assert usage.host.compute_bytes / MIB == pytest.approx(74.0, rel=0.02)
    assert usage.devices[1].compute_bytes / MIB == pytest.approx(204.0, rel=0.05)
    alone = FormulaMemory().usage(info, request(), Placement(32, (33,)))
    assert alone.host.compute_bytes / MIB == pytest.approx(26.0, rel=0.02)


def test_batches_do_not_overlap_on_one_gpu_or_with_weights_on_the_host():
    wish = request(context_tokens=65536)
    assert pipeline_bytes(model(), wish, Placement(10, (11, 0)))[0] >= 3 * 2 * 512 * 65536
    for placement in (Placement(10, (11,)), Placement(10, (5, 5)), Placement(10, (6, 5)).with_experts_on_host(1)):
        assert pipeline_bytes(model(), wish, placement) == (0, 0)


def test_a_pass_is_never_longer_than_the_context():
    assert compute_bytes(model(), request(context_tokens=256, n_ubatch=2048)) == compute_bytes(
        model(), request(context_tokens=256, n_ubatch=256)
    )


def test_quantized_kv_needs_heads_of_whole_blocks():
    odd = replace(model(), layers=tuple(replace(x, key_length=80, value_length=80) for x in model().layers))
    assert kv_type_misfit(odd, "q8_0") == 80
    assert kv_type_misfit(odd, "f16") is None
    assert kv_type_misfit(model(), "q4_0") is None


def test_a_cache_of_each_slots_own_is_rounded_up_per_slot():
    info, wish = model(n_layers=1), request(context_tokens=8192, slots=3, kv_unified=False)
    assert kv_bytes(info, wish) == 3 * 2816 * 4096
    assert mask_bytes(info, wish) == 2 * 512 * 2816


def test_a_window_per_slot_in_one_cache_and_one_window_in_a_slots_own():
    layer = replace(model().layers[0], window_tokens=1000)
    assert windowed_cells(layer, request(context_tokens=65536)) == 4608
    assert windowed_cells(layer, request(context_tokens=65536, kv_unified=False)) == 1536
    assert windowed_cells(layer, request(context_tokens=2048)) == 2048


def test_without_flash_attention_values_get_the_widest_row_and_scores_a_buffer():
    info, wish = with_kv_heads([8, 4]), request(flash_attention=False)
    assert kv_bytes(info, wish) == 8192 * (4096 + 2048 + 1024)
    assert kv_bytes(info, request()) == 8192 * (4096 + 2048)
    assert compute_bytes(info, wish) - compute_bytes(info, request()) > 4 * 512 * 8192 * info.n_heads


def test_an_indexer_keeps_a_key_per_token_and_a_state_costs_per_slot():
    layer = replace(model().layers[0], kv_heads=1, key_length=576, value_length=0, indexer_length=128)
    assert kv_layer_bytes(layer, request(kv_type="q8_0")) == 8192 * (576 + 128) * 34 // 32
    state = replace(layer, kv_heads=0, indexer_length=0, state_elements=1000)
    assert kv_layer_bytes(state, request(context_tokens=256, slots=7)) == 4 * 1000 * 7


def test_rope_factors_are_held_by_every_device_with_a_block_but_not_by_one_with_the_output_alone():
    info = replace(model(), block_shared_bytes=256)
    plain, shared = (FormulaMemory().usage(x, request(), Placement(10, (4, 1))) for x in (model(), info))
    more = [b.weights_bytes - a.weights_bytes for a, b in zip(plain.devices, shared.devices, strict=True)]
    assert more == [256, 0]
    assert shared.host.weights_bytes - plain.host.weights_bytes == 256


def test_the_engines_figure_on_the_cpu_bounds_the_formula_from_both_sides():
    info, place, row = model(), Placement(10, (11,)), 4 * 512 * 4096
    formula = FormulaMemory().usage(info, request(), place).devices[0].compute_bytes

    def bounded(host_bytes: int) -> int:
        return FormulaMemory(host_compute_bytes=host_bytes).usage(info, request(), place).devices[0].compute_bytes

    assert bounded(formula + row) == formula
    assert bounded(10 * formula) == 10 * formula - 2 * row
    assert bounded(formula // 10) == formula // 10 + 5 * row // 4


def test_a_device_that_neither_stages_nor_copies_needs_less():
    wish, place = request(context_tokens=65536, kv_type="q8_0"), Placement(10, (5,))
    cuda, plain = (FormulaMemory(cuda=flag).usage(model(), wish, place).devices[0] for flag in (True, False))
    assert cuda.compute_bytes - plain.compute_bytes >= staging_bytes(model(), place)
    assert cuda.kv_bytes == plain.kv_bytes
