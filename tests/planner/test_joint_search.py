"""What the planner may choose besides the quantization: KV type, pass size, slots; floors and preferences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.reasons import why_chosen, why_not
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import SearchResult, evaluate, front, longest_context_tokens, search
from ggufdeploy.units import GIB
from tests.planner.models import candidate, gpu, machine, model

MEMORY = FormulaMemory()
LADDER = [
    candidate("Q8_0", model(layer_bytes=2 * GIB)),
    candidate("Q5_K_M", model(layer_bytes=GIB * 5 // 4)),
    candidate("Q4_K_M", model(layer_bytes=GIB)),
    candidate("Q3_K_M", model(layer_bytes=GIB * 3 // 4)),
    candidate("Q2_K", model(layer_bytes=GIB // 2)),
]


def request(**changes) -> PlanRequest:
    return PlanRequest(**{"context_tokens": 65_536, "slots": 4, "other_kv_types": ("q8_0",), **changes})


def found(free_gib: float, **changes) -> SearchResult:
    return search(LADDER, request(**changes), machine(gpu(int(free_gib * GIB))), MEMORY)


def choice(free_gib: float, **changes) -> tuple[str, str] | None:
    option = found(free_gib, **changes).chosen
    return option.key if option else None


def test_a_smaller_kv_type_is_taken_where_it_buys_a_clearly_better_quantization():
    """65,536 tokens take 2.5 GiB in f16, 1.33 in q8_0."""
    assert choice(11.5) == ("Q3_K_M", "f16")
    assert choice(13.5) == ("Q4_K_M", "q8_0")
    assert choice(14.7) == ("Q4_K_M", "f16")


def test_a_slightly_better_quantization_is_not_worth_it():
    """Q5_K_M is 0.017 better than Q4_K_M, less than the 0.02 that a q8_0 cache must bring."""
    assert choice(16.2) == ("Q4_K_M", "f16")
    named = found(16.2, quantization="Q5_K_M").chosen
    assert (named.key, named.verdict) == (("Q5_K_M", "q8_0"), "gpu")


def test_half_the_speed_is_not_given_for_quality_that_nobody_notices():
    ladder = [candidate("F16", model(layer_bytes=4 * GIB)), *LADDER]
    result = search(ladder, request(), machine(gpu(60 * GIB)), MEMORY)
    assert result.chosen.key == ("Q8_0", "f16")
    f16 = next(o for o in result.ladder if o.candidate.quantization == "F16")
    assert (f16.verdict, why_not(f16, result.chosen)) == ("gpu", "barely better, 1.9 times slower")
    best = search(ladder, request(prefer="quality"), machine(gpu(60 * GIB)), MEMORY).chosen
    assert best.key == ("F16", "f16")


def test_a_kv_type_that_was_asked_for_is_the_only_one_considered():
    assert choice(13.5, other_kv_types=()) == ("Q3_K_M", "f16")
    assert {o.request.kv_type for o in found(13.5, kv_type="q4_0", other_kv_types=()).options} == {"q4_0"}


def test_heads_that_a_kv_type_does_not_divide_rule_it_out_silently():
    odd = replace(model(), layers=tuple(replace(x, key_length=144) for x in model().layers))
    result = search([candidate(info=odd)], request(), machine(gpu(40 * GIB)), MEMORY)
    assert [o.request.kv_type for o in result.options] == ["f16"]


def test_smaller_passes_are_taken_only_to_bring_a_model_wholly_into_vram():
    one, wish = candidate(), request(other_kv_types=(), other_ubatches=(256,))
    needed = MEMORY.usage(
        one.info, replace(wish, n_ubatch=256), evaluate(one, wish, machine(gpu(40 * GIB)), MEMORY).placement
    )
    tight = machine(gpu(needed.devices[0].total_bytes + GIB + 195 * (1 << 20)))
    option = evaluate(one, wish, tight, MEMORY)
    assert (option.verdict, option.request.n_ubatch) == ("gpu", 256)
    assert evaluate(one, replace(wish, other_ubatches=()), tight, MEMORY).verdict == "offload"
    assert evaluate(one, wish, machine(gpu(40 * GIB)), MEMORY).request.n_ubatch == 512
    assert evaluate(one, wish, machine(gpu(8 * GIB)), MEMORY).request.n_ubatch == 512


def test_fewer_slots_are_considered_only_where_each_has_a_window_of_its_own():
    windowed = replace(model(), layers=tuple(replace(x, window_tokens=16_384) for x in model().layers))
    wish = request(other_kv_types=(), other_slots=(1,))
    for info, slots in ((windowed, 1), (model(), 4)):
        host = machine(gpu(int(12.9 * GIB)))
        assert evaluate(candidate(info=info), wish, host, MEMORY).request.slots == slots


def test_a_quality_floor_is_a_constraint_for_every_preference():
    for prefer in ("balanced", "quality", "speed", "context"):
        option = found(11.5, min_quality=0.98, prefer=prefer).chosen
        assert option.quality >= 0.98
    assert choice(11.5, min_quality=0.9999) is None
    assert choice(11.5, min_quality=0.98, quantization="Q2_K") is None
    assert choice(40, min_quality=0.5, offload="none") == ("Q8_0", "f16")


def test_an_unknown_quality_does_not_meet_a_floor():
    strange = candidate("XYZ")
    host = machine(gpu(40 * GIB))
    assert search([strange], request(), host, MEMORY).chosen is not None
    assert search([strange], request(min_quality=0.1), host, MEMORY).chosen is None


def test_context_prefers_what_holds_the_longest_one():
    host = machine(gpu(int(11.2 * GIB)))
    balanced, longest = (found(11.2, context_tokens=8192, prefer=p).chosen for p in ("balanced", "context"))
    assert balanced.key == ("Q3_K_M", "f16")
    assert longest.key == ("Q3_K_M", "q8_0")
    tokens = [longest_context_tokens(o.candidate, o.request, host, MEMORY) for o in (balanced, longest)]
    assert tokens[0] < tokens[1]
    roomy = found(40, context_tokens=8192, prefer="context").chosen
    assert roomy.key == ("Q8_0", "f16")  # all hold the training context, so the best of them


def test_the_longest_context_fits_and_one_step_more_does_not():
    one, wish, host = candidate(), request(), machine(gpu(int(13 * GIB)))
    tokens = longest_context_tokens(one, wish, host, MEMORY)
    assert evaluate(one, replace(wish, context_tokens=tokens), host, MEMORY).verdict == "gpu"
    assert evaluate(one, replace(wish, context_tokens=tokens + 1), host, MEMORY).verdict == "offload"
    assert longest_context_tokens(one, wish, machine(gpu(8 * GIB)), MEMORY) is None
    assert longest_context_tokens(one, wish, machine(gpu(80 * GIB)), MEMORY) == one.info.context_train_tokens


def test_a_pool_enlarges_the_cache_and_not_the_context():
    wish = request(context_tokens=8192, kv_pool_tokens=32_768)
    assert (wish.kv_cells, wish.context_tokens) == (32_768, 8192)
    assert request(context_tokens=8192, kv_pool_tokens=100).kv_cells == 8192


def test_the_ladder_has_one_row_per_quantization_with_the_kv_type_that_would_be_chosen():
    result = found(13.5)
    assert [o.candidate.quantization for o in result.ladder] == [c.quantization for c in LADDER]
    assert result.chosen in result.ladder
    rows = {o.candidate.quantization: o for o in result.ladder}
    assert rows["Q3_K_M"].request.kv_type == "f16"
    assert rows["Q8_0"].verdict == "offload"


def test_the_front_runs_from_the_best_quality_to_the_highest_speed():
    beaten = candidate("Q4_1", model(layer_bytes=GIB * 5 // 4))  # as large as Q5_K_M, and worse
    result = search([*LADDER, beaten], request(), machine(gpu(int(13.5 * GIB))), MEMORY)
    best = [option.candidate.quantization for option in front(result.options)]
    assert (best[0], best[-1]) == ("Q8_0", "Q2_K")
    assert "Q5_K_M" in best
    assert "Q4_1" not in best


@pytest.mark.parametrize(
    ("free_gib", "changes", "words"),
    [
        (13.5, {}, "best quality wholly in VRAM; a q8_0 KV cache makes room for it instead of Q3_K_M"),
        (40, {}, "best quality wholly in VRAM"),
        (8, {"quantization": "Q8_0"}, "asked for; runs with part of it in RAM"),
        (40, {"prefer": "speed"}, "fastest of acceptable quality, wholly in VRAM; with a q8_0 KV cache, read faster"),
        (9.2, {"offload": "none"}, "best quality wholly in VRAM; nothing of better quality fits"),
        (8, {}, "nothing acceptable is wholly in VRAM; best quality at a good speed, with part of it in RAM"),
        (40, {"prefer": "quality", "min_decode_tokens_per_s": 20}, "best quality that runs at 20 tokens/s or more, "
         "wholly in VRAM"),
    ],
)  # fmt: skip
def test_the_reason_says_what_decided(free_gib, changes, words):
    result = found(free_gib, **changes)
    assert why_chosen(result.chosen, result, request(**changes)) == words
