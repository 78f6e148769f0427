"""What a machine has, as data: a `Machine` goes to JSON and back, so any plan can be replayed anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ggufdeploy.errors import BadConfig, NotFound, nearest
from ggufdeploy.hardware.samples import SpeedSample

SCHEMA_VERSION = 1

DeviceKind = Literal["gpu", "rpc"]


@dataclass(frozen=True)
class Device:
    """One accelerator.

    total_bytes: as the driver counts them (nvidia-smi's total); llama.cpp sees slightly less.
    name: llama.cpp's device name where known ("CUDA0"). description: the driver's name ("NVIDIA H100 80GB HBM3").
    free_bytes: free as llama.cpp will see it, after its context is made. free_is_estimate: derived from NVML's figures
    or a data sheet, not read through llama.cpp. bandwidth_bytes_per_s: peak memory bandwidth. display: drives a screen.
    fp16_flops_per_s: dense FP16 peak with tensor cores.
    catalogue_id: the GPU catalogue's id ("h100-sxm"), None when the card is not in it.
    """

    name: str
    kind: DeviceKind
    description: str
    total_bytes: int
    free_bytes: int
    free_is_estimate: bool = False
    catalogue_id: str | None = None
    bandwidth_bytes_per_s: int | None = None
    compute_capability: str | None = None
    driver_version: str | None = None
    uuid: str | None = None
    display: bool | None = None
    fp16_flops_per_s: float | None = None


@dataclass(frozen=True)
class Machine:
    """GPUs in llama.cpp's order, plus the host.

    ram_total_bytes and ram_available_bytes respect the cgroup's limit. simulated: at least one part is not real.
    physical_cores: cores this process may use. ram_bandwidth_bytes_per_s: what all of them together read, as
    `cpu.measure_ram_bandwidth_bytes_per_s` does; None when not measured. speed_samples: runs measured on this machine.
    """

    devices: tuple[Device, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    physical_cores: int
    logical_cores: int
    cpu_name: str | None = None
    ram_bandwidth_bytes_per_s: int | None = None
    os_name: str | None = None
    simulated: bool = False
    speed_samples: tuple[SpeedSample, ...] = ()
    schema_version: int = SCHEMA_VERSION


def machine_to_json(machine: Machine) -> str:
    """Return the machine as indented JSON, bytes as integers, unknown facts as null."""
    return msgspec.json.format(msgspec.json.encode(machine), indent=2).decode() + "\n"


def machine_from_json(text: str, *, origin: str = "machine") -> Machine:
    """Return the machine that `machine_to_json` wrote. origin: names the text in errors.

    Raises BadConfig: not JSON, an unknown or missing key, a wrong type, or values that contradict each other.
    """
    try:
        data = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise BadConfig(origin, f"{origin} is not JSON: {error}") from error
    _refuse_unknown_keys(data, origin)
    try:
        machine = msgspec.convert(data, Machine)
    except msgspec.ValidationError as error:
        raise BadConfig(origin, f"{origin} does not describe a machine: {error}") from error
    _refuse_contradictions(machine, origin)
    return machine


def load_machine(path: Path) -> Machine:
    """Read a machine file. Raises NotFound or BadConfig."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(
            "file",
            str(path),
            f"cannot read the machine file {path}: {error.strerror}",
            hint="write one with: ggufdeploy doctor --save-machine FILE",
        ) from error
    except UnicodeDecodeError as error:
        raise BadConfig(str(path), f"{path} is not UTF-8 text (byte {error.start:,})") from error
    return machine_from_json(text, origin=str(path))


def _refuse_unknown_keys(data: object, origin: str) -> None:
    if not isinstance(data, Mapping):
        return
    _refuse_unknown(data, Machine, "", origin)
    devices = data.get("devices")
    for index, device in enumerate(devices if isinstance(devices, list) else ()):
        if isinstance(device, Mapping):
            _refuse_unknown(device, Device, f"devices[{index}].", origin)


def _refuse_unknown(table: Mapping[str, Any], shape: type, prefix: str, origin: str) -> None:
    known = [field.name for field in dataclasses.fields(shape)]
    for key in table:
        if key not in known:
            close = nearest(key, known)
            raise BadConfig(
                prefix + key,
                f"{origin}: unknown key {prefix}{key}",
                hint=f"did you mean {prefix}{close}?" if close else f"known keys: {', '.join(known)}",
            )


def _refuse_contradictions(machine: Machine, origin: str) -> None:
    names = [device.name for device in machine.devices]
    checks = [
        ("schema_version", machine.schema_version == SCHEMA_VERSION, f"must be {SCHEMA_VERSION}"),
        ("devices", len(set(names)) == len(names), "names must differ"),
        ("ram_total_bytes", machine.ram_total_bytes > 0, "must be positive"),
        (
            "ram_available_bytes",
            0 <= machine.ram_available_bytes <= machine.ram_total_bytes,
            "must lie between 0 and ram_total_bytes",
        ),
        (
            "physical_cores",
            1 <= machine.physical_cores <= machine.logical_cores,
            "must lie between 1 and logical_cores",
        ),
    ]
    for index, device in enumerate(machine.devices):
        where = f"devices[{index}].free_bytes"
        checks.append((where, 0 <= device.free_bytes <= device.total_bytes, "must lie between 0 and total_bytes"))
    for key, holds, rule in checks:
        if not holds:
            raise BadConfig(key, f"{origin}: {key} {rule}")
