"""What one decoded token costs each device: bytes to read, layers to run, and the seconds the constants give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.hardware.samples import HOST, Work
from ggufdeploy.planner import rates
from ggufdeploy.planner.memory import kv_row_bytes
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import KvType


@dataclass(frozen=True)
class SpeedPart:
    """One device's share of a token. read_s: for reading read_bytes; fixed_s: what its layers cost besides.

    attention_s: for attention over the filled context, where that is not hidden behind reading it: on CPUs.
    """

    device: str
    read_bytes: int
    read_s: float
    layers: int
    fixed_s: float
    attention_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.read_s + self.fixed_s + self.attention_s


def active_bytes(layer: LayerInfo, model: ModelInfo) -> tuple[int, int]:
    """Return (dense, expert) bytes of this block that one token reads."""
    used = layer.expert_bytes * model.n_experts_used // model.n_experts if model.n_experts else 0
    return layer.dense_bytes, used


def active_params(model: ModelInfo) -> float:
    """Return the parameters one token uses, by their share of the blocks' bytes."""
    total = sum(layer.total_bytes for layer in model.layers)
    read = sum(sum(active_bytes(layer, model)) for layer in model.layers)
    return model.n_params * read / total if total else float(model.n_params)


def work_per_token(
    model: ModelInfo, kv_type: KvType, placement: Placement, machine: Machine, used_tokens: int
) -> tuple[Work, ...]:
    """Return what one token costs each device that does anything, the host first. used_tokens: filled KV cells."""
    host_read = sum(_read_bytes(model.layers[i], model, kv_type, used_tokens) for i in placement.host_layers)
    if placement.output_device is None:
        host_read += model.output_bytes
    works = []
    for index, device in enumerate(machine.devices[: placement.n_devices]):
        layers = [model.layers[i] for i in placement.layers_on(index)]
        read = sum(_read_bytes(layer, model, kv_type, used_tokens) for layer in layers)
        moved = [layer for layer in layers if layer.expert_bytes and placement.experts_on_host(layer.index)]
        experts_read = sum(active_bytes(layer, model)[1] for layer in moved)
        host_read += experts_read
        if placement.output_device == index:
            read += model.output_bytes
        if layers or placement.output_device == index:
            works.append(_work(device.name, read - experts_read, layers, model, used_tokens, len(moved)))
    if host_read:
        host_layers = [model.layers[i] for i in placement.host_layers]
        works.insert(0, _work(HOST, host_read, host_layers, model, used_tokens))
    return tuple(works)


def _read_bytes(layer: LayerInfo, model: ModelInfo, kv_type: KvType, used_tokens: int) -> int:
    state_bytes = 2 * 4 * layer.state_elements  # a recurrent state is read and written back, in f32
    return sum(active_bytes(layer, model)) + _cells(layer, used_tokens) * kv_row_bytes(layer, kv_type) + state_bytes


def _cells(layer: LayerInfo, used_tokens: int) -> int:
    return min(used_tokens, layer.window_tokens or used_tokens)


def _work(
    device: str, read_bytes: int, layers: Sequence[LayerInfo], model: ModelInfo, used_tokens: int, moved: int = 0
) -> Work:
    experts = sum(layer.expert_bytes > 0 for layer in layers)
    wide = experts if model.n_experts >= rates.WIDE_EXPERTS else 0
    attending = [layer for layer in layers if layer.kv_heads]
    elements = sum(_cells(layer, used_tokens) * (layer.key_length + layer.value_length) for layer in attending)
    return Work(device, read_bytes, len(layers), experts, wide, moved, model.n_heads * elements)


@dataclass(frozen=True)
class Host:
    """What the host can do. assumed: its bandwidth is not known, so it is taken for a typical one, cores and all."""

    bandwidth_bytes_per_s: int
    cores: int
    assumed: bool


def host_of(machine: Machine) -> Host:
    """Return the machine's host; behind simulated GPUs stands not the host of the machine one plans on."""
    if machine.ram_bandwidth_bytes_per_s is not None:
        return Host(machine.ram_bandwidth_bytes_per_s, machine.physical_cores, False)
    if any(rates.memory_class(device.compute_capability) == "hbm" for device in machine.devices):
        return Host(rates.ASSUMED_SERVER_BYTES_PER_S, rates.ASSUMED_SERVER_CORES, True)
    return Host(rates.ASSUMED_DESKTOP_BYTES_PER_S, rates.ASSUMED_DESKTOP_CORES, True)


def token_parts(works: Sequence[Work], machine: Machine) -> tuple[SpeedPart, ...] | None:
    """Return the seconds of each device by the constants alone; None when a GPU or its bandwidth is unknown."""
    devices = {device.name: device for device in machine.devices}
    parts: list[SpeedPart] = []
    for work in works:
        if work.device == HOST:
            parts.append(_host_part(work, machine))
            continue
        device = devices.get(work.device)
        if device is None or device.bandwidth_bytes_per_s is None:
            return None
        after_a_gpu = any(part.device != HOST for part in parts)
        parts.append(_gpu_part(work, device, device.bandwidth_bytes_per_s, rates.HOP_S if after_a_gpu else 0.0))
    return tuple(parts)


def _host_part(work: Work, machine: Machine) -> SpeedPart:
    host = host_of(machine)
    read_s = work.read_bytes / (rates.HOST_EFFICIENCY * host.bandwidth_bytes_per_s)
    attention_s = work.attention_macs / (rates.ATTENTION_MACS_PER_S_AND_CORE * host.cores)
    return SpeedPart(HOST, work.read_bytes, read_s, work.layers, work.layers * rates.HOST_LAYER_S, attention_s)


def _gpu_part(work: Work, device: Device, bandwidth_bytes_per_s: int, hop_s: float) -> SpeedPart:
    memory = rates.memory_class(device.compute_capability)
    fixed_s = hop_s + work.layers * rates.LAYER_S[memory]
    fixed_s += work.expert_layers * rates.EXPERT_LAYER_S + work.wide_expert_layers * rates.WIDE_EXPERT_LAYER_S
    fixed_s += work.host_expert_layers * rates.HOST_EXPERT_LAYER_S
    read_s = work.read_bytes / (rates.EFFICIENCY[memory] * bandwidth_bytes_per_s)
    return SpeedPart(work.device, work.read_bytes, read_s, work.layers, fixed_s)
