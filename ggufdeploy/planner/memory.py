"""Bytes per device for a placement. Formulas here shortlist; the engine's own figures replace them (law 1).

A `MemoryModel` answers one question. `FormulaMemory` computes; the engine's dry run implements the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.planner.graph import (
    PIPELINE_COPIES,
    Role,
    compute_bytes,
    inputs_bytes,
    mask_bytes,
    output_bytes,
    pass_tokens,
    pipeline_bytes,
    staging_bytes,
)
from ggufdeploy.planner.kv import (
    kv_bytes,
    kv_layer_bytes,
    kv_row_bytes,
    kv_type_misfit,
    value_padding_bytes,
    windowed_cells,
)
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import PlanRequest

__all__ = [
    "PIPELINE_COPIES", "DeviceUsage", "FormulaMemory", "MemoryModel", "Usage", "compute_bytes", "kv_bytes",
    "kv_layer_bytes", "kv_row_bytes", "kv_type_misfit", "mask_bytes", "output_bytes", "pipeline_bytes",
    "staging_bytes", "windowed_cells",
]  # fmt: skip


@dataclass(frozen=True)
class DeviceUsage:
    """What llama.cpp allocates on one device, in bytes."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """All three."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True)
class Usage:
    """devices: in the machine's order. source: "engine" when llama.cpp itself gave every figure."""

    devices: tuple[DeviceUsage, ...]
    host: DeviceUsage
    source: Literal["engine", "estimate"]


class MemoryModel(Protocol):
    """Answers how many bytes a placement takes on each device."""

    def usage(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> Usage:
        """Return the bytes per device of `placement`, one record per device of the placement, plus the host."""
        ...


@dataclass(frozen=True)
class FormulaMemory:
    """Weights from the tensor table, KV and compute by formula.

    kv_total_bytes: the engine's own total for this model and request, if it was asked; where the formula gives another
    total, layers share the difference as they share the formula's. host_compute_bytes: the engine's own compute buffer
    with every layer on the CPU; it bounds the formula from both sides. cuda: see `graph.compute_bytes`; False also for
    devices that do not stage host weights.
    """

    kv_total_bytes: int | None = None
    host_compute_bytes: int | None = None
    cuda: bool = True

    def usage(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> Usage:
        """See `MemoryModel.usage`. Host compute is the CPU's own buffer and the rows of logits."""
        compute = self._compute(model, request, placement) + pipeline_bytes(model, request, placement)[0]
        staging = staging_bytes(model, placement) if self.cuda else 0
        devices = []
        for device in range(placement.n_devices):
            layers = placement.layers_on(device)
            # The first GPU computes prompts for weights on the host, even if it holds no layer itself.
            helps = device == 0 and staging > 0 and placement.n_gpu_layers > 0
            busy = bool(layers) or placement.output_device == device or helps
            weights = _device_weights(model, placement, device)
            kv = self._kv(model, request, layers)
            devices.append(DeviceUsage(weights, kv, compute + staging if busy else 0))
        return Usage(tuple(devices), self._host(model, request, placement), "estimate")

    def _compute(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> int:
        role: Role = "gpu" if placement.strategy == "full" else "shared"
        formula = compute_bytes(model, request, role, cuda=self.cuda)
        if self.host_compute_bytes is None:
            return formula
        row = 4 * pass_tokens(request) * model.embedding_length
        copies = formula - compute_bytes(model, request, role, cuda=False)
        # A GPU alone was at most one and a quarter residual rows above the CPU in every dry run, one that works beside
        # the host up to three and a half, and gemma3n, with embeddings per layer, far more.
        above = 5 * row // 4 if role == "gpu" else 4 * row
        bounded = max(formula - copies, self.host_compute_bytes - 2 * row)
        if role == "gpu" or not model.per_layer_input_length:
            bounded = min(bounded, self.host_compute_bytes + above)
        return bounded + copies

    def _host(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> DeviceUsage:
        on_host = bool(placement.host_layers) or placement.output_device is None
        if not on_host and not placement.cpu_expert_layers:
            compute = inputs_bytes(model, request)
        else:
            compute = self.host_compute_bytes or compute_bytes(
                model, request, "host", output=placement.output_device is None
            )
        compute += pipeline_bytes(model, request, placement)[1] + output_bytes(model, request)
        weights = _host_weights(model, placement)
        return DeviceUsage(weights, self._kv(model, request, placement.host_layers), compute)

    def _kv(self, model: ModelInfo, request: PlanRequest, layers: range) -> int:
        held = [model.layers[index] for index in layers]
        by_formula = sum(kv_layer_bytes(x, request) + value_padding_bytes(model, x, request) for x in held)
        if self.kv_total_bytes is None:
            return by_formula
        whole = kv_bytes(model, request)
        if whole:
            return by_formula * self.kv_total_bytes // whole
        return self.kv_total_bytes * len(held) // len(model.layers)


def _device_weights(model: ModelInfo, placement: Placement, device: int) -> int:
    """Return the weights of a GPU, as it aligns them."""
    layers = [model.layers[index] for index in placement.layers_on(device)]
    weights = sum(layer.total_bytes + layer.padding_bytes for layer in layers)
    weights -= sum(layer.expert_bytes for layer in layers if placement.experts_on_host(layer.index))
    if _use_rope_factors(model, layers):
        weights += model.block_shared_bytes
    if placement.output_device == device:
        weights += model.output_bytes + model.output_padding_bytes
    return weights


def _host_weights(model: ModelInfo, placement: Placement) -> int:
    host = placement.host_layers
    weights = model.token_embedding_bytes
    weights += sum(model.layers[index].total_bytes for index in host)
    experts = (x for x in model.layers if x.index not in host and placement.experts_on_host(x.index))
    weights += sum(layer.expert_bytes for layer in experts)
    if _use_rope_factors(model, [model.layers[index] for index in host]):
        weights += model.block_shared_bytes
    if placement.output_device is None:
        shared = model.tied_embeddings and not model.tied_copy_on_host
        weights += model.output_norm_bytes if shared else model.output_bytes
    return weights


def _use_rope_factors(model: ModelInfo, layers: list[LayerInfo]) -> bool:
    """Tell whether these blocks need the factors all share; gemma4's windowed ones do not. Source: src/models/."""
    return any(layer.total_bytes and (model.architecture != "gemma4" or not layer.window_tokens) for layer in layers)
