"""Workers that die in every way there is, with a fake model: real processes, no llama.cpp."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import msgspec
import pytest

from ggufdeploy.engine.client import Patience
from ggufdeploy.engine.request import (
    Accepted,
    Delta,
    EngineConfig,
    Finished,
    GenerateRequest,
    SamplingParams,
    TextPrompt,
)
from ggufdeploy.engine.supervisor import Hooks, RestartPolicy, Supervisor
from ggufdeploy.errors import EngineCrashed, EngineError, LoadFailed, Overloaded
from tests.fakes import expected_text

QUICK = RestartPolicy(base_delay_s=0.01, max_failures=2)
GREEDY = SamplingParams(temperature=0.0)


class Plans:
    """Answers each refusal with half the layers, and remembers the errors; gives up at 1."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.errors: list[EngineError] = []

    async def __call__(self, error: EngineError) -> EngineConfig:
        self.errors.append(error)
        if self.config.n_gpu_layers <= 1:
            raise LoadFailed("nothing smaller is left", out_of_memory=True)
        self.config = msgspec.structs.replace(self.config, n_gpu_layers=self.config.n_gpu_layers // 2)
        return self.config


class Watched:
    """A supervisor of faulty workers with what it reported."""

    def __init__(self, config: EngineConfig, **options: object) -> None:
        self.config = msgspec.structs.replace(config, context_tokens=512, slots=2)
        self.plans = Plans(self.config)
        self.lost: list[tuple[EngineError, float | None]] = []
        self.n_ready = 0
        self._options = {"policy": QUICK, **options}

    async def __aenter__(self) -> Watched:
        hooks = Hooks(on_ready=self._ready, on_lost=lambda error, delay_s: self.lost.append((error, delay_s)))
        self.engine = await Supervisor.start(
            self.config, self.plans, hooks=hooks, worker="tests.faulty_worker", **self._options
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop(0)

    def _ready(self, info: object) -> None:
        self.n_ready += 1

    async def until_ready(self, times: int = 1) -> None:
        async def watch() -> None:
            while self.n_ready < times or self.engine.status.phase != "ready":
                await asyncio.sleep(0.01)

        await asyncio.wait_for(watch(), 30)

    async def text(self, id: str, n_tokens: int = 5) -> str:
        wanted = GenerateRequest(id=id, prompt=TextPrompt("abc"), sampling=GREEDY, max_tokens=n_tokens, ignore_eos=True)
        events = [event async for event in self.engine.generate(wanted)]
        assert [type(event) for event in events].count(Accepted) == 1
        assert isinstance(events[-1], Finished)
        return "".join(event.text for event in events if isinstance(event, Delta))


@pytest.fixture
def fault(monkeypatch, tmp_path):
    """Set the fault; once: only in the first worker that reaches it."""

    def set_fault(what: str, *, once: bool = False, above: int = -1, pace_s: float = 0.0) -> None:
        monkeypatch.setenv("FAULT", what)
        monkeypatch.setenv("FAULT_ABOVE", str(above))
        monkeypatch.setenv("FAULT_PACE_S", str(pace_s))
        if once:
            monkeypatch.setenv("FAULT_ONCE", str(tmp_path / "happened"))

    set_fault("none:none")
    return set_fault


@pytest.fixture
def config(fake_config: EngineConfig) -> EngineConfig:
    return msgspec.structs.replace(fake_config, n_gpu_layers=31)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["load", "ladder"])
async def test_memory_refused_before_the_first_token_is_planned_around(where, fault, config):
    fault(f"{where}:oom", above=10)
    async with Watched(config) as watched:
        info = await asyncio.wait_for(watched.engine.wait_ready(), 30)
        assert watched.plans.config.n_gpu_layers == 7
        assert len(watched.plans.errors) == 2
        assert all("RPC0 buffer" in "".join(error.log) for error in watched.plans.errors)
        assert info.ladder is not None
        assert await watched.text("one") == expected_text(b"abc", 5)


@pytest.mark.slow
async def test_memory_refused_while_serving_fails_what_runs_and_loads_a_smaller_plan(fault, config):
    fault("decode:3:oom", above=20)
    async with Watched(config) as watched:
        await watched.until_ready()
        with pytest.raises(EngineCrashed, match="ran out of memory") as caught:
            await watched.text("first", 50)
        assert caught.value.out_of_memory
        await watched.until_ready(2)
        assert watched.plans.config.n_gpu_layers == 15
        assert await watched.text("second", 50) == expected_text(b"abc", 50)


@pytest.mark.slow
async def test_when_no_plan_is_left_it_ends_with_the_planners_sentence(fault, config):
    fault("load:oom")
    async with Watched(msgspec.structs.replace(config, n_gpu_layers=2)) as watched:
        with pytest.raises(LoadFailed, match="nothing smaller is left"):
            await asyncio.wait_for(watched.engine.wait_ready(), 30)
        assert watched.engine.status.phase == "failed"


@pytest.mark.slow
async def test_memory_refused_again_and_again_ends_after_three_plans(fault, config):
    fault("load:oom")
    async with Watched(config) as watched:
        with pytest.raises(LoadFailed, match="with 4 plans in a row") as caught:
            await asyncio.wait_for(watched.engine.wait_ready(), 30)
        assert "--ctx" in (caught.value.hint or "")
        assert len(watched.plans.errors) == 3


@pytest.mark.slow
async def test_a_worker_killed_while_loading_is_taken_for_one_the_kernel_killed(fault, config):
    fault("load:kill", once=True)
    async with Watched(config) as watched:
        await watched.until_ready()
        (error,) = watched.plans.errors
        assert "SIGKILL, as the kernel does when memory runs out" in error.message


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "segv"])
async def test_a_crash_fails_the_running_request_and_keeps_the_queued_one(how, fault, config):
    fault(f"decode:10:{how}", once=True, pace_s=0.05)
    async with Watched(config) as watched:
        await watched.until_ready()
        running = [asyncio.ensure_future(watched.text(str(i), 50)) for i in range(2)]
        while watched.engine.stats.running < 2:
            await asyncio.sleep(0.01)
        queued = asyncio.ensure_future(watched.text("queued", 3))
        for task in running:
            with pytest.raises(EngineCrashed, match="SIG"):
                await task
        assert watched.engine.status.phase == "restarting"
        with pytest.raises(Overloaded, match="loaded again") as caught:
            await watched.text("early")
        assert caught.value.retry_after_s >= 1
        assert await asyncio.wait_for(queued, 30) == expected_text(b"abc", 3)
        assert watched.engine.n_restarts == 1
        assert watched.plans.errors == []


@pytest.mark.slow
async def test_a_worker_that_hangs_is_ended_and_replaced(fault, config):
    fault("decode:3:hang", once=True)
    async with Watched(config, patience=Patience(step_s=0.5)) as watched:
        await watched.until_ready()
        began = time.monotonic()
        with pytest.raises(EngineCrashed, match="did not answer"):
            await watched.text("stuck", 50)
        assert time.monotonic() - began < 5
        await watched.until_ready(2)
        assert await watched.text("again") == expected_text(b"abc", 5)


@pytest.mark.slow
async def test_a_stopped_process_counts_as_hung_only_while_something_is_asked_of_it(fault, config):
    async with Watched(config, patience=Patience(step_s=0.3)) as watched:
        await watched.until_ready()
        pid = watched.engine.pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.8)
        assert watched.engine.status.phase == "ready"
        with pytest.raises(Overloaded):
            await watched.text("asked")
        await watched.until_ready(2)
        assert watched.engine.pid != pid


@pytest.mark.slow
async def test_a_load_that_makes_no_progress_is_ended(fault, config):
    fault("ladder:hang")
    async with Watched(config, patience=Patience(load_s=2.0)) as watched:
        with pytest.raises(LoadFailed, match="made no progress"):
            await asyncio.wait_for(watched.engine.wait_ready(), 30)


@pytest.mark.slow
async def test_a_crash_loop_ends_with_a_sentence(fault, config):
    fault("decode:1:segv")
    async with Watched(config) as watched:
        for turn in range(1, 4):
            await watched.until_ready(turn)
            with pytest.raises(EngineCrashed):
                await watched.text(str(turn))
        with pytest.raises(EngineCrashed, match=r"3 times in a row .* SIGSEGV") as caught:
            await asyncio.wait_for(watched.engine.wait_ended(), 30)
        assert "doctor" in (caught.value.hint or "")
        assert [delay_s for _, delay_s in watched.lost] == [0.0, 0.01]
        assert watched.engine.status.phase == "failed"


@pytest.mark.slow
async def test_a_worker_that_finished_requests_may_die_any_number_of_times(fault, config):
    async with Watched(config) as watched:
        for turn in range(1, 6):
            await watched.until_ready(turn)
            assert await watched.text(str(turn)) == expected_text(b"abc", 5)
            os.kill(watched.engine.pid, signal.SIGKILL)
        await watched.until_ready(6)
        assert {delay_s for _, delay_s in watched.lost} == {0.0}


@pytest.mark.slow
async def test_a_first_load_that_fails_for_another_reason_is_not_repeated(fault, config):
    fault("ladder:broken")
    async with Watched(config) as watched:
        with pytest.raises(LoadFailed, match="broken"):
            await asyncio.wait_for(watched.engine.wait_ready(), 30)
        assert watched.lost == []


@pytest.mark.slow
async def test_stopping_while_it_restarts_leaves_nothing(fault, config):
    async with Watched(config) as watched:
        await watched.until_ready()
        os.kill(watched.engine.pid, signal.SIGKILL)
        while watched.engine.status.phase == "ready":
            await asyncio.sleep(0.005)
        await watched.engine.stop(0)
        assert watched.engine.status.phase == "stopped"
        with pytest.raises(Overloaded, match="shutting down"):
            await watched.text("late")


def test_the_pause_doubles_up_to_its_limit():
    policy = RestartPolicy(base_delay_s=1.0, max_delay_s=30.0)
    assert [policy.delay_s(n) for n in range(1, 9)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
