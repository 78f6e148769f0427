"""Bytes of what is kept per token and per slot: KV cache, indexer keys, recurrent state. Equal to llama.cpp's own.

Source: llama.cpp src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp, src/llama-kv-cache-dsa.cpp and
src/llama-memory-recurrent.cpp. Not covered: the compressed caches of deepseek4, of which this is no estimate.
"""

from __future__ import annotations

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.planner.request import KvType, PlanRequest, kv_cells

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
_STATE_BYTES = 4  # recurrent states are f32 whatever the KV type. Source: llama.cpp src/llama-model.cpp (create_memory)


def is_quantized(kv_type: KvType) -> bool:
    """Tell whether the cache holds blocks with a scale instead of plain numbers."""
    return _KV_BLOCK[kv_type][1] > 1


def _bytes(elements: int, kv_type: KvType) -> int:
    block_bytes, block_elements = _KV_BLOCK[kv_type]
    return elements * block_bytes // block_elements


def kv_row_bytes(layer: LayerInfo, kv_type: KvType) -> int:
    """Return bytes of one KV cell of one layer, keys and values."""
    return _bytes(layer.kv_heads * (layer.key_length + layer.value_length), kv_type)


def kv_type_misfit(model: ModelInfo, kv_type: KvType) -> int | None:
    """Return a head size that this KV type's blocks do not divide, which llama.cpp refuses; None when all are fine.

    Source: llama.cpp src/llama-context.cpp (llama_init_from_model).
    """
    elements = _KV_BLOCK[kv_type][1]
    sizes = (size for layer in model.layers if layer.kv_heads for size in (layer.key_length, layer.value_length))
    return next((size for size in sizes if size % elements), None)


def streams(request: PlanRequest) -> int:
    """Return how many separate caches there are: one that all slots share, or one per slot."""
    return 1 if request.kv_unified else request.slots


def cells_per_stream(request: PlanRequest) -> int:
    """Return the cells of one stream; not unified, each slot's share is rounded up by itself."""
    return kv_cells(request.kv_cells // streams(request))


def windowed_cells(layer: LayerInfo, request: PlanRequest) -> int | None:
    """Return the cells per stream of a layer with a sliding window, None for one that keeps the whole context.

    It keeps a window per slot of its stream, and what one pass adds.
    """
    if layer.window_tokens is None:
        return None
    windows = layer.window_tokens * (request.slots if request.kv_unified else 1)
    return min(cells_per_stream(request), kv_cells(windows + request.n_ubatch))


def kv_layer_bytes(layer: LayerInfo, request: PlanRequest) -> int:
    """Return what one layer keeps: keys and values, an indexer's keys, and a recurrent state per slot."""
    cells = streams(request) * (windowed_cells(layer, request) or cells_per_stream(request))
    row = kv_row_bytes(layer, request.kv_type) + _bytes(layer.indexer_length, request.kv_type)
    return cells * row + _STATE_BYTES * layer.state_elements * request.slots


def value_padding_bytes(model: ModelInfo, layer: LayerInfo, request: PlanRequest) -> int:
    """Return what a layer's values take more without flash attention, when layers differ: all get the widest row."""
    if request.flash_attention or not layer.kv_heads or not layer.value_length:
        return 0
    widest = max(other.kv_heads * other.value_length for other in model.layers)
    cells = streams(request) * (windowed_cells(layer, request) or cells_per_stream(request))
    return cells * _bytes(widest - layer.kv_heads * layer.value_length, request.kv_type)


def kv_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return bytes of the whole KV cache and all recurrent state."""
    return sum(kv_layer_bytes(x, request) + value_padding_bytes(model, x, request) for x in model.layers)
