"""What must hold for every model, machine and request."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner import quality
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.packing import pack
from ggufdeploy.planner.request import Candidate, PlanRequest
from ggufdeploy.planner.scale import scale
from ggufdeploy.planner.search import Option, SearchResult, evaluate, fits, search
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
    kv_type=st.sampled_from(["f16", "q8_0", "f32"]),
    prefer=st.sampled_from(["balanced", "quality", "speed"]),
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


def on_gpus(option: Option) -> tuple[int, int]:
    """Layers on GPUs, then blocks whose experts are there too."""
    return option.placement.n_gpu_layers, -option.placement.cpu_expert_layers


@settings(max_examples=100, deadline=None)
@given(infos(), requests, st.lists(st.integers(0, 40_000), min_size=1, max_size=3), st.integers(1, 20_000))
def test_more_vram_never_gives_fewer_layers_on_gpus(info, request, sizes, more):
    one = candidate("Q4_K_M", info)
    less = evaluate(one, request, machine(*(gpu(size * MIB, i) for i, size in enumerate(sizes))), MEMORY)
    bigger = machine(*(gpu((size + more) * MIB, i) for i, size in enumerate(sizes)))
    assert on_gpus(evaluate(one, request, bigger, MEMORY)) >= on_gpus(less)


@settings(max_examples=100, deadline=None)
@given(infos(), requests, machines, st.integers(1, 131_072))
def test_a_longer_context_never_gives_a_better_quantization_wholly_in_vram(info, request, host, more):
    """Only in VRAM: once `balanced` must offload, it takes quality where that costs little speed, and KV reads level
    the speeds of long contexts."""
    request = replace(request, prefer="balanced")
    short = plan(info, request, host).chosen
    long = plan(info, replace(request, context_tokens=request.context_tokens + more), host).chosen
    if short is not None and long is not None and short.verdict == long.verdict == "gpu":
        assert quality.rank(long.candidate.quantization) >= quality.rank(short.candidate.quantization)


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
