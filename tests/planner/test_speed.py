"""Predicted speeds, what they rest on, and the sentence about what a token waits for."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufdeploy.hardware.samples import HOST, SpeedSample
from ggufdeploy.planner import rates
from ggufdeploy.planner.placement import Placement, on_cpu
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.speed import bottleneck, predict
from ggufdeploy.planner.work import active_params, work_per_token
from ggufdeploy.units import GIB
from tests.planner.models import gpu, machine, model

REQUEST = PlanRequest(context_tokens=8192, slots=4)
WHOLE = Placement(10, (11,))


def sample(info, placement, host, decode, prefill=None, used_tokens=64):
    """A run of `info` that reached `decode` tokens/s."""
    return SpeedSample(
        architecture=info.architecture, n_params=info.n_params, weights_bytes=info.total_bytes,
        active_params=int(active_params(info)), n_gpu_layers=placement.n_gpu_layers,
        cpu_expert_layers=placement.cpu_expert_layers,
        work=work_per_token(info, "f16", placement, host, used_tokens),
        decode_tokens_per_s=decode, prefill_tokens_per_s=prefill,
    )  # fmt: skip


def test_a_gpu_takes_bytes_over_effective_bandwidth_and_a_fixed_cost_per_layer():
    info, host = model(), machine(gpu(24 * GIB))
    read = 10 * GIB + info.output_bytes + 4096 * 4096 * 10
    seconds = read / (rates.EFFICIENCY["gddr"] * 1e12) + 10 * rates.LAYER_S["gddr"]
    speed = predict(info, REQUEST, WHOLE, host)
    assert speed.decode_tokens_per_s == pytest.approx(1 / seconds)
    assert speed.basis == "estimated"
    assert speed.decode_low_tokens_per_s == pytest.approx(rates.LOW / seconds)
    assert speed.decode_high_tokens_per_s == pytest.approx(rates.HIGH / seconds)


def test_only_the_active_experts_are_read():
    info, host = model(expert_bytes=GIB * 4 // 5), machine(gpu(24 * GIB))
    (work,) = work_per_token(info, "f16", WHOLE, host, 0)
    assert work.read_bytes == pytest.approx(10 * GIB * (1 / 5 + 4 / 5 * 2 / 8) + info.output_bytes, rel=1e-6)
    assert work.expert_layers == 10


def test_a_recurrent_state_is_read_and_written_and_does_not_grow_with_the_context():
    plain, host = model(), machine(gpu(24 * GIB))
    recurrent = replace(plain, layers=tuple(replace(x, kv_heads=0, state_elements=1000) for x in plain.layers))
    (without,) = work_per_token(plain, "f16", WHOLE, host, 0)
    for used_tokens in (0, 65536):
        (work,) = work_per_token(recurrent, "f16", WHOLE, host, used_tokens)
        assert work.read_bytes - without.read_bytes == 10 * 2 * 4 * 1000


def test_experts_in_ram_are_read_there_and_cost_their_layers_a_detour():
    info, host = model(expert_bytes=GIB // 2), machine(gpu(24 * GIB))
    cpu, card = work_per_token(info, "f16", Placement(10, (11,), cpu_expert_layers=4), host, 0)
    assert (cpu.device, cpu.read_bytes, cpu.layers) == (HOST, 4 * GIB // 8, 0)
    assert card.host_expert_layers == 4


def test_a_layer_split_reads_one_gpu_after_the_other_and_pays_for_the_hop():
    info = model()
    one = predict(info, REQUEST, Placement(10, (11,)), machine(gpu(24 * GIB)))
    two = predict(info, REQUEST, Placement(10, (5, 6)), machine(gpu(24 * GIB), gpu(24 * GIB, 1)))
    assert 1 / two.decode_tokens_per_s - 1 / one.decode_tokens_per_s == pytest.approx(rates.HOP_S)


def test_an_unknown_bandwidth_gives_no_speed_and_no_sentence():
    host = machine(replace(gpu(24 * GIB), bandwidth_bytes_per_s=None))
    speed = predict(model(), REQUEST, WHOLE, host)
    assert speed.decode_tokens_per_s is None
    assert speed.decode_low_tokens_per_s is None
    assert bottleneck(speed) is None


def test_the_sentence_names_ram_when_most_time_is_spent_there():
    speed = predict(model(), REQUEST, Placement(10, (5,)), machine(gpu(8 * GIB)))
    assert bottleneck(speed) == "81 % of each token is spent reading 6.1 GiB from RAM"


def test_the_sentence_names_the_gpus_or_the_fixed_cost_when_these_take_most_time():
    two = machine(gpu(24 * GIB), gpu(24 * GIB, 1))
    assert "from the memory of 2 GPUs" in bottleneck(predict(model(), REQUEST, Placement(10, (5, 6)), two))
    assert "from VRAM" in bottleneck(predict(model(), REQUEST, WHOLE, machine(gpu(24 * GIB))))
    tiny = replace(model(layer_bytes=GIB // 4096), output_bytes=0)
    assert "fixed cost of its 10 layers" in bottleneck(predict(tiny, REQUEST, WHOLE, machine(gpu(24 * GIB))))


def test_a_measured_ram_bandwidth_calibrates_and_an_assumed_one_widens_the_range():
    known = machine()
    assumed = replace(known, ram_bandwidth_bytes_per_s=None)
    calibrated, estimated = (predict(model(), REQUEST, on_cpu(10, 0), host) for host in (known, assumed))
    assert (calibrated.basis, estimated.basis) == ("calibrated", "estimated")
    assert estimated.host_bandwidth_assumed
    assert not calibrated.host_bandwidth_assumed

    def width(speed):
        return speed.decode_high_tokens_per_s / speed.decode_low_tokens_per_s

    assert width(estimated) > width(calibrated)


def test_an_unknown_host_has_typical_cores_and_not_those_of_the_machine_one_plans_on():
    h100 = replace(gpu(8 * GIB), compute_capability="9.0")
    small, large = (replace(machine(h100), ram_bandwidth_bytes_per_s=None, physical_cores=cores) for cores in (2, 64))
    placement = Placement(10, (5,))
    assert predict(model(), REQUEST, placement, small) == predict(model(), REQUEST, placement, large)
    known = [replace(host, ram_bandwidth_bytes_per_s=184_000_000_000) for host in (small, large)]
    two, sixty_four = (predict(model(), REQUEST, placement, host).decode_tokens_per_s for host in known)
    assert two < sixty_four


def test_a_run_of_the_same_model_is_predicted_as_measured():
    info, host = model(), machine(gpu(24 * GIB))
    fast = predict(info, REQUEST, WHOLE, host, used_tokens=64).decode_tokens_per_s
    host = replace(host, speed_samples=(sample(info, WHOLE, host, fast * 0.8, prefill=1234.0),))
    speed = predict(info, REQUEST, WHOLE, host, used_tokens=64)
    assert speed.decode_tokens_per_s == pytest.approx(fast * 0.8)
    assert speed.prefill_tokens_per_s == pytest.approx(1234.0)
    assert speed.basis == "measured"


def test_a_run_on_the_host_corrects_only_what_runs_on_the_host():
    info, host = model(), machine(gpu(24 * GIB))
    other = replace(model(layer_bytes=GIB // 4), name="small")
    cpu = on_cpu(10, 1)
    rate = predict(other, REQUEST, cpu, host, used_tokens=64).decode_tokens_per_s
    measured = replace(host, speed_samples=(sample(other, cpu, host, rate / 2),))
    before, after = (predict(info, REQUEST, cpu, m).decode_tokens_per_s for m in (host, measured))
    assert after == pytest.approx(before / 2)
    assert predict(info, REQUEST, cpu, measured).basis == "measured"
    assert predict(info, REQUEST, WHOLE, measured) == predict(info, REQUEST, WHOLE, host)


def test_a_run_of_another_kind_of_model_calibrates_only():
    dense, host = model(), machine()
    mixture = replace(model(expert_bytes=GIB // 2), architecture="qwen3moe")
    cpu = on_cpu(10, 0)
    measured = replace(host, speed_samples=(sample(mixture, cpu, host, 5.0),))
    assert predict(dense, REQUEST, cpu, measured).basis == "calibrated"


def test_a_run_on_a_gpu_that_is_not_here_says_nothing():
    info, two = model(), machine(gpu(24 * GIB), gpu(24 * GIB, 1))
    stray = sample(info, Placement(10, (0, 11)), two, 1.0)
    host = machine(gpu(24 * GIB))
    assert predict(info, REQUEST, WHOLE, replace(host, speed_samples=(stray,))) == predict(info, REQUEST, WHOLE, host)


def test_prefill_comes_from_published_runs_of_the_card_and_is_lower_for_mixtures():
    card = replace(gpu(24 * GIB), catalogue_id="rtx-4090")
    dense = predict(model(), REQUEST, WHOLE, machine(card)).prefill_tokens_per_s
    assert dense == pytest.approx(rates.PREFILL_FLOPS_PER_S["rtx-4090"] / 2 / 8e9, rel=0.01)
    unknown = predict(model(), REQUEST, WHOLE, machine(gpu(24 * GIB)))
    assert unknown.prefill_tokens_per_s is None
    info = model(expert_bytes=GIB // 2)
    mixture = predict(info, REQUEST, WHOLE, machine(card)).prefill_tokens_per_s
    assert mixture * active_params(info) == pytest.approx(dense * 8e9 * rates.PREFILL_EXPERT_SHARE, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 65536), st.integers(0, 65536), st.integers(0, 11), st.integers(0, 10))
def test_a_longer_filled_context_is_never_faster(a, b, items, experts):
    info, host = model(expert_bytes=GIB // 2), machine(gpu(24 * GIB))
    placement = Placement(10, (items,), experts)
    short, long = (predict(info, REQUEST, placement, host, used_tokens=n).decode_tokens_per_s for n in sorted((a, b)))
    assert long <= short
