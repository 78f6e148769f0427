"""Plans for tests of what comes after the planning: only devices, layers and sizes matter."""

from __future__ import annotations

from ggufdeploy.planner.plan import (
    Plan,
    PlanDevice,
    PlanEngine,
    PlanKvCache,
    PlanModel,
    PlanPlacement,
    PlanQuantization,
    PlanSpeed,
)
from ggufdeploy.units import GIB


def device(
    name: str, weights_bytes: int, kv_bytes: int = 0, compute_bytes: int = 0, free_bytes: int = 80 * GIB
) -> PlanDevice:
    """Return one device's part of a plan; its kind follows from its name."""
    kind = "cpu" if name == "CPU" else "rpc" if name.startswith("RPC") else "gpu"
    used = weights_bytes + kv_bytes + compute_bytes
    return PlanDevice(name, kind, 80 * GIB, free_bytes, weights_bytes, kv_bytes, compute_bytes, 0, 0, used)


def plan(*devices: PlanDevice, n_gpu_layers: int = 33) -> Plan:
    """Return a plan for a model of 32 blocks."""
    return Plan(
        model=PlanModel("m", "m", None, None, "llama", 1, 32, 0, None),
        quantization=PlanQuantization("Q4_K_M", 4.8, (), 1),
        context_tokens=8192,
        slots=4,
        kv_cache=PlanKvCache("f16", "f16", sum(part.kv_bytes for part in devices)),
        verdict="gpu" if n_gpu_layers == 33 else "offload",
        placement=PlanPlacement(n_gpu_layers, 33, "full", "none", (), ()),
        engine=PlanEngine(512, 512, True, "mmap", 1),
        devices=devices,
        speed=PlanSpeed(None, None, None, None),
        memory_source="engine",
        header_source="file",
        warnings=(),
        alternatives=(),
    )
