"""What was measured on this machine, kept between runs: one JSON file in the state directory, one record per machine.

A machine is known by its processor, cores, RAM and GPUs, so a home directory shared by several keeps them apart.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from filelock import FileLock

from ggufdeploy.errors import BadConfig
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.hardware.samples import SpeedSample
from ggufdeploy.units import GIB

SCHEMA_VERSION = 1
FILE_NAME = "measurements.json"
_MAX_SAMPLES = 40  # of the newest runs; each is well under 1 KB


@dataclass(frozen=True)
class Measurements:
    """Of one machine. description: for people who read the file. samples: the newest last."""

    description: str
    ram_bandwidth_bytes_per_s: int | None = None
    samples: tuple[SpeedSample, ...] = ()


@dataclass(frozen=True)
class _File:
    machines: dict[str, Measurements]
    schema_version: int = SCHEMA_VERSION


def fingerprint(machine: Machine) -> str:
    """Return what tells this machine from others; the RAM counts in GiB, because kernels differ in what they keep."""
    facts = (
        machine.cpu_name,
        machine.physical_cores,
        machine.logical_cores,
        round(machine.ram_total_bytes / GIB),
        [(device.kind, device.description, device.total_bytes) for device in machine.devices],
    )
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]


def recall(machine: Machine, state_dir: Path) -> Machine:
    """Return the machine with what was measured on it; a simulated one as it is. Raises BadConfig."""
    if machine.simulated:
        return machine
    known = _read(state_dir / FILE_NAME).machines.get(fingerprint(machine))
    if known is None:
        return machine
    bandwidth = known.ram_bandwidth_bytes_per_s or machine.ram_bandwidth_bytes_per_s
    return replace(machine, ram_bandwidth_bytes_per_s=bandwidth, speed_samples=known.samples)


def remember_bandwidth(machine: Machine, bytes_per_s: int, state_dir: Path) -> Path:
    """Store the RAM's bandwidth; return the file. Raises BadConfig, OSError."""
    return _change(machine, state_dir, lambda known: replace(known, ram_bandwidth_bytes_per_s=bytes_per_s))


def remember_samples(machine: Machine, samples: tuple[SpeedSample, ...], state_dir: Path) -> Path:
    """Store runs in place of earlier ones of the same model at the same placement. Raises BadConfig, OSError."""
    new = {_what(sample) for sample in samples}

    def change(known: Measurements) -> Measurements:
        kept = tuple(sample for sample in known.samples if _what(sample) not in new)
        return replace(known, samples=(*kept, *samples)[-_MAX_SAMPLES:])

    return _change(machine, state_dir, change)


def forget(machine: Machine, state_dir: Path) -> bool:
    """Drop this machine's record, and a file that cannot be read; return whether there was one. Raises OSError."""
    path = state_dir / FILE_NAME
    with _locked(state_dir):
        try:
            machines = _read(path).machines
        except BadConfig:  # what nobody can read can only be thrown away, and that is what was asked for
            path.unlink()
            return True
        found = machines.pop(fingerprint(machine), None)
        if found is not None:
            _write(path, machines)
        return found is not None


def _what(sample: SpeedSample) -> tuple[object, ...]:
    return (
        sample.architecture,
        sample.n_params,
        sample.weights_bytes,
        sample.n_gpu_layers,
        sample.cpu_expert_layers,
        tuple(work.device for work in sample.work),
    )


def _change(machine: Machine, state_dir: Path, change: Callable[[Measurements], Measurements]) -> Path:
    path, key = state_dir / FILE_NAME, fingerprint(machine)
    with _locked(state_dir):
        machines = _read(path).machines
        machines[key] = change(machines.get(key, Measurements(_describe(machine))))
        _write(path, machines)
    return path


def _describe(machine: Machine) -> str:
    gpus = ", ".join(device.description for device in machine.devices) or "no GPU"
    ram_gib = round(machine.ram_total_bytes / GIB)
    return f"{machine.cpu_name or 'unknown CPU'}, {machine.physical_cores} cores, {ram_gib} GiB, {gpus}"


def _locked(state_dir: Path) -> FileLock:
    state_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(state_dir / f"{FILE_NAME}.lock")


def _read(path: Path) -> _File:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return _File({})
    except msgspec.DecodeError as error:
        raise _unreadable(path, str(error)) from error
    if file.schema_version != SCHEMA_VERSION:
        raise _unreadable(path, f"schema {file.schema_version} is not {SCHEMA_VERSION}")
    return file


def _unreadable(path: Path, why: str) -> BadConfig:
    return BadConfig(str(path), f"{path} does not hold measurements: {why}", hint="ggufdeploy bench --forget")


def _write(path: Path, machines: dict[str, Measurements]) -> None:
    text = msgspec.json.format(msgspec.json.encode(_File(machines)), indent=2)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(text + b"\n")
    partial.replace(path)
