from dataclasses import replace

import pytest

from ggufdeploy.hardware.catalog import find_gpu
from ggufdeploy.hardware.nvidia import (
    NvidiaReading,
    NvidiaReadings,
    read_devices,
    read_process_bytes,
    select_visible,
    to_device,
)
from tests.hardware.fake_nvml import IDLE_H100, FakeGpu, FakeNvml

MIB = 1 << 20
H100 = NvidiaReading(0, "NVIDIA H100 80GB HBM3", "GPU-aaaa", 81559 * MIB, 81042 * MIB, 516 * MIB)
TWO = (replace(H100, uuid="GPU-aaaa-1"), replace(H100, index=1, uuid="GPU-aabb-2"))


def test_an_idle_h100_is_read_completely():
    nvml = FakeNvml([IDLE_H100])
    assert read_devices(nvml) == NvidiaReadings(
        (
            NvidiaReading(
                index=0,
                name="NVIDIA H100 80GB HBM3",
                uuid="GPU-f8844f98-2150",
                total_bytes=81559 * MIB,
                free_bytes=81042 * MIB,
                reserved_bytes=516 * MIB,
                compute_capability="9.0",
                driver_version="580.95.05",
                display=None,
            ),
        )
    )
    assert nvml.open_sessions == 0


def test_without_a_driver_there_are_no_devices_and_no_complaints():
    assert read_devices(FakeNvml(init_error=FakeNvml.NVMLError_LibraryNotFound("no library"))) == NvidiaReadings()


def test_a_driver_that_fails_becomes_a_note():
    result = read_devices(FakeNvml(init_error=FakeNvml.NVMLError("Driver/library version mismatch")))
    assert result.devices == ()
    assert "version mismatch" in result.notes[0]


def test_one_lost_gpu_does_not_hide_the_others():
    nvml = FakeNvml([replace(IDLE_H100, broken=True), IDLE_H100])
    result = read_devices(nvml)
    assert [reading.index for reading in result.devices] == [1]
    assert "GPU 0" in result.notes[0]
    assert nvml.open_sessions == 0


def test_an_old_driver_without_reserved_memory_is_read_too():
    (reading,) = read_devices(FakeNvml([replace(IDLE_H100, reserved_mib=None)])).devices
    assert reading.reserved_bytes is None
    assert reading.free_bytes == 81042 * MIB


def test_mig_instances_are_read_instead_of_their_gpu():
    instance = FakeGpu("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "MIG-1111", 40448, 40400, 48, (9, 0), None)
    nvml = FakeNvml([replace(IDLE_H100, instances=[instance, replace(instance, uuid="MIG-2222")])])
    result = read_devices(nvml)
    assert [(reading.uuid, reading.total_bytes, reading.mig) for reading in result.devices] == [
        ("MIG-1111", 40448 * MIB, True),
        ("MIG-2222", 40448 * MIB, True),
    ]
    visible, notes = select_visible(result.devices, None)
    assert [reading.uuid for reading in visible] == ["MIG-1111"]
    assert "MIG" in notes[0]
    visible, _ = select_visible(result.devices, "MIG-2222")
    assert [reading.uuid for reading in visible] == ["MIG-2222"]


def test_a_gpu_in_mig_mode_without_an_instance_is_left_out_and_mentioned():
    result = read_devices(FakeNvml([replace(IDLE_H100, mig_on=True), replace(IDLE_H100, uuid="GPU-2")]))
    assert [reading.uuid for reading in result.devices] == ["GPU-2"]
    assert "GPU 0 is in MIG mode without an instance" in result.notes[0]


def test_the_estimate_for_an_idle_h100_is_what_llama_cpp_reports_there():
    device = to_device(H100, find_gpu("h100-sxm"), position=0)
    assert device is not None
    assert device.name == "CUDA0"
    assert abs(device.free_bytes - 80552 * MIB) <= 1 * MIB
    assert device.free_is_estimate
    assert device.catalogue_id == "h100-sxm"
    assert device.bandwidth_bytes_per_s == 3_350_000_000_000
    assert device.fp16_flops_per_s == 989e12


def test_memory_used_by_others_is_taken_off_in_full():
    used = 10_000 * MIB
    idle = to_device(H100, find_gpu("h100-sxm"), position=0)
    busy = to_device(replace(H100, free_bytes=H100.free_bytes - used), find_gpu("h100-sxm"), position=0)
    assert idle.free_bytes - busy.free_bytes == used


def test_an_old_driver_gives_a_lower_but_not_a_much_lower_estimate():
    device = to_device(replace(H100, reserved_bytes=None), find_gpu("h100-sxm"), position=0)
    assert 80_000 * MIB <= device.free_bytes <= 80_552 * MIB


def test_an_unknown_card_gets_the_general_rule_and_no_bandwidth():
    device = to_device(replace(H100, name="NVIDIA New"), None, position=3)
    assert device.name == "CUDA3"
    assert device.free_bytes == (81042 - (1280 - 516)) * MIB
    assert device.bandwidth_bytes_per_s is None
    assert device.catalogue_id is None


def test_a_full_card_has_no_negative_memory():
    assert to_device(replace(H100, free_bytes=10 * MIB), find_gpu("h100-sxm"), position=0).free_bytes == 0


def test_a_gpu_without_own_memory_gives_no_device():
    assert to_device(replace(H100, total_bytes=None), None, position=0) is None


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1]),
        ("0,1", [0, 1]),
        ("1, 0", [1, 0]),
        ("1", [1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,7,1", [0]),
        ("0,0,1", [0]),
        ("GPU-aabb", [1]),
        ("GPU-aabb-2,GPU-aaaa-1", [1, 0]),
        ("GPU-aa", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible, indices):
    chosen, _ = select_visible(TWO, visible)
    assert [reading.index for reading in chosen] == indices


def test_an_entry_that_names_nothing_is_mentioned():
    _, notes = select_visible(TWO, "0,7")
    assert "'7'" in notes[0]
    assert select_visible(TWO, "")[1] == ()


def test_what_a_process_holds_is_told_per_gpu_where_the_driver_says_it():
    first, second = replace(IDLE_H100, uuid="GPU-1"), replace(IDLE_H100, uuid="GPU-2")
    nvml = FakeNvml([first, second])
    nvml.processes = {"GPU-1": [(7, 100), (8, 50), (7, 1)], "GPU-2": [(7, None)]}
    assert read_process_bytes(7, nvml) == {"GPU-1": 101}
    assert read_process_bytes(9, nvml) == {}
    assert nvml.open_sessions == 0


def test_a_process_in_a_mig_instance_is_counted_there():
    instance = FakeGpu("NVIDIA H100 MIG 1g.10gb", "MIG-1", 9856, 9800)
    nvml = FakeNvml([replace(IDLE_H100, uuid="GPU-1", instances=[instance])])
    nvml.processes = {"MIG-1": [(7, 100)]}
    assert read_process_bytes(7, nvml) == {"MIG-1": 100}


def test_a_process_is_not_looked_for_without_a_driver_nor_on_a_lost_gpu():
    assert read_process_bytes(7, FakeNvml(init_error=FakeNvml.NVMLError_LibraryNotFound("no driver"))) == {}
    assert read_process_bytes(7, FakeNvml([replace(IDLE_H100, broken=True)])) == {}
