"""GPUs one can name: their memory as the driver and llama.cpp see it, and their bandwidth. Facts live in gpus.csv.

A row's `verified` column lists which of its figures (memory, llama, bandwidth, fp16) were read in the named source.
Memory that is not listed there is the marketed size. A figure found in no source is left out, never guessed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from ggufdeploy.errors import Ambiguous, BadValue, NotFound, nearest
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.units import GIB, MIB, format_bytes

# llama.cpp's name for the first device of a vendor's backend, without its number.
_BACKENDS = {"nvidia": "CUDA"}

# What an idle card lacks between NVML's total and the free memory llama.cpp reports, and the part of it that is the
# CUDA context: the largest seen below and from 30 GiB on, rounded up. Seen: T4 368, L4 474, RTX 5060 Ti 599, RTX 3090
# 731, RTX 4090 956 | A6000 873, H100 and RTX 5090 1007, A100 40GB 1057, RTX PRO 6000 1243 MiB; contexts 137 to 470 |
# 527 to 605 MiB. Source: the llama.cpp logs behind gpus.csv.
_LARGE_CARD_BYTES = 30 * GIB
_SMALL_CARD_GAP_BYTES, _SMALL_CARD_CONTEXT_BYTES = 960 * MIB, 480 * MIB
_LARGE_CARD_GAP_BYTES, _LARGE_CARD_CONTEXT_BYTES = 1280 * MIB, 608 * MIB

# The same driver name with a total this close is the same card: ECC takes 1/16 of a GDDR6 card (49140 -> 46068 MiB).
_SAME_CARD_TOLERANCE = 0.08


@dataclass(frozen=True)
class GpuSpec:
    """One kind of GPU.

    nvml_total_bytes: what nvidia-smi shows; the marketed size where never seen. llama_total_bytes: cudaMemGetInfo's
    total, None when never seen. llama_free_bytes: free on an idle card after llama.cpp made its CUDA context;
    llama_free_is_estimate: by `estimate_idle_free_bytes`, not from a log. fp16_flops_per_s: dense, with tensor cores.
    verified: the figures that `source` states: "memory", "llama", "bandwidth", "fp16".
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    nvml_names: tuple[str, ...]
    vendor: str
    compute_capability: str | None
    nvml_total_bytes: int
    llama_total_bytes: int | None
    llama_free_bytes: int
    llama_free_is_estimate: bool
    bandwidth_bytes_per_s: int | None
    fp16_flops_per_s: float | None
    source: str
    verified: frozenset[str]

    @property
    def summary(self) -> str:
        """One phrase for lists: "h100-sxm: 79.6 GiB, 3,350 GB/s"."""
        rate = f"{self.bandwidth_bytes_per_s // 10**9:,} GB/s" if self.bandwidth_bytes_per_s else "bandwidth unknown"
        return f"{self.id}: {format_bytes(self.nvml_total_bytes)}, {rate}"


def context_bytes(nvml_total_bytes: int) -> int:
    """Estimate what a CUDA context of llama.cpp takes: the largest seen on cards of that size."""
    return _LARGE_CARD_CONTEXT_BYTES if nvml_total_bytes >= _LARGE_CARD_BYTES else _SMALL_CARD_CONTEXT_BYTES


def estimate_idle_free_bytes(nvml_total_bytes: int, llama_total_bytes: int | None = None) -> int:
    """Estimate the free memory llama.cpp reports on an idle card, so that no card in any log had less.

    With llama.cpp's own total known: that, less the CUDA context. Else NVML's total less the largest gap seen.
    """
    if llama_total_bytes is not None:
        return llama_total_bytes - context_bytes(nvml_total_bytes)
    large = nvml_total_bytes >= _LARGE_CARD_BYTES
    return max(0, nvml_total_bytes - (_LARGE_CARD_GAP_BYTES if large else _SMALL_CARD_GAP_BYTES))


@cache
def list_gpus() -> tuple[GpuSpec, ...]:
    """Return the catalogue in its own order: data-centre cards first, then workstations, then GeForce."""
    text = resources.files("ggufdeploy.hardware").joinpath("gpus.csv").read_text(encoding="utf-8")
    return tuple(_spec_of(row) for row in csv.DictReader(io.StringIO(text)))


def find_gpu(name: str) -> GpuSpec:
    """Return the GPU called `name`: id, alias or driver name; case, spaces and punctuation do not matter.

    Raises Ambiguous when several cards share the name, NotFound when none has it.
    """
    key = _key(name)
    matches = [spec for spec in list_gpus() if key in _keys(spec)]
    exact = [spec for spec in matches if key == _key(spec.id)]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        meanings = "; ".join(spec.summary for spec in matches)
        raise Ambiguous("GPU", name, [spec.id for spec in matches], hint=f"name one of them: {meanings}")
    close = _nearest_id(key)
    hint = "list the known ones: ggufdeploy doctor --gpus"
    raise NotFound("GPU", name, hint=f"did you mean {close}? {hint}" if close else hint)


def parse_gpu(text: str) -> tuple[GpuSpec, int]:
    """Return (spec, count) for "NAME[:COUNT]". Raises BadValue, NotFound, Ambiguous."""
    name, colon, count = text.rpartition(":")
    if not colon:
        return find_gpu(text), 1
    if not count.isascii() or not count.isdigit() or int(count) < 1:
        raise BadValue("--gpu", f"--gpu: {count!r} is not a number of GPUs", hint="write it like h100-sxm:2")
    return find_gpu(name), int(count)


def match_nvml_name(driver_name: str, total_bytes: int | None) -> GpuSpec | None:
    """Return the card the driver calls `driver_name`, or None when it is not in the catalogue.

    total_bytes tells apart cards of the same name (an RTX 3080 with 10 or 12 GB) and modified ones.
    """
    key = _key(driver_name)
    named = [spec for spec in list_gpus() if key in {_key(name) for name in spec.nvml_names}]
    if total_bytes is None:
        return named[0] if len(named) == 1 else None

    def distance(spec: GpuSpec) -> float:
        return abs(total_bytes - spec.nvml_total_bytes) / spec.nvml_total_bytes

    best = min(named, key=distance, default=None)
    return best if best is not None and distance(best) <= _SAME_CARD_TOLERANCE else None


def mig_figures(driver_name: str, total_bytes: int) -> tuple[int | None, float | None]:
    """Return (bandwidth in bytes/s, FP16 peak) of a MIG instance by its name, "NVIDIA H100 80GB HBM3 MIG 3g.40gb".

    None: unknown.
    An instance has whole eighths of the GPU's memory with their bandwidth, and sevenths of its multiprocessors.
    Source: NVIDIA MIG User Guide, supported profiles.
    """
    match = re.fullmatch(r"(.+) MIG (\d)(?:c\.\d)?g\.\d+gb\S*", driver_name)
    spec = match_nvml_name(match[1], None) if match else None
    if match is None or spec is None:
        return None, None
    eighths = min(8, max(1, round(8 * total_bytes / spec.nvml_total_bytes)))
    bandwidth, flops = spec.bandwidth_bytes_per_s, spec.fp16_flops_per_s
    return bandwidth and bandwidth * eighths // 8, flops and flops * int(match[2]) / 7


def simulate(spec: GpuSpec, count: int, *, ram_bytes: int | None = None, base: Machine) -> Machine:
    """Return `base` with its devices replaced by `count` idle cards, and its RAM by ram_bytes when given.

    All of ram_bytes counts as available. CPU, cores and RAM bandwidth stay those of `base`; runs measured there do not.
    Raises BadValue when count is below 1 or ram_bytes is not positive.
    """
    if count < 1:
        raise BadValue("--gpu", f"--gpu: cannot simulate {count} GPUs", hint="write it like h100-sxm:2")
    if ram_bytes is not None and ram_bytes <= 0:
        raise BadValue("--ram", f"--ram: {ram_bytes} bytes is not a memory size", hint="write it like 256GiB")
    device = Device(
        name="",
        kind="gpu",
        description=spec.nvml_names[0] if spec.nvml_names else spec.name,
        total_bytes=spec.nvml_total_bytes,
        free_bytes=spec.llama_free_bytes,
        free_is_estimate=spec.llama_free_is_estimate,
        catalogue_id=spec.id,
        bandwidth_bytes_per_s=spec.bandwidth_bytes_per_s,
        compute_capability=spec.compute_capability,
        fp16_flops_per_s=spec.fp16_flops_per_s,
    )
    backend = _BACKENDS[spec.vendor]
    return replace(
        base,
        devices=tuple(replace(device, name=f"{backend}{index}") for index in range(count)),
        ram_total_bytes=base.ram_total_bytes if ram_bytes is None else ram_bytes,
        ram_available_bytes=base.ram_available_bytes if ram_bytes is None else ram_bytes,
        simulated=True,
        speed_samples=(),
    )


def _key(name: str) -> str:
    """Return what makes the name: "NVIDIA GeForce RTX 4090" and "rtx-4090" give the same."""
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())


def _keys(spec: GpuSpec) -> set[str]:
    return {_key(name) for name in (spec.id, spec.name, *spec.aliases, *spec.nvml_names)}


def _nearest_id(key: str) -> str | None:
    by_key = {_key(name): spec.id for spec in list_gpus() for name in (spec.id, *spec.aliases)}
    close = nearest(key, by_key)
    return by_key[close] if close else None


def _spec_of(row: dict[str, str]) -> GpuSpec:
    total = int(row["memory_mib"]) * MIB
    llama_total = int(row["llama_total_mib"]) * MIB if row["llama_total_mib"] else None
    llama_free = int(row["llama_free_mib"]) * MIB if row["llama_free_mib"] else None
    return GpuSpec(
        id=row["id"],
        name=row["name"],
        aliases=tuple(row["aliases"].split()),
        nvml_names=_split(row["nvml_names"]),
        vendor=row["vendor"],
        compute_capability=row["compute_capability"] or None,
        nvml_total_bytes=total,
        llama_total_bytes=llama_total,
        llama_free_bytes=estimate_idle_free_bytes(total, llama_total) if llama_free is None else llama_free,
        llama_free_is_estimate=llama_free is None,
        bandwidth_bytes_per_s=int(row["bandwidth_gb_s"]) * 10**9 if row["bandwidth_gb_s"] else None,
        fp16_flops_per_s=float(row["fp16_dense_tflops"]) * 1e12 if row["fp16_dense_tflops"] else None,
        source=row["source"],
        verified=frozenset(row["verified"].split()),
    )


def _split(cell: str) -> tuple[str, ...]:
    parts: Iterable[str] = (part.strip() for part in cell.split("|"))
    return tuple(part for part in parts if part)
