"""What a machine has, as data: a `Machine` goes to JSON and back, so any plan can be replayed anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["gpu", "rpc"]


@dataclass(frozen=True)
class Device:
    """One accelerator.

    name: llama.cpp's device name where known ("CUDA0"). description: the driver's name ("NVIDIA H100 80GB HBM3").
    free_bytes: free as llama.cpp will see it, after its context is made. free_is_estimate: derived from NVML's figures
    or a data sheet, not read through llama.cpp. bandwidth_bytes_per_s: peak memory bandwidth. display: drives a screen.
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


@dataclass(frozen=True)
class Machine:
    """GPUs in llama.cpp's order, plus the host.

    ram_total_bytes and ram_available_bytes respect the cgroup's limit. simulated: at least one part is not real.
    physical_cores: cores this process may use. ram_bandwidth_bytes_per_s: None when neither measured nor known.
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
    schema_version: int = 1
