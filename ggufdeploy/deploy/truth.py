"""Planned beside actual: what llama.cpp allocated on each device, and what the engine's process holds."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ggufdeploy.engine.request import DeviceBuffers, EngineInfo
from ggufdeploy.hardware.machine import Device
from ggufdeploy.hardware.nvidia import read_process_bytes
from ggufdeploy.planner.memory import DeviceUsage
from ggufdeploy.planner.plan import Plan
from ggufdeploy.units import MIB, format_bytes

TOLERANCE_SHARE = 0.01
TOLERANCE_BYTES = MIB


@dataclass(frozen=True)
class DeviceTruth:
    """One device.

    process_bytes: all that the engine's process holds there as the driver counts it, with CUDA's own context; None
    where the driver does not tell. repacked_bytes: host weights kept a second time, in an order that suits the CPU; the
    first copy is page cache and may go.
    """

    name: str
    kind: Literal["gpu", "cpu", "rpc"]
    planned: DeviceUsage
    actual: DeviceUsage
    repacked_bytes: int
    process_bytes: int | None

    @property
    def differs(self) -> bool:
        """Whether plan and truth are more than 1 % and more than 1 MiB apart."""
        apart = abs(self.actual.total_bytes - self.planned.total_bytes)
        return apart > TOLERANCE_BYTES and apart > TOLERANCE_SHARE * self.planned.total_bytes


@dataclass(frozen=True)
class ProcessMemory:
    """The engine's process. rss_bytes counts shared pages in full, pss_bytes its share of them (Linux).

    gpu_bytes: by name of the device. None: not told here.
    """

    rss_bytes: int | None = None
    pss_bytes: int | None = None
    gpu_bytes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Truth:
    """What came of a plan. gpu_share: of all bytes, those on GPUs. proof_s: what the proof prompts cost."""

    devices: tuple[DeviceTruth, ...]
    gpu_share: float
    process: ProcessMemory
    proof_tokens: tuple[int, ...]
    proof_s: float | None
    warnings: tuple[str, ...]


def read_process(pid: int, devices: Sequence[Device]) -> ProcessMemory:
    """Ask the system and the driver what the process holds; takes some milliseconds."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    rss_bytes = pss_bytes = None
    with contextlib.suppress(psutil.Error):  # it has ended, or the system does not let us look: unknown, so None
        process = psutil.Process(pid)
        rss_bytes = int(process.memory_info().rss)
        pss_bytes = getattr(process.memory_full_info(), "pss", None)
    by_uuid = read_process_bytes(pid) if any(device.kind == "gpu" for device in devices) else {}
    gpu_bytes = {device.name: by_uuid[device.uuid] for device in devices if device.uuid in by_uuid}
    return ProcessMemory(rss_bytes, pss_bytes, gpu_bytes or None)


def compare(plan: Plan, info: EngineInfo, process: ProcessMemory) -> Truth:
    """Put the plan beside what was loaded.

    With weights on GPUs the host's are the rest of the model: the log counts the mapped part of the file there, holes
    included. Source: llama.cpp src/llama-model-loader.cpp (get_mapping_range).
    """
    found = {part.device: part for part in info.buffers}
    held_bytes = sum(device.weights_bytes for device in plan.devices)
    on_gpus = sum(part.weights_bytes for part in info.buffers if part.device != "CPU")
    devices = []
    for device in plan.devices:
        part = found.get(device.name, DeviceBuffers(device.name, 0, 0, 0))
        weights = held_bytes - on_gpus if device.kind == "cpu" and on_gpus else part.weights_bytes
        planned = DeviceUsage(device.weights_bytes, device.kv_bytes, device.compute_bytes)
        actual = DeviceUsage(weights, part.kv_bytes, part.compute_bytes)
        held = (process.gpu_bytes or {}).get(device.name)
        devices.append(DeviceTruth(device.name, device.kind, planned, actual, part.repacked_bytes, held))
    total = sum(device.actual.total_bytes for device in devices)
    on_gpu = sum(device.actual.total_bytes for device in devices if device.kind != "cpu")
    ladder = info.ladder
    return Truth(
        tuple(devices),
        on_gpu / total if total else 0.0,
        process,
        ladder.rungs if ladder else (),
        ladder.seconds if ladder else None,
        (*_differences(devices), *_misplaced(plan, info)),
    )


def truth_lines(truth: Truth) -> list[str]:
    """Return one line per device that is used, then the process."""
    lines = []
    for device in truth.devices:
        planned, actual = device.planned.total_bytes, device.actual.total_bytes
        if planned or actual:
            repacked = f" and {format_bytes(device.repacked_bytes)} repacked" if device.repacked_bytes else ""
            lines.append(f"{device.name}: planned {format_bytes(planned)}, actual {format_bytes(actual)}{repacked}")
    held = [f"{format_bytes(size)} on {name}" for name, size in (truth.process.gpu_bytes or {}).items()]
    if truth.process.rss_bytes is not None:
        held.append(f"{format_bytes(truth.process.rss_bytes)} of RAM")
    proof = ""
    if truth.proof_s is not None:
        proof = f", after prompts of {_listed(truth.proof_tokens)} tokens ({truth.proof_s:.1f} s)"
    if held:
        lines.append(f"the engine's process holds {' and '.join(held)}{proof}")
    return lines


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _differences(devices: Sequence[DeviceTruth]) -> list[str]:
    sentences = []
    for device in devices:
        if device.differs:
            planned, actual = device.planned, device.actual
            parts = [
                f"{name} {format_bytes(before)} -> {format_bytes(now)}"
                for name, before, now in (
                    ("weights", planned.weights_bytes, actual.weights_bytes),
                    ("KV cache", planned.kv_bytes, actual.kv_bytes),
                    ("compute buffers", planned.compute_bytes, actual.compute_bytes),
                )
                if before != now
            ]
            share = (actual.total_bytes - planned.total_bytes) / max(planned.total_bytes, 1)
            sentences.append(
                f"{device.name} was planned to take {format_bytes(planned.total_bytes)} and takes "
                f"{format_bytes(actual.total_bytes)} ({share:+.1%}): {', '.join(parts)}"
            )
    return sentences


def _misplaced(plan: Plan, info: EngineInfo) -> list[str]:
    """Compare the number of layers on GPUs; the log may not tell it."""
    if not info.layer_devices:
        return []
    on_gpus = sum(device != "CPU" for device in info.layer_devices)
    planned = plan.placement.n_gpu_layers
    if on_gpus == planned:
        return []
    return [f"{planned} of {plan.placement.n_layers_total} layers were planned on GPUs, and {on_gpus} are there"]
