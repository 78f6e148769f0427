"""`ggufdeploy doctor`: findings, and what fixes them."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from ggufdeploy.cli import checks
from ggufdeploy.cli.checks import Finding
from ggufdeploy.cli.engine_probe import Probe, ProbedDevice
from ggufdeploy.hardware.catalog import find_gpu, list_gpus, simulate
from ggufdeploy.hardware.detect import Detection
from ggufdeploy.hardware.machine import Machine, load_machine
from ggufdeploy.profiles.store import load_profiles
from ggufdeploy.units import GIB
from tests.standin_hub import StandinHub

CPU = ProbedDevice("CPU", "cpu", "a processor", 8 * GIB, 16 * GIB)
GPU = ProbedDevice("CUDA0", "gpu", "NVIDIA H100 80GB HBM3", 78 * GIB, 79 * GIB)
BARE = Machine((), 16 * GIB, 8 * GIB, 4, 8, cpu_name="a processor")
WITH_GPU = simulate(find_gpu("h100-sxm"), 1, base=BARE)


@pytest.fixture
def hub(tmp_path):
    with StandinHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def healthy(monkeypatch, hub):
    """No engine is loaded, and the Hub is on loopback."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(checks, "probe_engine", lambda: Probe(False, "CPU : AVX2 = 1 |", (CPU,)))
    monkeypatch.setattr("ggufdeploy.hardware.detect.detect", lambda environ: Detection(BARE))


def statuses(findings):
    return [(finding.name, finding.status) for finding in findings]


def test_doctor_reports_every_area_and_ends_with_0_without_a_problem(run, healthy):
    done = run("doctor")

    assert done.code == 0
    for word in ("platform: ", "gpu: no GPU was found", "ram: 8.0 GiB of 16.0 GiB", "engine: llama-cpp-python",
                 "disk: models: ", "hub: http://127.0.0.1", "profiles: "):  # fmt: skip
        assert word in done.out
    assert "         -> nothing, if there is none; else install its driver" in done.out.splitlines()


def test_doctor_ends_with_1_when_something_must_be_fixed(run, healthy, monkeypatch):
    broken = Finding("engine", "problem", "llama.cpp does not load: killed by SIGILL", "build it here")
    monkeypatch.setattr(checks, "probe_engine", lambda: broken)

    done = run("doctor", "--quiet")

    assert done.code == 1
    assert "problem  engine: llama.cpp does not load: killed by SIGILL\n         -> build it here" in done.out
    assert "ok " not in done.out
    assert done.err == ""


def test_doctor_for_programs(run, healthy):
    document = run("doctor", "--json").document

    assert set(document) == {"schema_version", "version", "findings", "machine", "engine"}
    assert {"name": "platform", "status": "ok", "fix": None}.items() <= document["findings"][0].items()
    assert document["machine"]["ram_total_bytes"] == 16 * GIB
    assert document["engine"]["devices"][0]["name"] == "CPU"


def test_verbose_shows_what_the_engine_was_built_with(run, healthy):
    assert "AVX2" in run("doctor", "-v").err
    assert "AVX2" not in run("doctor").err


def test_gpus_with_a_driver_but_an_engine_that_cannot_use_them_are_a_problem():
    (finding,) = checks.check_engine(Probe(False, "", (CPU,)), WITH_GPU)
    assert (finding.status, finding.fix) == ("problem", "./install.sh --backend auto")
    assert "NVIDIA H100" in finding.detail


def test_an_engine_that_sees_the_gpus_is_fine():
    (finding,) = checks.check_engine(Probe(True, "", (GPU, CPU)), WITH_GPU)
    assert finding.status == "ok"
    assert "CUDA0 (NVIDIA H100 80GB HBM3)" in finding.detail


def test_gpus_are_listed_with_memory_and_driver_and_notes_become_warnings():
    device = replace(WITH_GPU.devices[0], driver_version="580.65")
    detection = Detection(replace(WITH_GPU, devices=(device,)), ("MIG is on",))

    found = list(checks.check_machine(detection))

    assert statuses(found) == [("gpu", "ok"), ("gpu", "warning"), ("ram", "ok"), ("cpu", "ok")]
    assert found[0].detail.startswith("CUDA0: NVIDIA H100")
    assert found[0].detail.endswith("driver 580.65")
    assert found[1].detail == "MIG is on"


def test_little_ram_is_a_warning_with_a_way_out():
    ram = next(f for f in checks.check_machine(Detection(replace(BARE, ram_available_bytes=GIB))) if f.name == "ram")
    assert ram.status == "warning"
    assert ram.fix


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("exit 3", "exit code 3"),
        ("echo first >&2; echo 'libcuda.so.1: cannot open' >&2; exit 1", "libcuda.so.1: cannot open"),
    ],
)
def test_an_engine_that_dies_is_a_problem_not_a_crash(body, detail, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    found = checks.probe_engine()

    assert found == Finding(
        "engine", "problem", f"llama.cpp does not load: {detail}", "install the pinned engine again: ./install.sh"
    )


def test_an_engine_that_hangs_is_given_up(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    found = checks.probe_engine(timeout_s=0.2)

    assert isinstance(found, Finding)
    assert (found.status, found.fix) == ("problem", "see whether the GPU driver answers: nvidia-smi")


def test_the_hub_is_asked_without_the_token(hub, settings):
    (finding,) = checks.check_hub(replace(settings, hf_endpoint=hub.url, hf_token="hf_secret"))

    assert finding.status == "ok"
    assert finding.detail.endswith("with a token")
    assert all("hf_secret" not in str(request) for request in hub.requests)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "nonsense"])
def test_an_unreachable_hub_is_a_warning(endpoint, settings):
    (finding,) = checks.check_hub(replace(settings, hf_endpoint=endpoint))
    assert finding.status == "warning"
    assert "cannot be reached" in finding.detail


def test_credentials_in_a_mirrors_address_are_not_shown(settings):
    (finding,) = checks.check_hub(replace(settings, hf_endpoint="http://me:secret@127.0.0.1:1"))
    assert "http://127.0.0.1:1 cannot be reached" in finding.detail
    assert "secret@" not in finding.detail


def test_offline_mode_is_said_and_nothing_is_asked(hub, settings):
    (finding,) = checks.check_hub(replace(settings, hf_endpoint=hub.url, offline=True))
    assert "HF_HUB_OFFLINE" in finding.detail
    assert hub.requests == []


def test_scarce_disk_is_a_warning_for_models_only(settings, monkeypatch):
    monkeypatch.setattr(checks, "free_disk_bytes", lambda path: 3 * GIB)
    models, cache = checks.check_disk(settings)
    assert (models.status, cache.status) == ("warning", "ok")
    assert "ggufdeploy rm" in (models.fix or "")


def test_a_place_that_cannot_be_written_is_a_problem(settings, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    models, cache = checks.check_disk(settings)
    assert (models.status, cache.status) == ("problem", "problem")
    assert "HF_HOME" in (models.fix or "")
    assert "GGUFDEPLOY_CACHE_DIR" in (cache.fix or "")


def test_a_broken_profile_is_a_problem(settings):
    settings.user_profiles_dir.mkdir(parents=True)
    (settings.user_profiles_dir / "bad.toml").write_text("name = 3")
    (finding,) = checks.check_profiles(settings)
    assert finding.status == "problem"
    assert "bad.toml" in finding.detail


def test_gpus_lists_the_catalogue(run):
    lines = run("doctor", "--gpus").out.splitlines()
    assert len(lines) == 1 + len(list_gpus())
    assert lines[1].split()[:3] == ["h100-sxm", "79.6", "GiB"]
    assert run("doctor", "--gpus", "-q").out.split() == [spec.id for spec in list_gpus()]
    assert run("doctor", "--gpus", "--json").document["gpus"][0]["id"] == "h100-sxm"


def test_save_machine_writes_what_plan_machine_reads(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ggufdeploy.hardware.detect.detect", lambda environ: Detection(BARE))
    monkeypatch.setattr("ggufdeploy.hardware.cpu.measure_ram_bandwidth_bytes_per_s", lambda: 10**10)
    path = tmp_path / "box.json"

    done = run("doctor", "--save-machine", str(path))

    assert (done.code, done.out) == (0, f"{path}\n")
    assert done.err.splitlines()[-1] == f"hint: ggufdeploy plan MODEL --machine {path}"
    assert load_machine(path) == replace(BARE, ram_bandwidth_bytes_per_s=10**10)


def test_save_machine_says_where_it_cannot_write(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ggufdeploy.hardware.cpu.measure_ram_bandwidth_bytes_per_s", lambda: 10**10)
    done = run("doctor", "--save-machine", str(tmp_path / "no" / "box.json"))
    assert done.code == 2
    assert "No such file or directory" in done.err


@pytest.mark.engine
def test_the_real_engine_answers_with_its_devices():
    found = checks.probe_engine()
    assert isinstance(found, Probe)
    assert "CPU" in [device.name for device in found.devices]
    assert all(device.total_bytes > 0 for device in found.devices if device.kind == "cpu")


def test_generation_is_not_tried_without_the_demo_model(settings):
    (finding,) = checks.check_generation(settings, BARE)
    assert finding.status == "ok"
    assert "ggufdeploy pull smollm2-135m" in finding.detail


@pytest.fixture
def demo_here(settings):
    """Put a damaged file of the right size where the demo model belongs."""
    source = load_profiles(settings).find(checks.DEMO_MODEL).pypi
    assert source is not None
    path = settings.cache_dir / "pypi" / f"{source.package}-{source.version}" / source.file.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(source.n_bytes)
    return path


@pytest.mark.slow
def test_a_demo_model_that_does_not_load_is_a_problem(settings, demo_here):
    (finding,) = checks.check_generation(settings, BARE)
    assert finding.status == "problem"
    assert finding.detail.startswith("smollm2-135m does not answer: ")


@pytest.mark.engine
def test_the_demo_model_writes_on_this_machine(settings, demo_here, demo_model):
    demo_here.unlink()
    demo_here.symlink_to(demo_model)
    machine = replace(BARE, ram_bandwidth_bytes_per_s=10**10)

    (finding,) = checks.check_generation(settings, machine)

    assert finding.status == "ok", finding
    assert "on the CPU" in finding.detail
