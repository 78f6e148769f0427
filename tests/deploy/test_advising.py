"""The table of GPUs: every entry is what `plan` would choose there, and nothing that fits is missing."""

from dataclasses import replace

import pytest

from ggufdeploy.deploy.advising import COUNTS, Fit, advise, shown_gpus, smallest
from ggufdeploy.hardware.catalog import find_gpu, list_gpus
from ggufdeploy.planner.quality import quality
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.units import GIB, MIB
from tests.planner.models import candidate, model

SIZES = {"F16": 16, "Q8_0": 8, "Q6_K": 6, "Q4_K_M": 4, "Q2_K": 2}
"""Ten layers, so 160 to 20 GiB."""
REQUEST = PlanRequest(context_tokens=8192, slots=4)


class Ladder:
    """Candidates whose headers count how often they are read."""

    def __init__(self, exact: bool = True) -> None:
        self.reads: list[str] = []
        self._candidates = {
            name: replace(candidate(name, model(layer_bytes=gib * GIB)), exact=exact) for name, gib in SIZES.items()
        }

    def all(self):
        return list(self._candidates.values())

    def read(self, name):
        self.reads.append(name)
        self._candidates[name] = replace(self._candidates[name], exact=True)
        return True


def fits(gpu: str, counts=(1,), contexts=(8192,), ladder=None, **wanted) -> list[Fit]:
    return list(advise(ladder or Ladder(), replace(REQUEST, **wanted), [(find_gpu(gpu), counts)], contexts))


def test_the_best_quantization_that_is_wholly_in_vram_is_named():
    (fit,) = fits("h100-sxm")
    assert fit.quantization == "Q6_K"
    assert fit.quality == quality("Q6_K")
    assert not fit.best
    assert fit.decode_low_tokens_per_s < fit.decode_tokens_per_s < fit.decode_high_tokens_per_s
    assert (fit.basis, fit.memory_bytes) == ("estimated", 80552 * MIB)


def test_nothing_is_named_where_nothing_fits():
    (fit,) = fits("rtx-3060")
    assert (fit.quantization, fit.decode_tokens_per_s, fit.best) == (None, None, False)


def test_more_cards_are_not_tried_once_fewer_hold_the_best():
    found = fits("h100-sxm", COUNTS)
    assert [(fit.count, fit.quantization) for fit in found] == [(1, "Q6_K"), (2, "Q8_0")]
    assert found[-1].best


def test_what_is_as_good_and_half_as_large_is_preferred():
    (fit,) = fits("b200", (2,))
    assert (fit.quantization, fit.best) == ("Q8_0", True)
    (whole,) = fits("b200", (2,), quantization="F16")
    assert whole.quantization == "F16"
    assert whole.decode_tokens_per_s < fit.decode_tokens_per_s


def test_floors_leave_out_what_is_too_slow_or_too_bad():
    (any_speed,) = fits("h100-sxm")
    (faster,) = fits("h100-sxm", min_decode_tokens_per_s=any_speed.decode_tokens_per_s + 1)
    assert faster.quantization == "Q4_K_M"
    assert fits("h100-sxm", min_quality=quality("Q8_0"))[0].quantization is None
    assert fits("h100-sxm", min_quality=0.5, quantization="Q2_K")[0].quantization == "Q2_K"


def test_a_smaller_kv_cache_is_taken_where_a_plan_would_and_is_not_yet_the_best():
    plain = fits("h100-sxm", (1,), (524288,))[0]
    smaller = fits("h100-sxm", (1,), (524288,), other_kv_types=("q8_0",))[0]
    assert (plain.kv_type, smaller.kv_type) == ("f16", "q8_0")
    assert smaller.quality > plain.quality
    assert not smaller.best


def test_only_the_headers_of_what_is_named_are_read_and_each_once():
    ladder = Ladder(exact=False)
    fits("h100-sxm", (1, 2), (8192, 32768), ladder=ladder)
    assert sorted(ladder.reads) == ["Q6_K", "Q8_0"]


def test_a_longer_context_never_brings_a_better_quantization_or_more_speed():
    for gpu in ("rtx-3090", "h100-sxm", "b200"):
        short, long = fits(gpu, (4,), (4096, 65536))
        assert (long.quality or 0) <= (short.quality or 0)
        if long.quantization == short.quantization:
            assert long.decode_tokens_per_s <= short.decode_tokens_per_s


def test_one_card_is_smaller_than_several_and_less_memory_than_more():
    found = [fit for gpu in ("a100-40gb", "a100-80gb", "h200-sxm") for fit in fits(gpu, (1, 2))]
    best = smallest(found, 8192)
    assert (best.gpu, best.count) == ("a100-40gb", 1)
    without = [fit for fit in found if (fit.gpu, fit.count) != ("a100-40gb", 1)]
    assert (smallest(without, 8192).gpu, smallest(without, 8192).count) == ("a100-80gb", 1)
    assert smallest(found, 4096) is None


def test_the_gpus_shown_are_in_the_catalogue_by_size_and_have_a_bandwidth():
    shown = shown_gpus()
    assert set(shown) <= set(list_gpus())
    assert [spec.llama_free_bytes for spec in shown] == sorted(spec.llama_free_bytes for spec in shown)
    assert all(spec.bandwidth_bytes_per_s for spec in shown)


@pytest.mark.parametrize("count", COUNTS)
def test_every_number_of_cards_counts_all_their_memory(count):
    (fit,) = fits("rtx-3090", (count,))
    assert fit.memory_bytes == count * find_gpu("rtx-3090").llama_free_bytes
