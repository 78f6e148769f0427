"""What must hold for every model, machine and request."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.hardware.machine import Machine, machine_from_json, machine_to_json
from ggufdeploy.planner import quality
from ggufdeploy.planner.assemble import make_plan
from ggufdeploy.planner.budget import fits
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.packing import pack
from ggufdeploy.planner.plan import plan_from_json, plan_to_json
from ggufdeploy.planner.request import Candidate, PlanRequest
from ggufdeploy.planner.scale import scale
from ggufdeploy.planner.search import Option, SearchResult, evaluate, front, search
from ggufdeploy.units import GIB, MIB
from tests.planner.models import candidate, gpu, machine, model

pytestmark = pytest.mark.slow  # hundreds of random machines each

MEMORY = FormulaMemory()
BITS = {"Q8_0": 8.5, "Q6_K": 6.6, "Q4_K_M": 4.8, "Q3_K_S": 3.5, "Q2_K": 2.6}


@st.composite
def infos(draw) -> ModelInfo:
    """Blocks of uneven size, with or without experts, windows, recurrent blocks and tied embeddings."""
    experts = draw(st.booleans())
    layers = []
    for index in range(draw(st.integers(1, 40))):
        dense, routed = draw(st.integers(1, 400)) * MIB, draw(st.integers(1, 2000)) * MIB if experts else 0
        heads, window = draw(st.sampled_from([0, 1, 8])), draw(st.sampled_from([None, None, 1024]))
        layers.append(LayerInfo(index, dense, routed, heads, 128, 128, (routed or dense) // 3, window))
    base = model(expert_bytes=GIB // 2 if experts else 0, tied=draw(st.booleans()))
    output = draw(st.integers(1, 2000)) * MIB
    total = sum(layer.total_bytes for layer in layers) + output * (1 if base.tied_embeddings else 2)
    return replace(
        base, layers=tuple(layers), n_layers=len(layers), output_bytes=output, token_embedding_bytes=output,
        total_bytes=total,
    )  # fmt: skip


machines = st.builds(
    lambda sizes, ram: machine(*(gpu(size * MIB, i) for i, size in enumerate(sizes)), ram_bytes=ram * GIB),
    st.lists(st.integers(0, 40_000), max_size=4), st.integers(2, 256),
)  # fmt: skip
requests = st.builds(
    PlanRequest,
    context_tokens=st.integers(1, 131_072),
    slots=st.integers(1, 16),
    kv_type=st.sampled_from(["f16", "q5_1", "f32"]),
    other_kv_types=st.sampled_from([(), ("q8_0",)]),
    other_ubatches=st.sampled_from([(), (32,)]),
    other_slots=st.sampled_from([(), (1,)]),
    kv_pool_tokens=st.sampled_from([None, 262_144]),
    vram_budgets=st.sampled_from([(), ((None, 8 * GIB),), (("CUDA0", 4 * GIB), (None, 20 * GIB))]),
    prefer=st.sampled_from(["balanced", "quality", "speed", "context"]),
    offload=st.sampled_from(["auto", "experts", "layers", "none"]),
    reserve_bytes=st.integers(0, 2 * GIB),
    n_ubatch=st.sampled_from([64, 512, 2048]),
)


def ladder(info: ModelInfo) -> list[Candidate]:
    return [candidate(name, scale(info, int(info.total_bytes * bits / 8.5))) for name, bits in BITS.items()]


def plan(info: ModelInfo, request: PlanRequest, host: Machine) -> SearchResult:
    return search(ladder(info), request, host, MEMORY)


@settings(max_examples=150, deadline=None)
@given(infos(), requests, machines)
def test_what_is_chosen_fits_every_budget_and_obeys_the_request(info, request, host):
    option = plan(info, request, host).chosen
    if option is None:
        return
    assert fits(option.usage, host, request)
    assert 0 <= option.placement.n_gpu_layers <= option.placement.n_layers_total
    assert len(option.placement.items_per_device) == len(host.devices)
    assert all(part.weights_bytes >= 0 and part.kv_bytes >= 0 for part in (*option.usage.devices, option.usage.host))
    assert (option.verdict == "gpu") == (option.placement.strategy == "full" and bool(host.devices))
    if request.offload == "none" and host.devices:
        assert option.verdict == "gpu"
    assert (option.short_bytes == 0) == (option.verdict == "gpu" or not host.devices)


@settings(max_examples=150, deadline=None)
@given(infos(), requests, machines)
def test_every_gpu_keeps_its_margin_also_in_the_plans_own_figures(info, request, host):
    result = plan(info, request, host)
    if result.chosen is None:
        return
    made = make_plan("m", "m", None, None, request, host, result.chosen, result, ())
    for device in made.devices[:-1]:
        if device.used_bytes:
            assert device.used_bytes <= device.free_bytes - device.margin_bytes
        cap = min((n for name, n in request.vram_budgets if name in (None, device.name)), default=None)
        assert cap is None or device.used_bytes <= cap
    assert plan_from_json(plan_to_json(made)) == made


@settings(max_examples=100, deadline=None)
@given(machines, st.booleans())
def test_machines_go_to_json_and_back(host, simulated):
    host = replace(host, simulated=simulated)
    assert machine_from_json(machine_to_json(host)) == host


def on_gpus(option: Option) -> tuple[int, int]:
    """Layers on GPUs, then blocks whose experts are there too."""
    return option.placement.n_gpu_layers, -option.placement.cpu_expert_layers


sizes_of_gpus = st.lists(st.integers(0, 40_000), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(infos(), requests, sizes_of_gpus, st.integers(1, 20_000), st.sampled_from(["experts", "layers", "none"]))
def test_more_vram_never_gives_fewer_layers_on_gpus(info, request, sizes, more, offload):
    """Under one policy: `auto` compares two."""
    request = replace(request, offload=offload, vram_budgets=())
    one = candidate("Q4_K_M", info)
    less = evaluate(one, request, machine(*(gpu(size * MIB, i) for i, size in enumerate(sizes))), MEMORY)
    bigger = machine(*(gpu((size + more) * MIB, i) for i, size in enumerate(sizes)))
    assert on_gpus(evaluate(one, request, bigger, MEMORY)) >= on_gpus(less)


@settings(max_examples=200, deadline=None)
@given(infos(), requests, sizes_of_gpus, st.integers(1, 20_000), st.integers(2, 64), st.integers(0, 64))
def test_more_memory_never_gives_a_worse_plan(info, request, sizes, more, ram, more_ram):
    """The plan for less memory is never better in both quality and speed, and never on GPUs where the other is not."""
    small = machine(*(gpu(size * MIB, i) for i, size in enumerate(sizes)), ram_bytes=ram * GIB)
    large = machine(*(gpu((size + more) * MIB, i) for i, size in enumerate(sizes)), ram_bytes=(ram + more_ram) * GIB)
    before, after = plan(info, request, small).chosen, plan(info, request, large).chosen
    if before is None:
        return
    assert after is not None
    # The speed of a split differs by a hair with where the layers lie, because slots and passes may.
    assert not (before.score > after.score and before.decode > after.decode * 1.0001)
    if request.prefer == "balanced" and before.verdict == "gpu" and quality.meets_floor(before.candidate.quantization):
        assert after.verdict == "gpu"


@settings(max_examples=150, deadline=None)
@given(infos(), requests, machines, st.integers(1, 131_072))
def test_more_context_never_gives_a_higher_speed(info, request, host, more):
    """Of one quantization; another one may be smaller, and then faster. The GPUs are equally fast."""
    one = candidate("Q4_K_M", info)
    short = evaluate(one, request, host, MEMORY)
    long = evaluate(one, replace(request, context_tokens=request.context_tokens + more), host, MEMORY)
    if long.verdict != "impossible":
        assert long.decode <= short.decode * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(infos(), requests, machines, st.integers(1, 131_072))
def test_a_longer_context_never_gives_a_better_quantization_wholly_in_vram(info, request, host, more):
    """Only in VRAM: once `balanced` must offload, it takes quality where that costs little speed, and KV reads level
    the speeds of long contexts."""
    request = replace(request, prefer="balanced", other_kv_types=())
    short = plan(info, request, host).chosen
    long = plan(info, replace(request, context_tokens=request.context_tokens + more), host).chosen
    if short is not None and long is not None and short.verdict == long.verdict == "gpu":
        assert quality.rank(long.candidate.quantization) >= quality.rank(short.candidate.quantization)


@settings(max_examples=100, deadline=None)
@given(infos(), requests, machines)
def test_nothing_beats_a_point_of_the_front_and_every_other_option_is_beaten(info, request, host):
    options = plan(info, request, host).options
    best = front(options)
    for option in options:
        if option.verdict == "impossible":
            assert option not in best
            continue
        beaten = any(o.score >= option.score and o.decode >= option.decode and o is not option for o in best)
        assert (option in best) or beaten
    assert all(a.score > b.score and a.decode < b.decode for a, b in itertools.pairwise(best))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=12), st.lists(st.integers(0, 300), min_size=1, max_size=4))
def test_packing_places_every_item_and_finds_a_cut_whenever_there_is_one(costs, budgets):
    shares = pack(costs, budgets)
    assert sum(shares) == len(costs)

    def possible(start: int, devices: tuple[int, ...]) -> bool:
        if start == len(costs):
            return True
        return bool(devices) and any(
            sum(costs[start:end]) <= devices[0] and possible(end, devices[1:]) for end in range(start, len(costs) + 1)
        )

    starts = [sum(shares[:i]) for i in range(len(shares))]
    held = [sum(costs[start : start + n]) for start, n in zip(starts, shares, strict=True)]
    assert all(h <= b for h, b in zip(held, budgets, strict=True)) == possible(0, tuple(budgets))
