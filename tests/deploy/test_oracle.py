"""The engine's answer decides; without one the plan is an estimate; where it contradicts the driver, that is said."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ggufdeploy.deploy import planning
from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.oracle import EngineMemory, engine_config, model_file
from ggufdeploy.deploy.planning import make
from ggufdeploy.deploy.sources import local_headers
from ggufdeploy.deploy.wish import Wish
from ggufdeploy.engine import dryrun
from ggufdeploy.engine.dryrun import DeviceMemory, DryRun, DryRunAnswer
from ggufdeploy.errors import BadValue, EngineError, NoDryRun
from ggufdeploy.gguf.model import model_info
from ggufdeploy.hardware.catalog import find_gpu, simulate
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.placement import Placement, on_cpu
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.units import GIB, MIB
from tests.gguf_writer import LLAMA_31_8B, TINY_LLAMA, write_model
from tests.planner.models import gpu, machine, model

pytestmark = pytest.mark.slow

REQUEST = PlanRequest(context_tokens=512, slots=2)


class Answers:
    """A dry run that gives the same answer to everything."""

    def __init__(self, *names: str) -> None:
        devices = tuple(DeviceMemory(name, GIB, GIB, MIB, MIB, MIB) for name in names)
        self._answer = DryRunAnswer(devices, DeviceMemory("CPU", GIB, GIB, MIB, MIB, MIB))

    def ask(self, config) -> DryRunAnswer:
        return self._answer


@pytest.mark.parametrize("seen", [(), ("CUDA0",), ("Vulkan0", "Vulkan1")])
def test_a_build_that_sees_other_gpus_than_the_driver_is_an_error_with_a_way_out(seen):
    host = machine(gpu(GIB, 0), gpu(GIB, 1))
    memory = EngineMemory(Answers(*seen), "m.gguf", host)
    with pytest.raises(EngineError, match="CUDA0, CUDA1") as caught:
        memory.usage(model(), REQUEST, Placement(10, (6, 5)))
    assert "ggufdeploy doctor" in caught.value.hint


@pytest.fixture
def ladder(tmp_path) -> Path:
    """Llama 3.1 8B in three quantizations, as ghosts."""
    folder = tmp_path / "llama"
    for name in ("Q8_0", "Q6_K", "Q4_K_M"):
        write_model(folder, LLAMA_31_8B, name)
    return folder


def test_free_memory_is_what_llama_cpp_reads_not_the_drivers():
    host = machine(gpu(8 * GIB, 0), gpu(8 * GIB, 1))
    seen = EngineMemory(Answers("CUDA0", "CUDA1"), "m.gguf", host).machine_seen(model(), REQUEST)
    assert [(device.free_bytes, device.free_is_estimate) for device in seen.devices] == [(GIB, False)] * 2
    assert replace(seen, devices=host.devices) == host


class Heavy(EngineMemory):
    """An engine whose compute buffers are 1 GiB larger than the formula says."""

    def machine_seen(self, info, request):
        return self._machine

    def usage(self, info, request, placement):
        usage = planning.FormulaMemory().usage(info, request, placement)
        devices = tuple(
            replace(part, compute_bytes=part.compute_bytes + GIB) if part.total_bytes else part
            for part in usage.devices
        )
        return replace(usage, devices=devices, source="engine")


def test_a_choice_the_engine_refutes_gives_way_to_the_next_quantization(ladder, monkeypatch):
    host = machine(gpu(int(9.3 * GIB)))
    formula = make(local_source(ladder), "m", Wish(context_tokens=512), replace(host, simulated=True)).plan
    assert (formula.quantization.name, formula.verdict) == ("Q8_0", "gpu")
    monkeypatch.setattr(planning, "EngineMemory", Heavy)
    plan = make(local_source(ladder), "m", Wish(context_tokens=512), host).plan
    assert (plan.quantization.name, plan.verdict, plan.memory_source) == ("Q6_K", "gpu", "engine")
    rows = {row.quantization: row for row in plan.alternatives}
    assert rows["Q8_0"].verdict == "offload"
    assert rows["Q6_K"].why_not is None
    assert "does not fit in VRAM" in rows["Q8_0"].why_not


def test_without_llama_cpp_a_plan_is_an_estimate(ladder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ladder / "shadow"))
    (ladder / "shadow").mkdir()
    (ladder / "shadow" / "llama_cpp.py").write_text("raise ImportError('no such library')")
    with DryRun() as dry_run, pytest.raises(NoDryRun, match="no such library"):
        dry_run.ask(engine_config(REQUEST, on_cpu(2, 0), "m.gguf"))
    plan = make(local_source(ladder), "m", Wish(context_tokens=512), machine(gpu(12 * GIB))).plan
    assert plan.memory_source == "estimate"
    assert [warning.message for warning in plan.warnings if warning.code == "engine_not_asked"] == [
        "The memory figures are estimates: llama-cpp-python cannot be loaded, so no dry run: no such library."
    ]


def test_a_dry_run_that_dies_leaves_a_plan_of_estimates_and_says_why(ladder, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport os, sys\nsys.stdin.readline()\nos.abort()\n")
    program.chmod(0o700)
    monkeypatch.setattr(dryrun.sys, "executable", str(program))
    plan = make(local_source(ladder), "m", Wish(context_tokens=512), machine(gpu(12 * GIB))).plan
    warning = next(warning for warning in plan.warnings if warning.code == "engine_not_asked")
    assert (plan.memory_source, plan.quantization.name) == ("estimate", "Q8_0")
    assert warning.message.endswith("llama.cpp's dry run of this model ended with signal SIGABRT.")
    assert "checksum" in (warning.hint or "")


@pytest.mark.engine
def test_for_a_gpu_that_is_not_here_the_engines_figure_on_the_cpu_bounds_the_formula(ladder):
    (shard,) = local_headers([ladder / f"{LLAMA_31_8B.name}-Q8_0.gguf"]).shards
    info, request, place = model_info([shard.header]), replace(REQUEST, context_tokens=8192), Placement(32, (33,))
    with DryRun() as dry_run:
        engine = EngineMemory(dry_run, str(ladder / shard.name), machine())
        bounded, host = engine.calibrated(info, request), engine.usage(info, request, on_cpu(32, 0)).host
    row = 4 * 512 * info.embedding_length
    compute = bounded.usage(info, request, place).devices[0].compute_bytes
    assert host.compute_bytes - 3 * row <= compute <= host.compute_bytes + 2 * row
    strange = replace(info, feed_forward_length=1)
    assert bounded.usage(strange, request, place).devices[0].compute_bytes >= host.compute_bytes - 3 * row


@pytest.mark.engine
def test_the_child_imports_nothing_from_the_directory_the_user_is_in(tmp_path, monkeypatch):
    path = write_model(tmp_path / "tiny.F16.gguf", TINY_LLAMA, "F16")
    (tmp_path / "msgspec.py").write_text("raise SystemExit('hostile')")
    monkeypatch.chdir(tmp_path)
    with DryRun() as dry_run:
        answer = dry_run.ask(engine_config(REQUEST, on_cpu(2, 0), path.name))
    assert answer.host.kv_bytes > 0


@pytest.mark.engine
def test_an_unknown_architecture_is_named_with_a_command_to_go_on(tmp_path):
    path = write_model(tmp_path / "tiny.F16.gguf", TINY_LLAMA, "F16")
    raw = path.read_bytes().replace(b"llama.", b"zzama.")
    path.write_bytes(raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0zzama"))
    with pytest.raises(EngineError, match="unknown model architecture: 'zzama'") as caught:
        make(local_source(path), "m", Wish(), Machine((), GIB * 8, GIB * 8, 1, 1))
    assert "ggufdeploy doctor" in caught.value.hint


def test_a_silent_child_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(dryrun, "TIMEOUT_S", 0.2)
    ask_a_stand_in(tmp_path, monkeypatch, "time.sleep(60)", "did not answer within 0 s")


def test_a_talkative_child_is_quoted_from_its_end(tmp_path, monkeypatch):
    error = ask_a_stand_in(
        tmp_path, monkeypatch, "sys.stderr.write('x\\n' * 200_000 + 'last words\\n'); sys.exit(3)", "3"
    )
    assert len(error.log) == 20
    assert error.log[-1] == "last words"


def ask_a_stand_in(tmp_path, monkeypatch, what: str, says: str) -> EngineError:
    """Let a dry run talk to a program that reads one question and then does `what`."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys, time\nsys.stdin.readline()\n{what}\n")
    program.chmod(0o700)
    monkeypatch.setattr(dryrun.sys, "executable", str(program))
    with DryRun() as dry_run:
        with pytest.raises(EngineError, match=says) as caught:
            dry_run.ask(engine_config(REQUEST, on_cpu(2, 0), "m.gguf"))
        assert dry_run._child is None
    return caught.value


def test_ghosts_are_gone_after_success_and_failure_and_a_refusing_file_system_is_no_bug(tmp_path, monkeypatch):
    headers = replace(local_headers([write_model(tmp_path / "t.F16.gguf", TINY_LLAMA, "F16")]), path=None)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with model_file(headers) as path:
        assert path.stat().st_size == headers.shards[0].n_bytes
    with pytest.raises(RuntimeError), model_file(headers):
        raise RuntimeError
    assert not list(temporary.iterdir())
    huge = replace(headers, shards=(replace(headers.shards[0], n_bytes=1 << 62),))
    with pytest.raises(NoDryRun, match="no file of the model's size"), model_file(huge):
        pass
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("wish", "flag"),
    [(Wish(slots=257), "--slots"), (Wish(slots=8, n_ubatch=4), "--ubatch"), (Wish(kv_type="q8_0"), "--kv-type")],
)
def test_what_llama_cpp_would_refuse_after_the_download_is_said_before(tmp_path, wish, flag):
    path = write_model(tmp_path / "tiny.F16.gguf", TINY_LLAMA, "F16")
    host = simulate(find_gpu("t4"), 1, base=machine())
    with pytest.raises(BadValue, match=flag):
        make(local_source(path), "m", wish, host)
