"""The joint search with llama.cpp's own figures: real shapes as ghosts, and RPC stand-ins as GPUs of any size."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ggufdeploy.deploy.candidates import Candidates
from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.oracle import EngineMemory, plan_config
from ggufdeploy.deploy.planning import make
from ggufdeploy.deploy.wish import Wish
from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.budget import fits
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.plan import Plan
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.units import GIB
from tests.gguf_writer import write_mixtral_8x22b
from tests.rpc_device import rpc_device

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory) -> Path:
    """Mixtral 8x22B in three quantizations: true headers, tensors as holes."""
    folder = tmp_path_factory.mktemp("mixtral")
    for name in ("Q4_K_M", "IQ4_XS", "Q3_K_L"):
        write_mixtral_8x22b(folder, name)
    return folder


def machine(*free_gib: float) -> Machine:
    devices = tuple(
        Device(f"RPC{i}", "rpc", "this CPU", int(g * GIB), int(g * GIB), bandwidth_bytes_per_s=3_350_000_000_000)
        for i, g in enumerate(free_gib)
    )
    return Machine(devices, 256 * GIB, 256 * GIB, 8, 8, ram_bandwidth_bytes_per_s=200_000_000_000)


def planned(folder: Path, wish: Wish, host: Machine) -> Plan:
    """Plan with the engine's figures, on as many stand-ins as the machine has devices."""
    with ExitStack() as stack:
        endpoints = tuple(stack.enter_context(rpc_device()) for _ in host.devices)
        plan = make(local_source(folder), "m", wish, host, rpc_endpoints=endpoints).plan
    assert plan.memory_source == "engine"
    for device in plan.devices[:-1]:
        assert device.used_bytes <= device.free_bytes - device.margin_bytes
    return plan


def test_the_choices_of_the_joint_search_hold_by_the_engines_own_figures(mixtral):
    """One H100 has 78.66 GiB for llama.cpp; 78.06 after margin and pools."""
    plan = planned(mixtral, Wish(context_tokens=32_768), machine(78.06))
    assert (plan.quantization.name, plan.kv_cache.key_type, plan.verdict) == ("IQ4_XS", "q8_0", "gpu")
    plan = planned(mixtral, Wish(context_tokens=32_768, kv_type="f16"), machine(78.06))
    assert (plan.quantization.name, plan.kv_cache.bytes, plan.verdict) == ("Q3_K_L", 7_516_192_768, "gpu")


def test_experts_of_the_fewest_layers_by_the_engines_own_figures_and_one_fewer_does_not_fit(mixtral):
    host = machine(78.06)
    wish = Wish(context_tokens=8192, quantization="Q4_K_M", kv_type="f16", slots=4, n_ubatch=512)
    plan = planned(mixtral, wish, host)
    assert (plan.placement.strategy, plan.placement.n_gpu_layers) == ("experts", 57)
    kept = len(plan.placement.overrides)
    request = PlanRequest(context_tokens=8192, slots=4)
    info = local_info(mixtral, "Q4_K_M")
    with DryRun() as dry_run, rpc_device() as endpoint:
        path = next(mixtral.glob("*Q4_K_M*"))
        memory = EngineMemory(dry_run, str(path), host, (endpoint,))
        here, fewer = (memory.usage(info, request, Placement(56, (57,), n)) for n in (kept, kept - 1))
    assert fits(here, host, request)
    assert not fits(fewer, host, request)
    assert here.devices[0].total_bytes == plan.devices[0].used_bytes
    assert here.host.kv_bytes == 0


def local_info(folder: Path, quantization: str):
    """The model's facts, from its own header."""
    candidates = Candidates(local_source(folder))
    assert candidates.read(quantization)
    return next(item.info for item in candidates.all() if item.quantization == quantization)


def test_two_unequal_gpus_share_the_layers_so_that_both_keep_their_budget(mixtral):
    plan = planned(mixtral, Wish(context_tokens=32_768, quantization="Q3_K_L", kv_type="f16"), machine(30, 56))
    assert (plan.verdict, plan.placement.split_mode) == ("gpu", "layer")
    first, second = plan.placement.tensor_split
    assert first + second == 57
    assert 0.4 < first / second < 0.65


def test_a_pool_is_what_the_engine_allocates(mixtral):
    wish = Wish(context_tokens=8192, kv_pool_tokens=16_384, quantization="Q3_K_L", kv_type="f16")
    plan = planned(mixtral, wish, machine(78.06))
    assert plan.kv_cache.bytes == 16_384 * 229_376
    assert plan_config(plan, Path("m")).context_tokens == 16_384
    assert plan_config(replace(plan, kv_pool_tokens=None), Path("m")).context_tokens == 8192
