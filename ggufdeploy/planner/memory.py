"""Bytes per device for a placement. Formulas here shortlist; the engine's own figures replace them (law 1).

A `MemoryModel` answers one question. `FormulaMemory` computes; the engine's dry run implements the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import KvType, PlanRequest, kv_cells
from ggufdeploy.units import MIB

# (bytes, elements) of one block. Source: llama.cpp ggml/src/ggml-common.h.
_KV_BLOCK: dict[str, tuple[int, int]] = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}


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


def kv_row_bytes(layer: LayerInfo, kv_type: KvType) -> int:
    """Return bytes of one KV cell of one layer, keys and values. Source: llama.cpp src/llama-kv-cache.cpp."""
    block_bytes, block_elements = _KV_BLOCK[kv_type]
    return layer.kv_heads * (layer.key_length + layer.value_length) * block_bytes // block_elements


def kv_type_misfit(model: ModelInfo, kv_type: KvType) -> int | None:
    """Return a head size that this KV type's blocks do not divide, which llama.cpp refuses; None when all are fine.

    Source: llama.cpp src/llama-context.cpp (llama_init_from_model).
    """
    elements = _KV_BLOCK[kv_type][1]
    sizes = (size for layer in model.layers if layer.kv_heads for size in (layer.key_length, layer.value_length))
    return next((size for size in sizes if size % elements), None)


def kv_layer_bytes(layer: LayerInfo, request: PlanRequest) -> int:
    """Return bytes of one layer's KV cache; a sliding window keeps a window per slot and what one pass adds.

    Source: llama.cpp src/llama-kv-cache-iswa.cpp.
    """
    cells = windowed_cells(layer, request) or request.kv_cells
    return cells * kv_row_bytes(layer, request.kv_type)


def windowed_cells(layer: LayerInfo, request: PlanRequest) -> int | None:
    """Return the cells of a layer with a sliding window, None for one that keeps the whole context."""
    if layer.window_tokens is None:
        return None
    return min(request.kv_cells, kv_cells(layer.window_tokens * request.slots + request.n_ubatch))


def kv_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return bytes of the whole KV cache."""
    return sum(kv_layer_bytes(layer, request) for layer in model.layers)


def mask_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return bytes of the attention mask in f16; windowed layers have one of their own.

    Source: llama.cpp src/llama-graph.cpp (build_attn_inp_kv, build_attn_inp_kv_iswa).
    """
    cells = request.kv_cells + max((windowed_cells(layer, request) or 0 for layer in model.layers), default=0)
    return 2 * min(request.n_ubatch, request.kv_cells) * cells


def compute_bytes(model: ModelInfo, request: PlanRequest, *, k: int = 3) -> int:
    """Return an estimate of the compute buffer of a device that holds at least one layer, with flash attention.

    k: activation rows of the embedding's width alive at the peak; 3 on CUDA, 4 on the CPU. Within -13..+10 % of 27
    published CUDA load logs. Source: derived from llama.cpp src/llama-graph.cpp; see docs/memory-model.md.
    """
    u, e, ff = min(request.n_ubatch, request.kv_cells), model.embedding_length, model.feed_forward_length
    mask = mask_bytes(model, request)
    widest = max((layer.kv_heads * (layer.key_length + layer.value_length) for layer in model.layers), default=0)
    f16_copy = 0 if request.kv_type in ("f16", "bf16", "f32") else 2 * request.kv_cells * widest
    if model.n_experts and model.expert_feed_forward_length:
        used, wide = model.n_experts_used, model.expert_feed_forward_length
        width = max(3 * used * wide + k * e, used * (2 * e + wide) + 3 * e)
    else:
        width = 3 * ff + k * e
    head = max((layer.key_length for layer in model.layers), default=0)
    feed_forward = mask + 4 * u * width
    attention = mask + f16_copy + 4 * u * (2 * model.n_heads * head + 2 * e)
    output = 4 * request.slots * model.n_vocab + 8 * u * e
    return max(feed_forward, attention, output)


def output_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return the host buffer for a row of logits per slot. Source: llama.cpp src/llama-context.cpp (output_reserve)."""
    return 4 * model.n_vocab * request.slots


def staging_bytes(model: ModelInfo, placement: Placement) -> int:
    """Return the extra compute buffer of a GPU when weights stay on the host.

    Prompts of 32 tokens or more run on the GPU even for host layers and host experts: their weights are copied into the
    compute buffer, one operation at a time. Source: llama.cpp ggml/src/ggml-backend.cpp and ggml-cuda.cu
    (GGML_OP_OFFLOAD_MIN_BATCH).
    """
    host = placement.host_layers
    copied = (x for x in model.layers if x.index in host or (x.expert_bytes and placement.experts_on_host(x.index)))
    return max((layer.largest_host_copy_bytes for layer in copied), default=0)


PIPELINE_COPIES = 4


def pipeline_bytes(model: ModelInfo, request: PlanRequest, placement: Placement) -> tuple[int, int]:
    """Return what a second GPU adds to the compute buffers (of each GPU, of the host) when no weight is on the host.

    Batches then overlap, so what is handed over exists PIPELINE_COPIES times: the mask and the embeddings, and between
    GPUs the residual beside the activations. Source: llama.cpp src/llama-context.cpp (pipeline_parallel) and
    ggml/src/ggml-backend.cpp (GGML_SCHED_MAX_COPIES); its own figures for two devices.
    """
    if placement.n_devices < 2 or placement.strategy != "full":
        return 0, 0
    mask = mask_bytes(model, request)
    activations = 4 * min(request.n_ubatch, request.kv_cells) * model.embedding_length
    more = PIPELINE_COPIES - 1
    return more * mask + (2 * PIPELINE_COPIES - 1) * activations, more * (mask + activations)


@dataclass(frozen=True)
class FormulaMemory:
    """Weights from the tensor table, KV and compute by formula.

    kv_total_bytes: the engine's own total for this model and request, if it was asked. What the formula lacks of it is
    the state of recurrent layers, and they share it evenly; without such layers all share it in proportion.
    """

    kv_total_bytes: int | None = None

    def usage(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> Usage:
        """See `MemoryModel.usage`. Host compute is the CPU's own buffer."""
        devices = []
        compute = compute_bytes(model, request) + pipeline_bytes(model, request, placement)[0]
        staging = staging_bytes(model, placement)
        compute += staging
        for device in range(placement.n_devices):
            layers = placement.layers_on(device)
            weights = sum(model.layers[index].total_bytes for index in layers)
            weights -= sum(model.layers[index].expert_bytes for index in layers if placement.experts_on_host(index))
            if placement.output_device == device:
                weights += model.output_bytes
            # The first GPU computes prompts for weights on the host, even if it holds no layer itself.
            helps = device == 0 and staging > 0 and placement.n_gpu_layers > 0
            busy = bool(layers) or placement.output_device == device or helps
            devices.append(DeviceUsage(weights, self._kv(model, request, layers), compute if busy else 0))
        return Usage(tuple(devices), self._host(model, request, placement), "estimate")

    def _host(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> DeviceUsage:
        weights = model.token_embedding_bytes
        weights += sum(model.layers[index].total_bytes for index in placement.host_layers)
        weights += sum(
            layer.expert_bytes
            for layer in model.layers
            if layer.index not in placement.host_layers and placement.experts_on_host(layer.index)
        )
        if placement.output_device is None and not model.tied_embeddings:
            weights += model.output_bytes
        on_host = bool(placement.host_layers) or placement.output_device is None
        compute = compute_bytes(model, request, k=4) if on_host else 16 * MIB + mask_bytes(model, request)
        compute += pipeline_bytes(model, request, placement)[1] + output_bytes(model, request)
        return DeviceUsage(weights, self._kv(model, request, placement.host_layers), compute)

    def _kv(self, model: ModelInfo, request: PlanRequest, layers: range) -> int:
        by_formula = sum(kv_layer_bytes(model.layers[index], request) for index in layers)
        if self.kv_total_bytes is None:
            return by_formula
        whole = kv_bytes(model, request)
        state, n_with_state = self.kv_total_bytes - whole, sum(layer.kv_heads == 0 for layer in model.layers)
        if state >= 0 and n_with_state:
            return by_formula + state * sum(model.layers[index].kv_heads == 0 for index in layers) // n_with_state
        return by_formula * self.kv_total_bytes // whole if whole else 0
