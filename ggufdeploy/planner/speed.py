"""How fast a placement decodes: what each token reads, over how fast it can be read, plus a cost per layer.

Decode reads every active weight and the used KV cells once per token: t = bytes / (efficiency x bandwidth) + layers x
overhead, summed over the devices, which work one after the other. Predictions here are estimates until measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.memory import kv_row_bytes
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import PlanRequest

# Fit of t = bytes/(eff x BW) + layers x tau on published llama.cpp runs with CUDA graphs: a 7B Q4_0 on an H100 takes
# 3.56 ms, 65 to 75 us per layer at eff 0.8; small-expert models imply 75 to 150 us. Source: llama.cpp discussion 15013.
GPU_EFFICIENCY = 0.80
GPU_LAYER_S = 85e-6
# Dual-channel desktops and 8-channel servers reach 80 to 85 % of the theoretical peak when all cores read.
CPU_EFFICIENCY = 0.80
CPU_LAYER_S = 20e-6
# Assumed when nothing is known about the host: beside data-centre GPUs 60 % of eight DDR5-4800 channels, else two
# channels of DDR4-3200. Every figure that rests on this says so.
ASSUMED_SERVER_BYTES_PER_S = 184_000_000_000
ASSUMED_DESKTOP_BYTES_PER_S = 51_200_000_000
_DATA_CENTRE_BYTES_PER_S = 1_200_000_000_000
# Share of the dense FP16 peak that prompt processing reaches: 11,263 tokens/s of a 7B on an H100 (discussion 15013).
PREFILL_EFFICIENCY = 0.15
# Effective host-to-GPU copy rate; weights on the host cross it once per n_ubatch prompt tokens. PCIe 4.0 x16.
HOST_TO_GPU_BYTES_PER_S = 22_000_000_000


@dataclass(frozen=True)
class Speed:
    """tokens/s of one stream at a context that is half full; None when the hardware's figures are unknown.

    host_bandwidth_assumed: the RAM bandwidth was not known, so a typical one was used.
    """

    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    host_bandwidth_assumed: bool


def host_bandwidth(machine: Machine) -> tuple[int, bool]:
    """Return (bytes/s, assumed) of the host's memory."""
    if machine.ram_bandwidth_bytes_per_s is not None:
        return machine.ram_bandwidth_bytes_per_s, False
    server = any((device.bandwidth_bytes_per_s or 0) > _DATA_CENTRE_BYTES_PER_S for device in machine.devices)
    return (ASSUMED_SERVER_BYTES_PER_S if server else ASSUMED_DESKTOP_BYTES_PER_S), True


def active_bytes(layer: LayerInfo, model: ModelInfo) -> tuple[int, int]:
    """Return (dense, expert) bytes of this block that one token reads."""
    used = layer.expert_bytes * model.n_experts_used // model.n_experts if model.n_experts else 0
    return layer.dense_bytes, used


def predict(model: ModelInfo, request: PlanRequest, placement: Placement, machine: Machine) -> Speed:
    """Predict the speed of one stream, at half the requested context."""
    ram, assumed = host_bandwidth(machine)
    cells = request.context_tokens // 2
    seconds, host_bytes, known = 0.0, 0, True
    for layer in model.layers:
        dense, experts = active_bytes(layer, model)
        kv = min(cells, layer.window_tokens or cells) * kv_row_bytes(layer, request.kv_type)
        device = _device_of(layer.index, placement, machine)
        if device is None:
            host_bytes += dense + experts + kv
            seconds += CPU_LAYER_S
            continue
        if placement.experts_on_host(layer.index):
            host_bytes += experts
            seconds, experts = seconds + CPU_LAYER_S, 0
        step = _gpu_seconds(device, dense + experts + kv)
        known, seconds = known and step is not None, seconds + (step or 0.0) + GPU_LAYER_S
    output = _output_seconds(model, placement, machine)
    if output is None:
        host_bytes += model.output_bytes
    seconds += (output or 0.0) + host_bytes / (CPU_EFFICIENCY * ram)
    decode = 1 / seconds if known and seconds else None
    return Speed(decode, _prefill(model, request, placement, machine), assumed and host_bytes > 0)


def _device_of(layer: int, placement: Placement, machine: Machine) -> Device | None:
    for index, device in enumerate(machine.devices[: placement.n_devices]):
        if layer in placement.layers_on(index):
            return device
    return None


def _gpu_seconds(device: Device, n_bytes: int) -> float | None:
    if device.bandwidth_bytes_per_s is None:
        return None
    return n_bytes / (GPU_EFFICIENCY * device.bandwidth_bytes_per_s)


def _output_seconds(model: ModelInfo, placement: Placement, machine: Machine) -> float | None:
    if placement.output_device is None:
        return None
    return _gpu_seconds(machine.devices[placement.output_device], model.output_bytes)


def _prefill(model: ModelInfo, request: PlanRequest, placement: Placement, machine: Machine) -> float | None:
    """Return prompt tokens/s: bound by arithmetic and by copying the host's weights once per ubatch. None: unknown."""
    if placement.output_device is None:
        return None
    flops = machine.devices[placement.output_device].fp16_flops_per_s
    if flops is None:
        return None
    active = model.n_params * _active_share(model)
    seconds = 2 * active / (PREFILL_EFFICIENCY * flops)
    host = sum(model.layers[index].total_bytes for index in placement.host_layers)
    host += sum(
        layer.expert_bytes
        for layer in model.layers
        if layer.index not in placement.host_layers and placement.experts_on_host(layer.index)
    )
    return 1 / (seconds + host / HOST_TO_GPU_BYTES_PER_S / request.n_ubatch)


def _active_share(model: ModelInfo) -> float:
    total = sum(layer.total_bytes for layer in model.layers)
    read = sum(sum(active_bytes(layer, model)) for layer in model.layers)
    return read / total if total else 1.0
