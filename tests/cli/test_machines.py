"""The machine that --gpu, --machine and --ram describe."""

from __future__ import annotations

import pytest

from ggufdeploy.cli import machines
from ggufdeploy.cli.machines import choose_machine
from ggufdeploy.cli.options import BudgetType, BytesType, GpuType, QualityType, TokensType
from ggufdeploy.errors import BadValue, NotFound
from ggufdeploy.hardware.catalog import find_gpu
from ggufdeploy.hardware.detect import Detection
from ggufdeploy.hardware.machine import Machine, machine_to_json
from ggufdeploy.hardware.nvidia import NvidiaReadings
from ggufdeploy.planner.quality import quality
from ggufdeploy.units import GIB

HERE = Machine((), 64 * GIB, 60 * GIB, 8, 16, cpu_name="here")
THERE = Machine((), 512 * GIB, 500 * GIB, 32, 64, cpu_name="there")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(machines, "detect", lambda environ, readings=None: Detection(HERE, ("a note",)))


@pytest.fixture
def there(tmp_path):
    path = tmp_path / "there.json"
    path.write_text(machine_to_json(THERE))
    return path


def test_without_options_it_is_this_machine():
    assert choose_machine(None, None, None) == Detection(HERE, ("a note",))


def test_a_file_replaces_this_machine_and_counts_as_simulated(there):
    machine = choose_machine(None, there, None).machine
    assert (machine.cpu_name, machine.ram_total_bytes, machine.simulated) == ("there", 512 * GIB, True)


def test_gpus_and_ram_replace_parts_of_either(there):
    gpus = (find_gpu("h100-sxm"), 2)
    for file, cpu in ((None, "here"), (there, "there")):
        machine = choose_machine(gpus, file, 128 * GIB).machine
        assert [device.catalogue_id for device in machine.devices] == ["h100-sxm", "h100-sxm"]
        assert (machine.cpu_name, machine.ram_available_bytes, machine.simulated) == (cpu, 128 * GIB, True)


def test_this_machines_gpus_are_not_looked_for_when_others_are_named(monkeypatch):
    asked = []
    monkeypatch.setattr(machines, "detect", lambda environ, readings: asked.append(readings) or Detection(HERE))
    choose_machine((find_gpu("t4"), 1), None, None)
    choose_machine(None, None, GIB)
    assert asked == [NvidiaReadings(), None]


def test_ram_alone_keeps_the_devices_and_counts_as_simulated():
    machine = choose_machine(None, None, GIB).machine
    assert (machine.devices, machine.ram_total_bytes, machine.simulated) == (HERE.devices, GIB, True)


def test_no_ram_is_refused():
    with pytest.raises(BadValue, match="--ram"):
        choose_machine(None, None, 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"nowhere\.json"):
        choose_machine(None, tmp_path / "nowhere.json", None)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (TokensType(), "32k", 32_768),
        (TokensType(), "65536", 65_536),
        (BytesType(), "8GiB", 8 * GIB),
        (BytesType(), "80GB", 80 * 10**9),
        (GpuType(), "rtx-4090:2", (find_gpu("rtx-4090"), 2)),
        (BudgetType(), "cuda0=70GiB", ("CUDA0", 70 * GIB)),
        (BudgetType(), "70GiB", (None, 70 * GIB)),
        (QualityType(), "Q4_K_M", quality("Q4_K_M")),
        (QualityType(), "0.95", 0.95),
    ],
)
def test_quantities_are_read_as_people_write_them(kind, text, value):
    assert kind.convert(text, None, None) == value
    assert kind.convert(value, None, None) == value


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--ctx", "lots"], 2, "error: --ctx: 'lots' is not a quantity"),
        (["--ctx", "0"], 2, "error: --ctx: 0 tokens are too few"),
        (["--reserve", "1 parsec"], 2, "error: --reserve: '1 parsec' is not a quantity"),
        (
            ["--min-quality", "best"],
            2,
            "error: --min-quality: 'best' is no quantization and no number from 0 to 1",
        ),
        (["--min-quality", "1.5"], 2, "error: --min-quality: '1.5' is no quantization and no number from 0 to 1"),
        (["--vram-budget", "cuda0=much"], 2, "error: --vram-budget: 'much' is not a quantity"),
        (["--gpu", "h100-sxm:none"], 2, "error: --gpu: 'none' is not a number of GPUs"),
        (["--gpu", "h100-sxn"], 3, "error: GPU not found: h100-sxn"),
    ],
)
def test_a_wrong_value_names_its_flag(args, code, message, run):
    done = run("pull", "some/model", *args)
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[0] == message
    assert done.err.splitlines()[1].startswith("hint: ")
