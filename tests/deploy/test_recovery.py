"""Memory that is not there: a device of llama.cpp's RPC backend that refuses, and a planner that learns from it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufdeploy.deploy import lessons
from ggufdeploy.deploy.instances import registered
from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.planning import Planned, make
from ggufdeploy.deploy.recovery import Change, Deployment
from ggufdeploy.deploy.running import Ready, ServeOptions, Voice, answer, listen, serve
from ggufdeploy.deploy.wish import Wish
from ggufdeploy.errors import DoesNotFit, LoadFailed
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.plan import Plan
from ggufdeploy.units import GIB, MIB
from tests.rpc_device import rpc_device

pytestmark = pytest.mark.engine

WISH = Wish(context_tokens=1024, slots=2, n_ubatch=128)
REFUSED = LoadFailed(
    "llama.cpp could not load the model.",
    out_of_memory=True,
    log=("alloc_tensor_range: failed to allocate RPC0[127.0.0.1:1] buffer of size 62914560",),
)


def machine(free_bytes: int, total_bytes: int = 200 * MIB) -> Machine:
    device = Device(
        name="RPC0", kind="rpc", description="this CPU", total_bytes=total_bytes, free_bytes=free_bytes,
        bandwidth_bytes_per_s=20_000_000_000,
    )  # fmt: skip
    return Machine(
        devices=(device,), ram_total_bytes=16 * GIB, ram_available_bytes=8 * GIB, physical_cores=1, logical_cores=1,
        ram_bandwidth_bytes_per_s=20_000_000_000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def endpoint():
    with rpc_device() as endpoint:
        yield endpoint


@pytest.fixture
def deploy(demo_model, settings, endpoint) -> Callable[..., Deployment]:
    """Return a function that plans the demo model for one free-memory reading, and reads another one later."""

    def make_deployment(free_mib: int, later_mib: int, wish: Wish = WISH) -> Deployment:
        planned = plan_for(demo_model, machine(free_mib * MIB), wish, endpoint)
        later = machine(later_mib * MIB)
        return Deployment(planned, demo_model, settings, rpc_endpoints=(endpoint,), read_machine=lambda: later)

    return make_deployment


def plan_for(path: Path, host: Machine, wish: Wish, endpoint: str) -> Planned:
    return make(local_source(path), "smollm2", wish, host, rpc_endpoints=(endpoint,))


def on_device(plan: Plan) -> int:
    return plan.devices[0].used_bytes


def test_a_device_that_refuses_gets_a_larger_margin_fewer_layers_and_is_remembered(deploy, settings):
    deployment = deploy(90, 90)
    before = deployment.planned.plan
    change = deployment.plan_again(REFUSED)
    assert change.before == before
    assert change.learned_bytes == 4 * MIB
    assert change.after.placement.n_gpu_layers < before.placement.n_gpu_layers
    assert on_device(change.after) <= 86 * MIB
    assert deployment.config.n_gpu_layers == change.after.placement.n_gpu_layers
    (lesson,) = lessons.load(settings).lessons
    assert (lesson.device, lesson.extra_margin_bytes) == ("RPC0", 4 * MIB)
    first, *_ = lines = change.lines()
    assert (
        first == "memory ran out on RPC0 (60.0 MiB asked for): 90.0 MiB were free when it was planned, 90.0 MiB are now"
    )
    assert f"{before.placement.n_gpu_layers} of 31 layers" in lines[1]
    assert f"{change.after.placement.n_gpu_layers} of 31 layers" in lines[2]
    assert lines[3] == "remembered for next time: 4.0 MiB more stay free on RPC0"


def test_each_further_refusal_doubles_the_lesson(deploy, settings):
    deployment = deploy(90, 90)
    assert [deployment.plan_again(REFUSED).learned_bytes for _ in range(3)] == [4 * MIB, 8 * MIB, 16 * MIB]
    assert on_device(deployment.planned.plan) <= 74 * MIB


def test_a_lesson_that_cannot_be_saved_holds_for_as_long_as_it_runs(deploy, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lessons, "remember", full)
    deployment = deploy(90, 90)
    first, second = deployment.plan_again(REFUSED), deployment.plan_again(REFUSED)
    assert (first.learned_bytes, second.learned_bytes) == (4 * MIB, 8 * MIB)
    assert not first.remembered
    assert on_device(second.after) <= 82 * MIB
    assert first.lines()[-1] == "for as long as this runs: 4.0 MiB more stay free on RPC0"


def test_memory_taken_by_others_is_no_lesson(deploy, settings):
    change = deploy(90, 60).plan_again(REFUSED)
    assert change.learned_bytes is None
    assert on_device(change.after) <= 60 * MIB
    assert lessons.load(settings).lessons == ()
    assert "60.0 MiB are now" in change.lines()[0]
    assert not any("remembered" in line for line in change.lines())


def test_what_was_asked_for_or_chosen_stays(deploy):
    wish = replace(WISH, kv_type="q8_0", quantization="Q4_1")
    deployment = deploy(90, 60, wish)
    before, after = deployment.planned, deployment.plan_again(REFUSED).after
    assert deployment.planned.wish == before.wish == wish
    for field in ("context_tokens", "slots", "quantization", "model", "engine"):
        assert getattr(after, field) == getattr(before.plan, field)
    assert after.kv_cache == before.plan.kv_cache


def test_where_only_the_gpu_is_allowed_it_ends_with_the_numbers(deploy):
    deployment = deploy(200, 60, replace(WISH, offload="none"))
    with pytest.raises(
        DoesNotFit, match=r"could not load the model\. With what is free now, nothing else does"
    ) as caught:
        deployment.plan_again(REFUSED)
    assert caught.value.hint


def test_a_host_without_memory_has_no_smaller_plan_and_says_the_ways_out(deploy):
    deployment = deploy(90, 90)
    killed = LoadFailed(
        "It was ended by SIGKILL.", out_of_memory=True, log=("failed to allocate CPU buffer of size 1",)
    )
    with pytest.raises(LoadFailed, match="No plan of Q4_1 with 1,024 tokens takes less") as caught:
        deployment.plan_again(killed)
    assert "--ctx 512" in caught.value.hint
    deployment.mark_proven()
    change = deployment.plan_again(killed)  # it ran before, so it may run again
    assert change.after.placement == change.before.placement


def test_a_refusal_that_names_nobody_is_put_down_to_the_gpu_in_use(deploy):
    aborted = LoadFailed("It was ended by SIGABRT.", out_of_memory=True, log=("CUDA error: out of memory",))
    change = deploy(90, 90).plan_again(aborted)
    assert (change.refusal.device, change.learned_bytes) == ("RPC0", 4 * MIB)


def test_a_process_killed_in_silence_is_put_down_to_the_host_and_costs_the_gpu_nothing(deploy, settings):
    deployment = deploy(90, 90)
    deployment.mark_proven()
    change = deployment.plan_again(LoadFailed("It was ended by SIGKILL.", out_of_memory=True, log=("loading",)))
    assert (change.refusal.device, change.learned_bytes) == ("CPU", None)
    assert change.after.placement == change.before.placement
    assert lessons.load(settings).lessons == ()


def test_a_device_that_has_less_than_it_says_is_loaded_with_what_it_has(demo_model, settings):
    """The real thing: llama.cpp's own allocation fails, and the second plan answers.

    The device's memory also takes the tensors on their way, 28 MB at most, so the figures leave room for them.
    """
    changes: list[Change] = []
    text: list[str] = []
    with rpc_device(memory_bytes=85 * MIB) as endpoint:
        host = machine(150 * MIB, total_bytes=5000 * MIB)
        planned = plan_for(demo_model, host, WISH, endpoint)
        deployment = Deployment(planned, demo_model, settings, rpc_endpoints=(endpoint,), read_machine=lambda: host)
        voice = Voice(on_changed=changes.append)
        done = asyncio.run(answer(deployment, "Count to three.", 8, voice, text.append))
    assert done.completion_tokens > 0
    assert "".join(text)
    (change,) = changes
    assert change.refusal.device == "RPC0"
    assert change.refusal.asked_bytes > 85 * MIB
    assert 0 < deployment.planned.plan.placement.n_gpu_layers < planned.plan.placement.n_gpu_layers
    assert lessons.load(settings).lessons[0].extra_margin_bytes == 100 * MIB


def test_a_server_that_ran_out_of_memory_serves_and_shows_the_plan_in_force(demo_model, settings):
    """The whole way: refused, planned again, loaded, served, with planned and actual side by side."""
    ready: list[Ready] = []
    changes: list[Change] = []
    documents: list[dict[str, Any]] = []

    def ask_and_stop(url: str) -> None:
        documents.append(_get(f"{url}/plan"))
        os.kill(os.getpid(), signal.SIGTERM)

    def look(now: Ready) -> None:
        ready.append(now)
        threading.Thread(target=ask_and_stop, args=(now.url,)).start()

    with rpc_device(memory_bytes=85 * MIB) as endpoint:
        host = machine(150 * MIB, total_bytes=5000 * MIB)
        planned = plan_for(demo_model, host, WISH, endpoint)
        deployment = Deployment(planned, demo_model, settings, rpc_endpoints=(endpoint,), read_machine=lambda: host)
        options = ServeOptions(port=0)
        voice = Voice(on_ready=look, on_changed=changes.append)
        with listen(options) as sock, registered(settings, model="m", ref="m", log=None) as entry:
            code = asyncio.run(serve(deployment, options, sock, voice, entry))
    assert code == 0
    assert (len(ready), len(changes)) == (1, 1)
    truth = ready[0].truth
    assert truth.warnings == ()
    assert 0 < truth.gpu_share < 1
    device, ram = truth.devices
    assert device.actual == device.planned
    assert ram.actual.total_bytes == pytest.approx(ram.planned.total_bytes, abs=0.01 * MIB)  # logits: from the log
    assert truth.proof_tokens == (64, 128)
    (document,) = documents
    assert document["plan"]["placement"]["n_gpu_layers"] == changes[0].after.placement.n_gpu_layers
    assert document["memory"]["devices"][0]["actual"]["kv_bytes"] == device.actual.kv_bytes
    assert document["actual"]["ladder"]["rungs"] == [64, 128]


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=20) as response:
        return json.load(response)
