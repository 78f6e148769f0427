"""What this machine has, from all probes together."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufdeploy.hardware import cpu, nvidia
from ggufdeploy.hardware.catalog import match_nvml_name, mig_figures
from ggufdeploy.hardware.cpu import Ram
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.hardware.nvidia import NvidiaReading, NvidiaReadings


@dataclass(frozen=True)
class Detection:
    """The machine, and remarks for the user about what could not be told or is unusual."""

    machine: Machine
    notes: tuple[str, ...] = ()


def detect(environ: Mapping[str, str], *, root: Path = cpu.ROOT, readings: NvidiaReadings | None = None) -> Detection:
    """Read GPUs, RAM and cores of this machine; takes some milliseconds, with a driver up to a second.

    environ: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are respected. root and readings: stand-ins for the file system
    and the driver. Free memory is a snapshot. RAM bandwidth is not measured here.
    """
    found = nvidia.read_devices() if readings is None else readings
    visible, visible_notes = nvidia.select_visible(found.devices, environ.get("CUDA_VISIBLE_DEVICES"))
    ram = cpu.read_ram(root)
    devices, device_notes = _devices(visible, ram)
    cores = cpu.read_cores(root)
    machine = Machine(
        devices=devices,
        ram_total_bytes=ram.total_bytes,
        ram_available_bytes=ram.available_bytes,
        physical_cores=cores.physical,
        logical_cores=cores.logical,
        cpu_name=cpu.read_cpu_name(root),
        os_name=f"{platform.system()} {platform.release()}".strip() or None,
    )
    notes = (*found.notes, *visible_notes, *device_notes, *_order_notes(visible, environ), *_platform_notes())
    return Detection(machine, notes)


def free_disk_bytes(path: Path) -> int:
    """Return what this user may still write to the file system of `path`, which need not exist yet. Raises OSError."""
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _devices(readings: Sequence[NvidiaReading], ram: Ram) -> tuple[tuple[Device, ...], list[str]]:
    devices: list[Device] = []
    notes: list[str] = []
    for position, reading in enumerate(readings):
        spec = None if reading.mig else match_nvml_name(reading.name, reading.total_bytes)
        if reading.total_bytes is None:
            notes.append(f"{reading.name} shares the system's RAM: what it uses is missing there")
            reading = replace(reading, total_bytes=ram.total_bytes, free_bytes=ram.available_bytes)
        device = nvidia.to_device(reading, spec, position=position)
        if device is not None and reading.mig:
            bandwidth, flops = mig_figures(reading.name, device.total_bytes)
            device = replace(device, bandwidth_bytes_per_s=bandwidth, fp16_flops_per_s=flops)
        if device is not None:
            devices.append(device)
            if device.bandwidth_bytes_per_s is None:
                notes.append(f"{reading.name} is not in the GPU catalogue: its bandwidth is unknown")
    return tuple(devices), notes


def _order_notes(readings: Sequence[NvidiaReading], environ: Mapping[str, str]) -> list[str]:
    """Warn where CUDA's order can differ from NVML's: CUDA puts the fastest first, NVML goes by PCI bus.

    Source: CUDA C++ Programming Guide, CUDA_DEVICE_ORDER.
    """
    if len({reading.name for reading in readings}) < 2 or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return []
    return ["the GPUs differ, and CUDA may number them otherwise: set CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure"]


def _platform_notes() -> list[str]:
    if platform.system() == "Darwin":
        return ["Apple GPUs are not detected: plans made here are for the CPU"]
    return []
