"""Real offload without a GPU: llama.cpp's RPC backend serves this CPU as a device with a budget of our choice."""

from __future__ import annotations

import asyncio

import pytest

from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.oracle import plan_config
from ggufdeploy.deploy.planning import make
from ggufdeploy.deploy.wish import Wish
from ggufdeploy.engine.client import EngineClient
from ggufdeploy.engine.request import Delta, EngineConfig, EngineInfo, GenerateRequest, SamplingParams, TextPrompt
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.budget import HOST_MARGIN_BYTES
from ggufdeploy.units import GIB, MIB
from tests.rpc_device import rpc_device

pytestmark = pytest.mark.engine

WISH = Wish(context_tokens=1024, slots=2, n_ubatch=128)


def machine(budget_bytes: int) -> Machine:
    device = Device(
        name="RPC0", kind="rpc", description="this CPU", total_bytes=budget_bytes, free_bytes=budget_bytes,
        bandwidth_bytes_per_s=20_000_000_000,
    )  # fmt: skip
    return Machine(
        devices=(device,), ram_total_bytes=16 * GIB, ram_available_bytes=8 * GIB, physical_cores=1, logical_cores=1,
        ram_bandwidth_bytes_per_s=20_000_000_000,
    )  # fmt: skip


async def load_and_generate(config: EngineConfig) -> tuple[EngineInfo, str]:
    client = await EngineClient.start(config)
    try:
        await client.wait_ready()
        text = ""
        request = GenerateRequest(
            id="r", prompt=TextPrompt("The capital of France is"), sampling=SamplingParams(temperature=0), max_tokens=24
        )
        async for event in client.generate(request):
            if isinstance(event, Delta):
                text += event.text
        assert client.status.info is not None
        return client.status.info, text
    finally:
        await client.stop(0)


def test_the_plan_is_carried_out_exactly_and_the_text_is_the_cpus(demo_model):
    source = local_source(demo_model)
    with rpc_device() as endpoint:
        planned = make(source, "smollm2", WISH, machine(90 * MIB), rpc_endpoints=(endpoint,))
        plan = planned.plan
        config = plan_config(plan, demo_model, rpc_endpoints=(endpoint,))
        info, offloaded = asyncio.run(load_and_generate(config))
    n_gpu = plan.placement.n_gpu_layers
    assert plan.verdict == "offload"
    assert plan.memory_source == "engine"
    assert 1 < n_gpu < 31
    assert plan.devices[0].used_bytes <= 90 * MIB
    on_device = [device.startswith("RPC0") for device in info.layer_devices]
    assert on_device == [False] * (31 - n_gpu) + [True] * n_gpu

    actual = next(part for part in info.buffers if part.device.startswith("RPC0"))
    assert actual.weights_bytes == pytest.approx(plan.devices[0].weights_bytes, abs=0.01 * MIB)
    assert actual.kv_bytes == pytest.approx(plan.devices[0].kv_bytes, abs=0.01 * MIB)
    assert actual.compute_bytes == pytest.approx(plan.devices[0].compute_bytes, abs=0.01 * MIB)

    alone = make(source, "smollm2", WISH, Machine((), 16 * GIB, 8 * GIB, 1, 1, ram_bandwidth_bytes_per_s=1 << 34))
    assert alone.plan.verdict == "cpu"
    _, on_cpu = asyncio.run(load_and_generate(plan_config(alone.plan, demo_model)))
    assert offloaded == on_cpu
    assert "Paris" in on_cpu


def test_one_more_layer_would_exceed_the_budget(demo_model):
    budget = 90 * MIB
    with rpc_device() as endpoint:
        first = make(local_source(demo_model), "m", WISH, machine(budget), rpc_endpoints=(endpoint,)).plan
        used, layers = first.devices[0].used_bytes, first.placement.n_gpu_layers
        per_layer = (first.devices[0].weights_bytes + first.devices[0].kv_bytes) // max(layers, 1)
        more = make(
            local_source(demo_model), "m", WISH, machine(budget + per_layer * 2), rpc_endpoints=(endpoint,)
        ).plan
    assert used <= budget
    assert more.placement.n_gpu_layers > layers
    one_more = used + (more.devices[0].used_bytes - used) // (more.placement.n_gpu_layers - layers)
    assert one_more > budget


def test_everything_on_the_device_when_the_budget_allows(demo_model):
    with rpc_device() as endpoint:
        planned = make(local_source(demo_model), "m", WISH, machine(2 * GIB), rpc_endpoints=(endpoint,))
    assert planned.plan.verdict == "gpu"
    assert planned.plan.placement.n_gpu_layers == 31
    assert planned.plan.devices[1].margin_bytes == HOST_MARGIN_BYTES
