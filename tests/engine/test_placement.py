"""What the plan says about placement is what llama.cpp does, shown on a device that needs no GPU."""

from __future__ import annotations

import asyncio

import pytest

from ggufdeploy.engine.client import EngineClient
from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.engine.request import (
    Delta,
    EngineConfig,
    EngineInfo,
    GenerateRequest,
    SamplingParams,
    TensorOverride,
    TextPrompt,
)
from ggufdeploy.errors import LoadFailed
from ggufdeploy.units import MIB
from tests.engine.conftest import with_changes
from tests.rpc_device import rpc_device, rpc_is_available

pytestmark = pytest.mark.engine


@pytest.fixture
def device():
    if not rpc_is_available():
        pytest.skip("this llama-cpp-python was built without GGML_RPC")
    with rpc_device() as endpoint:
        yield endpoint


async def generate(config: EngineConfig) -> tuple[EngineInfo, str]:
    client = await EngineClient.start(config)
    try:
        await client.wait_ready()
        request = GenerateRequest(
            id="a",
            prompt=TextPrompt("1, 2, 3, 4, 5, 6, 7, 8,"),
            sampling=SamplingParams(temperature=0.0),
            max_tokens=20,
        )
        events = [event async for event in client.generate(request)]
        assert client.status.info is not None
        return client.status.info, "".join(event.text for event in events if isinstance(event, Delta))
    finally:
        await client.stop(0)


async def test_ten_gpu_layers_are_the_last_nine_blocks_and_the_output(demo_config, device):
    _, expected = await generate(demo_config)
    info, text = await generate(with_changes(demo_config, n_gpu_layers=10, rpc_endpoints=(device,)))
    assert info.layer_devices == ("CPU",) * 21 + ("RPC0",) * 10
    assert text == expected
    on_device, host = info.buffers
    assert (on_device.device, host.device) == ("RPC0", "CPU")
    assert on_device.kv_bytes * 21 == host.kv_bytes * 9
    assert on_device.weights_bytes > 0


async def test_a_tensor_override_keeps_its_tensors_off_the_device(demo_config, device):
    config = with_changes(demo_config, n_gpu_layers=31, rpc_endpoints=(device,))
    everything, _ = await generate(config)
    without_ffn, _ = await generate(with_changes(config, overrides=(TensorOverride(r"blk\.\d+\.ffn_", "CPU"),)))
    assert everything.layer_devices == without_ffn.layer_devices == ("RPC0",) * 31
    assert without_ffn.buffers[0].weights_bytes < everything.buffers[0].weights_bytes / 2
    assert without_ffn.buffers[0].kv_bytes == everything.buffers[0].kv_bytes


@pytest.mark.parametrize("changes", [{}, {"key_type": "q8_0", "value_type": "q8_0"}, {"n_gpu_layers": 31}])
async def test_what_the_dry_run_answers_is_what_a_real_load_takes_to_the_byte(demo_config, device, changes):
    placed = {"n_gpu_layers": 10, "rpc_endpoints": (device,), "load_mode": "none"} | changes
    config = with_changes(demo_config, **placed)
    with DryRun() as dry_run:
        planned = dry_run.ask(config)
    info, _ = await generate(config)
    on_device, host = info.buffers
    rows_bytes = 4 * info.n_vocab * config.slots
    for actual, plan, more in ((on_device, planned.devices[0], 0), (host, planned.host, rows_bytes)):
        assert (actual.weights_bytes, actual.kv_bytes) == (plan.weights_bytes, plan.kv_bytes)
        assert actual.compute_bytes == pytest.approx(plan.compute_bytes + more, abs=0.0051 * MIB if more else 0)


async def test_without_gpu_layers_the_device_is_not_touched(demo_config, device):
    info, _ = await generate(with_changes(demo_config, n_gpu_layers=0, rpc_endpoints=(device,)))
    assert [buffers.device for buffers in info.buffers] == ["CPU"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rpc_endpoints": ("127.0.0.1:1",), "n_gpu_layers": 1}, "127.0.0.1:1 does not answer"),
        ({"rpc_endpoints": ("nonsense",), "n_gpu_layers": 1}, "nonsense does not answer"),
        ({"overrides": (TensorOverride("ffn", "CUDA7"),)}, "CUDA7"),
    ],
)
async def test_a_device_that_is_not_there_is_a_clear_error(demo_config, changes, words):
    client = await EngineClient.start(with_changes(demo_config, **changes))
    with pytest.raises(LoadFailed, match=words):
        await asyncio.wait_for(client.wait_ready(), 60)
    await client.stop(0)
