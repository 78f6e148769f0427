"""The machine a command works for: this one, one from a file, or one with other GPUs or RAM."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ggufdeploy.errors import BadValue
from ggufdeploy.hardware.catalog import GpuSpec, simulate
from ggufdeploy.hardware.detect import Detection, detect
from ggufdeploy.hardware.machine import load_machine
from ggufdeploy.hardware.nvidia import NvidiaReadings


def choose_machine(gpu: tuple[GpuSpec, int] | None, machine_file: Path | None, ram_bytes: int | None) -> Detection:
    """Return the machine that --gpu, --machine and --ram describe; without them, this one.

    --machine replaces this machine, --gpu its devices, --ram its memory; only this machine's GPUs are looked for, and
    only when they are wanted. Raises NotFound, BadConfig, BadValue.
    """
    if machine_file is not None:
        found = Detection(replace(load_machine(machine_file), simulated=True))
    else:
        found = detect(os.environ, readings=NvidiaReadings() if gpu is not None else None)
    if gpu is not None:
        spec, count = gpu
        return Detection(simulate(spec, count, ram_bytes=ram_bytes, base=found.machine))
    if ram_bytes is None:
        return found
    if ram_bytes <= 0:
        raise BadValue("--ram", f"--ram: {ram_bytes} bytes is not a memory size", hint="write it like 256GiB")
    machine = replace(found.machine, ram_total_bytes=ram_bytes, ram_available_bytes=ram_bytes, simulated=True)
    return replace(found, machine=machine)
