"""The placement against brute force: every split of every number of layers and experts, on 500 random machines."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.budget import budget_bytes, fits
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import Option, evaluate
from ggufdeploy.units import MIB
from tests.planner.models import candidate, gpu, machine, model

MEMORY = FormulaMemory()
CASES = 500
CHUNKS = 10


def random_model(rng: random.Random) -> ModelInfo:
    """Up to seven blocks of uneven size; experts, windows, recurrent blocks and large host copies at random."""
    experts = rng.random() < 0.6
    layers = []
    for index in range(rng.randint(1, 7)):
        dense = rng.randint(1, 400) * MIB
        routed = rng.randint(100, 2000) * MIB if experts and rng.random() < 0.9 else 0
        copy = int(rng.uniform(0.1, 1.0) * (routed or dense))
        window = rng.choice([None, None, 512])
        layers.append(LayerInfo(index, dense, routed, rng.choice([0, 1, 8]), 128, 128, copy, window))
    base = model(expert_bytes=MIB if experts else 0, tied=rng.random() < 0.5)
    output = rng.randint(1, 800) * MIB
    total = sum(layer.total_bytes for layer in layers) + output * (1 if base.tied_embeddings else 2)
    return replace(
        base, layers=tuple(layers), n_layers=len(layers), output_bytes=output, token_embedding_bytes=output,
        total_bytes=total, embedding_length=256, feed_forward_length=512,
        expert_feed_forward_length=256 if experts else None,
    )  # fmt: skip


def random_case(rng: random.Random) -> tuple[ModelInfo, PlanRequest, Machine]:
    info = random_model(rng)
    n_gpus = rng.choice([1, 1, 2, 2, 3])
    room = rng.uniform(0.1, 1.4) * info.total_bytes / n_gpus
    sizes = [int(1300 * MIB + room * rng.uniform(0.3, 1.7)) for _ in range(n_gpus)]
    host = machine(*(gpu(size, i, rng.choice([400, 1000, 3000]) * 10**9) for i, size in enumerate(sizes)))
    request = PlanRequest(
        context_tokens=rng.choice([512, 8192, 65_536]), slots=rng.choice([1, 4]), kv_type=rng.choice(["f16", "q8_0"]),
        offload=rng.choice(["experts", "layers", "none"]), reserve_bytes=rng.choice([0, 200 * MIB]), n_ubatch=128,
    )  # fmt: skip
    return info, request, host


def splits(items: int, n_devices: int) -> Iterator[tuple[int, ...]]:
    """Every way to give `items` layers to the devices, in order."""
    for cuts in itertools.combinations_with_replacement(range(items + 1), n_devices - 1):
        bounds = (0, *cuts, items)
        yield tuple(b - a for a, b in itertools.pairwise(bounds))


def fitting(info: ModelInfo, request: PlanRequest, host: Machine, items: int, experts: int = 0) -> list[Placement]:
    """Every placement of the last `items` that fits."""
    placements = (Placement(info.n_layers, split, experts) for split in splits(items, len(host.devices)))
    return [p for p in placements if fits(MEMORY.usage(info, request, p), host, request)]


def fill(placement: Placement, info: ModelInfo, request: PlanRequest, host: Machine) -> float:
    """How full the fullest GPU is, beside its buffers."""
    usage = MEMORY.usage(info, request, placement)
    compute = max(part.compute_bytes for part in usage.devices)
    shares = [
        (part.weights_bytes + part.kv_bytes) / room if (room := budget_bytes(device, request) - compute) > 0 else 0.0
        for part, device in zip(usage.devices, host.devices, strict=True)
    ]
    return max(shares)


def check_split(option: Option, choices: list[Placement], host: Machine) -> None:
    """One GPU if one holds it all, the fastest of them; else the fullest GPU is as little full as possible."""
    info, request = option.candidate.info, option.request
    singles = [p for p in choices if sum(items > 0 for items in p.items_per_device) == 1]
    if singles:
        assert option.placement in singles
        speeds = [host.devices[p.output_device].bandwidth_bytes_per_s for p in singles]
        assert host.devices[option.placement.output_device].bandwidth_bytes_per_s == max(speeds)
        return
    best = min(fill(p, info, request, host) for p in choices)
    assert fill(option.placement, info, request, host) <= best * (1 + 1e-5)


def check(info: ModelInfo, request: PlanRequest, host: Machine) -> str:
    """Compare one case with brute force; return what kind of answer it was."""
    option = evaluate(candidate(info=info), request, host, MEMORY)
    whole = fitting(info, request, host, info.n_layers + 1)
    assert (option.verdict == "gpu") == bool(whole)
    if whole:
        check_split(option, whole, host)
        return "gpu"
    if request.offload == "none":
        assert option.verdict == "impossible"
        return "none"
    all_experts = 0
    if info.n_experts and request.offload == "experts":
        for experts in range(1, info.n_layers + 1):
            choices = fitting(info, request, host, info.n_layers + 1, experts)
            if choices:
                assert option.placement.n_gpu_layers == info.n_layers + 1
                assert option.placement.cpu_expert_layers == experts  # one less was tried just before, and does not fit
                check_split(option, choices, host)
                return "experts"
        all_experts = info.n_layers
    for items in range(info.n_layers, 0, -1):
        choices = fitting(info, request, host, items, all_experts)
        if choices:
            assert option.placement.n_gpu_layers == items  # one more was tried just before, and does not fit
            assert option.placement.cpu_expert_layers == all_experts
            check_split(option, choices, host)
            return "layers"
    assert option.placement.n_gpu_layers == 0
    return "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_placement_equals_brute_force_on_500_random_machines(chunk):
    kinds = set()
    for seed in range(chunk, CASES, CHUNKS):
        kinds.add(check(*random_case(random.Random(seed))))
    assert {"gpu", "layers", "experts"} <= kinds


@pytest.mark.slow
def test_auto_takes_the_faster_of_experts_and_layers():
    for seed in range(200):
        info, request, host = random_case(random.Random(seed))
        one = candidate(info=info)
        auto, experts, layers = (
            evaluate(one, replace(request, offload=policy), host, MEMORY) for policy in ("auto", "experts", "layers")
        )
        assert auto.decode == max(experts.decode, layers.decode)
