import shutil
from dataclasses import replace

from ggufdeploy.hardware.detect import detect, free_disk_bytes
from ggufdeploy.hardware.nvidia import NvidiaReading, NvidiaReadings, read_devices
from tests.hardware.fake_nvml import IDLE_H100, FakeNvml

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
