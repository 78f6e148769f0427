"""The RAM's bandwidth where `bench` never measured it: a quick look, good for a day."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from ggufdeploy.deploy.measurements import fingerprint
from ggufdeploy.hardware.cpu import measure_ram_bandwidth_bytes_per_s
from ggufdeploy.hardware.machine import Machine

_GOOD_FOR_S = 86_400
"""A busy machine measures too low, so a quick look is not believed for longer; `bench` measures once and thoroughly."""


def ram_bandwidth_bytes_per_s(machine: Machine, folder: Path | None) -> int:
    """Return what all cores together read from RAM: as measured within the last day, else measured now (0.3 s).

    folder: where the figure is kept, None to keep nothing. A folder that cannot be written is no error.
    """
    if folder is None:
        return measure_ram_bandwidth_bytes_per_s()
    path = folder / f"ram-bandwidth-{fingerprint(machine)}"
    with contextlib.suppress(OSError, ValueError):
        if 0 <= time.time() - path.stat().st_mtime < _GOOD_FOR_S:
            return int(path.read_text(encoding="ascii"))
    measured = measure_ram_bandwidth_bytes_per_s()
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write_text(str(measured), encoding="ascii")
        fresh.replace(path)
    return measured
