"""The host: RAM and cores this process may really use, inside containers too. Probes take the root directory to read.

Source of the cgroup files: the Linux kernel's admin-guide/cgroup-v2 and cgroup-v1/memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")
_SLICE_BYTES = 128 << 20  # per thread: no cache shared by few cores holds it
_STRIDE_BYTES = 8 << 20


@dataclass(frozen=True)
class Ram:
    """available_bytes: what can be allocated without pushing anything out."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Cores:
    """Cores this process may use under its affinity and CPU quota; logical ones count hyper-threads."""

    physical: int
    logical: int


def read_ram(root: Path = ROOT, host: Ram | None = None) -> Ram:
    """Return the RAM this process may use: the host's, or less where a cgroup limits it.

    host: the machine's own figures; psutil's when None. A cgroup's cached file pages that nothing uses are counted as
    available, as the kernel takes them back before it refuses an allocation.
    """
    ram = host or _host_ram()
    total, available = ram.total_bytes, ram.available_bytes
    for directory in _cgroup_directories(root, "memory"):
        limit = _read_int(directory / "memory.max", directory / "memory.limit_in_bytes")
        if limit is None:
            continue
        total = min(total, limit)
        used = _read_int(directory / "memory.current", directory / "memory.usage_in_bytes")
        if used is not None:
            reclaimable = _read_stat(directory / "memory.stat", "total_inactive_file", "inactive_file")
            available = min(available, max(0, limit - used + reclaimable))
    return Ram(total, min(available, total))


def read_cores(root: Path = ROOT, cpus: frozenset[int] | None = None) -> Cores:
    """Return the cores under affinity and quota. cpus: the allowed CPU numbers; this process's when None.

    A quota of 2.5 CPUs counts as 2: more spinning threads than that would be throttled.
    """
    allowed = _allowed_cpus() if cpus is None else cpus
    logical = max(1, len(allowed))
    siblings = {_siblings(root, cpu) for cpu in allowed}
    physical = max(1, len(siblings - {None})) if None not in siblings else _host_cores(logical)
    quota = min(
        (quota for directory in _cgroup_directories(root, "cpu") if (quota := _cpu_quota(directory))), default=None
    )
    if quota is not None:
        whole = max(1, int(quota))
        physical, logical = min(physical, whole), min(logical, whole)
    return Cores(min(physical, logical), logical)


def read_cpu_name(root: Path = ROOT) -> str | None:
    """Return the processor's model name, or None where the kernel does not say."""
    for line in (_read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return value.strip()
    return None


def measure_ram_bandwidth_bytes_per_s(seconds: float = 0.3, threads: int | None = None) -> int:
    """Measure how fast all usable cores together read RAM: a lower bound of what decoding can read.

    Every thread sums its own 128 MiB (or less where RAM is short) over and over. Takes `seconds` plus the time to fill
    the buffers, and keeps the cores busy meanwhile.
    """
    n_threads = threads or read_cores().physical
    slice_bytes = min(_SLICE_BYTES, read_ram().available_bytes // (4 * n_threads))
    rates = [0.0] * n_threads
    barrier = threading.Barrier(n_threads)

    def work(position: int) -> None:
        rates[position] = _read_rate(slice_bytes, seconds, barrier)

    workers = [threading.Thread(target=work, args=(position,), daemon=True) for position in range(n_threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return int(sum(rates))


def _read_rate(slice_bytes: int, seconds: float, barrier: threading.Barrier) -> float:
    """Sum one thread's own buffer until the time is up; return bytes/s."""
    import numpy as np

    stride = max(1, min(_STRIDE_BYTES, slice_bytes) // 8)
    # Filled by the thread that reads it, so that its pages lie in that core's NUMA node.
    buffer = np.ones(max(stride, slice_bytes // 8), dtype=np.int64)
    barrier.wait()
    start = time.perf_counter()
    done = 0
    while True:
        for first in range(0, buffer.size - stride + 1, stride):
            buffer[first : first + stride].sum()
            done += stride * 8
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return done / elapsed


def _host_ram() -> Ram:
    memory = psutil.virtual_memory()
    return Ram(memory.total, memory.available)


def _host_cores(logical: int) -> int:
    return min(psutil.cpu_count(logical=False) or logical, logical)


def _allowed_cpus() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _siblings(root: Path, cpu: int) -> str | None:
    """Return the list of hyper-threads that share `cpu`'s core, the same text for each of them."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    text = _read_text(topology / "core_cpus_list") or _read_text(topology / "thread_siblings_list")
    return text.strip() if text else None


def _cpu_quota(directory: Path) -> float | None:
    """Return the CPUs the group may use at once, or None when it is not limited."""
    words = (_read_text(directory / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]) / int(words[1])
    quota = _read_int(directory / "cpu.cfs_quota_us")
    period = _read_int(directory / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _cgroup_directories(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories whose limits apply to this process: its own group, then each parent, v2 and v1.

    Inside a container the named path is often not visible; the mount's root is then the container's own group.
    """
    mounts = root / "sys/fs/cgroup"
    for line in (_read_text(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if hierarchy == "0" and not names:
            bases = [mounts]
        elif controller in names.split(","):
            bases = [mounts / controller, mounts / names]
        else:
            continue
        path = PurePosixPath(group.lstrip("/"))
        for base in bases:
            if ".." not in path.parts:
                yield from (base / parent for parent in (path, *path.parents) if str(parent) != ".")
            yield base


def _read_text(path: Path) -> str | None:
    """Return a kernel file's text, or None where this kernel or container has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _read_int(*paths: Path) -> int | None:
    """Return the first file's number; None for "max" or when no file is there."""
    for path in paths:
        text = (_read_text(path) or "").strip()
        if text.lstrip("-").isdigit():
            return int(text)
    return None


def _read_stat(path: Path, *names: str) -> int:
    """Return the first of `names` in a "name value" file, 0 when it has none of them."""
    values = dict(line.split(maxsplit=1) for line in (_read_text(path) or "").splitlines() if " " in line)
    return next((int(values[name]) for name in names if values.get(name, "").isdigit()), 0)
