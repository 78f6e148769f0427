"""How a worker ended, in a sentence; and whether memory was the reason."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from ggufdeploy.engine.loadlog import tells_out_of_memory
from ggufdeploy.engine.messages import GaveUp
from ggufdeploy.errors import EngineCrashed, LoadFailed

_VMSTAT = Path("/proc/vmstat")


def read_oom_kills(path: Path = _VMSTAT) -> int | None:
    """Return how often the kernel has killed a process for memory since it started; None where it does not tell.

    Source: Linux Documentation/filesystems/proc.rst and include/linux/vm_event_item.h (OOM_KILL).
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    counts = (line.split() for line in lines)
    return next((int(words[1]) for words in counts if words[0] == "oom_kill"), None)


def how_it_ended(exit_code: int) -> str:
    """Return the predicate: "ended with exit code 3", "was ended by SIGSEGV"."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    why = ", as the kernel does when memory runs out" if exit_code == -signal.SIGKILL else ""
    return f"was ended by {name}{why}"


def load_failure(
    name: str, exit_code: int, report: GaveUp | None, log: Sequence[str], hung_s: float | None
) -> LoadFailed:
    """Return why the model `name` was not loaded. hung_s: it was ended because it said nothing for so long."""
    if report is not None:
        lines = report.log or tuple(log)
        return LoadFailed(report.message, out_of_memory=report.out_of_memory, log=lines, hint=report.hint)
    if hung_s is not None:
        return LoadFailed(f"llama.cpp made no progress with {name} for {hung_s:.0f} s and was ended.", log=log)
    # The kernel kills with SIGKILL when memory runs out; nothing else here does while a model is loading.
    killed = exit_code == -signal.SIGKILL
    last = f": {log[-1]}" if log else ""
    return LoadFailed(
        f"llama.cpp's process {how_it_ended(exit_code)}, while loading {name}{last}",
        out_of_memory=killed or tells_out_of_memory(log),
        log=log,
    )


def crash(
    exit_code: int, report: GaveUp | None, log: Sequence[str], hung_s: float | None, *, oom_kills: int
) -> EngineCrashed:
    """Return why a worker that was serving ended. oom_kills: processes the kernel killed for memory meanwhile."""
    if report is not None:
        return EngineCrashed(
            report.message, exit_code=exit_code, out_of_memory=report.out_of_memory, log=report.log or tuple(log)
        )
    if hung_s is not None:
        message = f"The engine did not answer for {hung_s:.0f} s and was ended."
        return EngineCrashed(message, exit_code=exit_code, log=log)
    killed = exit_code == -signal.SIGKILL and oom_kills > 0
    return EngineCrashed(
        f"The engine's process {how_it_ended(exit_code)}.",
        exit_code=exit_code,
        out_of_memory=killed or (exit_code != -signal.SIGKILL and tells_out_of_memory(log)),
        log=log,
    )
