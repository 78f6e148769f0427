import shutil
from dataclasses import replace

import pytest

from ggufdeploy.hardware.detect import detect, free_disk_bytes
from ggufdeploy.hardware.nvidia import NvidiaReading, NvidiaReadings, read_devices
from ggufdeploy.planner.budget import margin_bytes
from tests.hardware.fake_nvml import DISPLAY_4090, IDLE_H100, FakeNvml, mig_instance

MIB, GIB = 1 << 20, 1 << 30
RTX_3090 = NvidiaReading(0, "NVIDIA GeForce RTX 3090", "GPU-1", 24576 * MIB, 24200 * MIB, 300 * MIB, "8.6")
RTX_4090 = NvidiaReading(1, "NVIDIA GeForce RTX 4090", "GPU-2", 24564 * MIB, 24100 * MIB, 300 * MIB, "8.9")


def test_a_machine_is_put_together_from_all_probes(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("model name : Fast CPU\n")
    detection = detect({}, root=tmp_path, readings=read_devices(FakeNvml([IDLE_H100, IDLE_H100])))
    machine = detection.machine
    assert [device.name for device in machine.devices] == ["CUDA0", "CUDA1"]
    assert {device.catalogue_id for device in machine.devices} == {"h100-sxm"}
    assert {device.bandwidth_bytes_per_s for device in machine.devices} == {3_350_000_000_000}
    assert machine.cpu_name == "Fast CPU"
    assert machine.ram_bandwidth_bytes_per_s is None
    assert not machine.simulated
    assert detection.notes == ()


def test_hidden_gpus_are_not_part_of_the_machine(tmp_path):
    readings = read_devices(FakeNvml([replace(IDLE_H100, uuid="GPU-a"), replace(IDLE_H100, uuid="GPU-b")]))
    devices = detect({"CUDA_VISIBLE_DEVICES": "1"}, root=tmp_path, readings=readings).machine.devices
    assert [(device.name, device.uuid) for device in devices] == [("CUDA0", "GPU-b")]
    assert detect({"CUDA_VISIBLE_DEVICES": ""}, root=tmp_path, readings=readings).machine.devices == ()


def test_uuids_choose_and_order_gpus_whatever_their_place(tmp_path):
    readings = read_devices(FakeNvml([replace(IDLE_H100, uuid=f"GPU-{letter}000") for letter in "abcd"]))
    devices = detect({"CUDA_VISIBLE_DEVICES": "GPU-d,GPU-b"}, root=tmp_path, readings=readings).machine.devices
    assert [(device.name, device.uuid) for device in devices] == [("CUDA0", "GPU-d000"), ("CUDA1", "GPU-b000")]


def test_a_card_that_drives_a_screen_is_known_by_that_and_keeps_the_larger_margin(tmp_path):
    readings = read_devices(FakeNvml([DISPLAY_4090, replace(IDLE_H100, display=1), IDLE_H100]))
    devices = detect({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, root=tmp_path, readings=readings).machine.devices
    assert [device.display for device in devices] == [True, True, None]
    assert [margin_bytes(device) for device in devices] == [GIB, GIB, 384 * MIB]
    assert devices[0].free_bytes < 22_310 * MIB  # what the desktop uses is not there, nor is the context's part


@pytest.mark.parametrize(
    ("profile", "total_mib", "eighths", "sevenths"),
    [("1g.10gb", 9984, 1, 1), ("1g.20gb", 20_096, 2, 1), ("2g.20gb", 20_096, 2, 2), ("3g.40gb", 40_448, 4, 3),
     ("4g.40gb", 40_448, 4, 4), ("7g.80gb", 81_090, 8, 7), ("1g.10gb+me", 9984, 1, 1)],
)  # fmt: skip
def test_a_mig_instance_has_its_part_of_the_bandwidth(tmp_path, profile, total_mib, eighths, sevenths):
    gpu = replace(IDLE_H100, instances=[mig_instance(profile, total_mib, "MIG-1")])
    detection = detect({}, root=tmp_path, readings=read_devices(FakeNvml([gpu])))
    (device,) = detection.machine.devices
    assert (device.name, device.uuid, device.total_bytes) == ("CUDA0", "MIG-1", total_mib * MIB)
    assert device.bandwidth_bytes_per_s == 3_350_000_000_000 * eighths // 8
    assert device.fp16_flops_per_s == pytest.approx(989e12 * sevenths / 7)
    assert device.compute_capability == "9.0"
    assert margin_bytes(device) == GIB
    assert not any("catalogue" in note for note in detection.notes)


def test_an_instance_of_an_unknown_gpu_has_no_bandwidth(tmp_path):
    instance = replace(mig_instance("1g.10gb", 9984, "MIG-1"), name="NVIDIA New MIG 1g.10gb")
    gpu = replace(IDLE_H100, instances=[instance])
    detection = detect({}, root=tmp_path, readings=read_devices(FakeNvml([gpu])))
    assert detection.machine.devices[0].bandwidth_bytes_per_s is None
    assert any("catalogue" in note for note in detection.notes)


def test_one_instance_is_chosen_by_its_uuid(tmp_path):
    instances = [mig_instance("3g.40gb", 40_448, "MIG-1"), mig_instance("3g.40gb", 40_448, "MIG-2")]
    readings = read_devices(FakeNvml([replace(IDLE_H100, instances=instances)]))
    devices = detect({"CUDA_VISIBLE_DEVICES": "MIG-2"}, root=tmp_path, readings=readings).machine.devices
    assert [device.uuid for device in devices] == ["MIG-2"]


def test_different_gpus_come_with_a_warning_about_their_order_unless_it_is_fixed(tmp_path):
    readings = NvidiaReadings((RTX_3090, RTX_4090))
    assert any("CUDA_DEVICE_ORDER" in note for note in detect({}, root=tmp_path, readings=readings).notes)
    assert detect({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, root=tmp_path, readings=readings).notes == ()


def test_an_unknown_gpu_and_notes_of_the_driver_are_mentioned(tmp_path):
    readings = NvidiaReadings((replace(RTX_3090, name="NVIDIA New"),), ("GPU 1 does not answer",))
    notes = detect({}, root=tmp_path, readings=readings).notes
    assert any("NVIDIA New" in note for note in notes)
    assert "GPU 1 does not answer" in notes


def test_a_gpu_that_shares_system_memory_gets_the_system_s_figures(tmp_path):
    readings = NvidiaReadings((NvidiaReading(0, "NVIDIA GB10", "GPU-g", compute_capability="12.1"),))
    detection = detect({}, root=tmp_path, readings=readings)
    (device,) = detection.machine.devices
    assert device.total_bytes == detection.machine.ram_total_bytes
    assert 0 < device.free_bytes <= detection.machine.ram_available_bytes
    assert any("shares the system's RAM" in note for note in detection.notes)


def test_free_disk_space_is_found_for_a_directory_still_to_be_made(tmp_path):
    expected = shutil.disk_usage(tmp_path).free
    assert abs(free_disk_bytes(tmp_path / "models" / "new") - expected) < GIB
