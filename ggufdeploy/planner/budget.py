"""How many bytes a plan may use: of each GPU after what stays free on purpose, and of the host's RAM."""

from __future__ import annotations

from typing import Literal

from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.memory import DeviceUsage, Usage
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.units import GIB, MIB

# Kept free on each GPU. H100: text serving grew by about 65 MiB after the load (two published nvidia-smi accounts), so
# 384 MiB is ample; any other GPU keeps llama.cpp's own default of 1 GiB.
_MARGIN_BYTES = {"h100-sxm": 384 * MIB, "h100-pcie": 384 * MIB}
DEFAULT_MARGIN_BYTES = GIB
# Outside llama.cpp's own account: cuBLAS workspace (32 MiB from compute capability 9.0 on, else 4 MiB) and the pool for
# quantized activations, 65 to 190 MiB in text serving. Source: llama.cpp ggml-cuda/common.cuh; docs/memory-model.md.
_POOL_BYTES = 190 * MIB
# The host keeps this much for everything else that runs.
HOST_MARGIN_BYTES = GIB
# Below this much left over, whatever else runs soon pushes mapped weights out of the page cache.
_TIGHT_BYTES, _TIGHT_SHARE = 2 * GIB, 20
# Weights that stay in RAM are mapped from the file, so more of them than RAM means reading from disk at every token;
# beyond this multiple of RAM that is no longer a deployment.
_DISK_LIMIT = 2

RamTier = Literal["fits", "tight", "disk", "impossible"]


def margin_bytes(device: Device) -> int:
    """Return what stays free on this GPU whatever the request: by its model, and 1 GiB when it drives a screen."""
    if device.kind == "rpc":
        return 0
    if device.display:
        return DEFAULT_MARGIN_BYTES
    return _MARGIN_BYTES.get(device.catalogue_id or "", DEFAULT_MARGIN_BYTES)


def kept_free_bytes(device: Device, request: PlanRequest) -> int:
    """Return all that stays free: the margin, what earlier loads taught, the reserve, and what a budget withholds."""
    kept = margin_bytes(device) + request.learned.extra_bytes(device) + request.reserve_bytes
    caps = [n_bytes for name, n_bytes in request.vram_budgets if name is None or name == device.name]
    return max([kept, *(device.free_bytes - n_bytes for n_bytes in caps)])


def overhead_bytes(device: Device) -> int:
    """Return what the engine allocates on this GPU outside llama.cpp's own account."""
    if device.kind == "rpc":
        return 0
    major = int((device.compute_capability or "0").split(".")[0])
    return _POOL_BYTES + (32 if major >= 9 else 4) * MIB


def budget_bytes(device: Device, request: PlanRequest) -> int:
    """Return the bytes llama.cpp may allocate on this GPU for the model; negative when nothing is left.

    Files beside the model (adapters, projectors, drafts) are held back on every GPU: the engine decides on which one
    they go.
    """
    return device.free_bytes - kept_free_bytes(device, request) - overhead_bytes(device) - request.extra_bytes


def available_bytes(machine: Machine, request: PlanRequest) -> int:
    """Return the budgets of all GPUs together."""
    return sum(max(budget_bytes(device, request), 0) for device in machine.devices)


def fits(usage: Usage, machine: Machine, request: PlanRequest) -> bool:
    """Tell whether every GPU holds its part."""
    return all(
        part.total_bytes <= budget_bytes(device, request)
        for part, device in zip(usage.devices, machine.devices, strict=True)
        if part.total_bytes
    )


def short_bytes(usage: Usage, machine: Machine, request: PlanRequest) -> int:
    """Return the VRAM that is missing: of all cards together, or more where a layer fits into no single rest."""
    parts = list(zip(usage.devices, (budget_bytes(device, request) for device in machine.devices), strict=True))
    together = sum(part.total_bytes for part, _ in parts) - sum(max(budget, 0) for _, budget in parts)
    return max(together, sum(max(part.total_bytes - max(budget, 0), 0) for part, budget in parts))


def ram_tier(host: DeviceUsage, machine: Machine, request: PlanRequest) -> RamTier:
    """Say what the host's share means for its RAM (MemAvailable, or less where a cgroup limits it).

    KV and compute buffers must be in RAM; weights are mapped from the file, so they need only be in the page cache,
    and can be read again from disk.
    """
    fixed = host.kv_bytes + host.compute_bytes + (0 if machine.devices else request.extra_bytes)
    room = machine.ram_available_bytes - HOST_MARGIN_BYTES
    if fixed > room or host.weights_bytes > _DISK_LIMIT * machine.ram_total_bytes:
        return "impossible"
    if fixed + host.weights_bytes > room:
        return "disk"
    left = machine.ram_available_bytes - fixed - host.weights_bytes
    return "tight" if left < max(_TIGHT_BYTES, machine.ram_total_bytes // _TIGHT_SHARE) else "fits"
