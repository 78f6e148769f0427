from __future__ import annotations

import os

import msgspec
import pytest

from ggufdeploy.deploy.truth import ProcessMemory, compare, read_process, truth_lines
from ggufdeploy.engine.request import DeviceBuffers, Ladder
from ggufdeploy.hardware.machine import Device
from ggufdeploy.units import GIB, MIB
from tests.deploy.plans import device, plan
from tests.fakes import FAKE_INFO

ON_GPU = ("CUDA0",) * 33


def info(*buffers: DeviceBuffers, layers: tuple[str, ...] = ON_GPU):
    return msgspec.structs.replace(FAKE_INFO, buffers=buffers, layer_devices=layers, ladder=Ladder((64, 512), 0.5, 0.4))


def test_what_was_planned_and_loaded_stands_side_by_side():
    made = plan(device("CUDA0", 40 * GIB, 8 * GIB, 300 * MIB), device("CPU", GIB, 0, 30 * MIB))
    loaded = info(DeviceBuffers("CUDA0", 40 * GIB, 8 * GIB, 300 * MIB), DeviceBuffers("CPU", 41 * GIB, 0, 30 * MIB))
    truth = compare(made, loaded, ProcessMemory(2 * GIB, GIB, {"CUDA0": 49 * GIB}))
    gpu, host = truth.devices
    assert gpu.actual == gpu.planned
    assert gpu.process_bytes == 49 * GIB
    assert host.actual.weights_bytes == GIB, "the mapped file is larger than what stays in RAM"
    assert truth.warnings == ()
    assert truth.gpu_share == pytest.approx(0.98, abs=0.01)
    assert truth_lines(truth) == [
        "CUDA0: planned 48.3 GiB, actual 48.3 GiB",
        "CPU: planned 1.0 GiB, actual 1.0 GiB",
        "the engine's process holds 49.0 GiB on CUDA0 and 2.0 GiB of RAM, after prompts of 64 and 512 tokens (0.5 s)",
    ]


@pytest.mark.parametrize(
    ("planned_mib", "actual_mib", "differs"),
    [(1000, 1011, True), (1000, 1009, False), (1000, 985, True), (10, 10.9, False), (0, 5, True), (50, 50.6, False)],
)
def test_more_than_one_percent_and_one_mebibyte_is_a_difference(planned_mib, actual_mib, differs):
    made = plan(device("CUDA0", planned_mib * MIB), device("CPU", 0))
    truth = compare(made, info(DeviceBuffers("CUDA0", int(actual_mib * MIB), 0, 0)), ProcessMemory())
    assert bool([text for text in truth.warnings if text.startswith("CUDA0")]) is differs


def test_a_difference_is_told_with_both_numbers_and_its_part():
    made = plan(device("CUDA0", 1000 * MIB, 500 * MIB, 100 * MIB), device("CPU", 0))
    truth = compare(made, info(DeviceBuffers("CUDA0", 1000 * MIB, 500 * MIB, 200 * MIB)), ProcessMemory())
    assert truth.warnings == (
        "CUDA0 was planned to take 1.6 GiB and takes 1.7 GiB (+6.2%): compute buffers 100.0 MiB -> 200.0 MiB",
    )


def test_layers_that_are_elsewhere_than_planned_are_a_warning():
    made = plan(device("CUDA0", GIB), device("CPU", GIB), n_gpu_layers=20)
    layers = ("CPU",) * 15 + ("CUDA0",) * 18
    truth = compare(made, info(DeviceBuffers("CUDA0", GIB, 0, 0), layers=layers), ProcessMemory())
    assert truth.warnings == ("20 of 33 layers were planned on GPUs, and 18 are there",)


def test_a_device_without_any_buffer_counts_as_empty():
    truth = compare(plan(device("CUDA0", GIB), device("CPU", 0)), info(), ProcessMemory())
    assert truth.devices[0].actual.total_bytes == 0
    assert truth.devices[0].differs
    assert truth.gpu_share == 0.0


def test_repacked_weights_are_told_apart():
    made = plan(device("CPU", GIB), n_gpu_layers=0)
    loaded = info(DeviceBuffers("CPU", GIB, 0, 0, repacked_bytes=900 * MIB), layers=("CPU",) * 33)
    truth = compare(made, loaded, ProcessMemory())
    assert truth.warnings == ()
    assert truth_lines(truth) == ["CPU: planned 1.0 GiB, actual 1.0 GiB and 900.0 MiB repacked"]


def test_the_memory_of_this_process_is_read_and_of_a_dead_one_is_unknown():
    here = read_process(os.getpid(), ())
    assert here.rss_bytes is not None
    assert here.rss_bytes > 10 * MIB
    assert here.gpu_bytes is None
    gpu = Device("CUDA0", "gpu", "some card", GIB, GIB)
    assert read_process(2**22 + 1, (gpu,)) == ProcessMemory(None, None, None)
