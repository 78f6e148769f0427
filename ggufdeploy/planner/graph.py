"""Estimates of compute buffers: the largest moment of the graph of one pass, in closed form.

A moment is the attention mask plus a number of 32-bit values per token that a model's shape decides; it does not depend
on context, ubatch or (except for recurrent state) slots. The shapes below were derived from llama.cpp's graphs and
checked against its dry run; docs/memory-model.md has the table of how far they are off, and tests hold them above it.
"""

from __future__ import annotations

from typing import Literal

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.planner.kv import cells_per_stream, is_quantized, streams, windowed_cells
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.units import KIB

Role = Literal["gpu", "shared", "host"]
"""Who runs the graph: a GPU all of it, a GPU together with the host, or the host."""
_RESIDUAL_ROWS: dict[Role, int] = {"gpu": 3, "shared": 5, "host": 4}
"""Copies of the embedding's width that live at the peak: the residual, its norm, the block's input and output."""
_MORE_RESIDUAL_ROWS = {"gemma4": 2.5, "gemma3n": 6.0, "lfm2": 2.5, "lfm2moe": 2.5, "falcon-h1": 2.5}
"""Architectures that keep more: norms behind attention and feed-forward, several streams, a convolution's input."""
_SMALL_INPUTS_BYTES = 256 * KIB  # positions, row numbers, slots, and what alignment leaves between values

PIPELINE_COPIES = 4


def pass_tokens(request: PlanRequest) -> int:
    """Return the tokens of one pass; a pass is never longer than the context."""
    return min(request.n_ubatch, request.kv_cells)


def output_rows(request: PlanRequest) -> int:
    """Return how many rows of logits one pass can give."""
    return min(pass_tokens(request), request.slots if request.n_outputs is None else request.n_outputs)


def mask_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return bytes of the attention mask: f16 with flash attention, else f32; windows and indexers have their own.

    Source: llama.cpp src/llama-graph.cpp (build_attn_inp_kv, build_attn_inp_kv_iswa).
    """
    attending = [layer for layer in model.layers if layer.kv_heads]
    whole = cells_per_stream(request) if any(layer.window_tokens is None for layer in attending) else 0
    windowed = max((windowed_cells(layer, request) or 0 for layer in attending), default=0)
    if any(layer.indexer_length for layer in attending):
        whole *= 2
    return (2 if request.flash_attention else 4) * pass_tokens(request) * (whole + windowed)


def compute_bytes(
    model: ModelInfo, request: PlanRequest, role: Role = "gpu", *, cuda: bool = True, output: bool = True
) -> int:
    """Return an estimate of the compute buffer of a device that holds at least one layer.

    cuda: a GPU of its own, which copies a quantized KV cache to f16 layer by layer; llama.cpp's RPC device does not.
    output: it holds the output layer too. Source of the copy: llama.cpp ggml/src/ggml-cuda/fattn-common.cuh.
    """
    u, mask, attention = pass_tokens(request), mask_bytes(model, request), _attention_width(model, request, role)
    moment = mask + 4 * u * max(_feed_forward_width(model, request, role), attention, _recurrent_width(model, request))
    if not request.flash_attention:
        moment += mask + _scores_bytes(model, request)
    if any(layer.indexer_length for layer in model.layers):  # its scores and what is left of them after the top k
        moment += 8 * u * cells_per_stream(request)
    if model.per_layer_input_length and role == "shared":
        moment += _masks_again_bytes(model, request)
    if cuda and role != "host" and is_quantized(request.kv_type) and request.flash_attention:
        moment = max(moment, mask + _f16_copy_bytes(model, request) + 4 * u * attention)
    if output:
        moment = max(moment, _output_moment_bytes(model, request, role))
    return moment + _inputs_of_attention_bytes(model, request) + _SMALL_INPUTS_BYTES


def _output_moment_bytes(model: ModelInfo, request: PlanRequest, role: Role) -> int:
    """Logits beside the residual; when more rows than slots are asked for, the last block's values are still there."""
    rows = 14 if output_rows(request) > request.slots else _RESIDUAL_ROWS[role]
    logits = 4 * output_rows(request) * model.n_vocab
    return mask_bytes(model, request) + logits + 4 * pass_tokens(request) * model.embedding_length * rows


def _masks_again_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """gemma3n alternates between host and GPU in every block, and a windowed block gets its mask anew each time."""
    cells = [windowed_cells(layer, request) or 0 for layer in model.layers if layer.kv_heads]
    shared = sum(layer.kv_heads == 0 for layer in model.layers)
    return 2 * pass_tokens(request) * (sum(cells) + shared * max(cells, default=0)) * streams(request)


def _inputs_of_attention_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return what each kind of cache wants beside its mask.

    A quantized cache: rotation matrices of a head's size. Without flash attention: where each value goes, in 64 bits.
    Source: llama.cpp src/llama-kv-cache.cpp (build_input_k_rot, build_input_v_idxs).
    """
    attending = [layer for layer in model.layers if layer.kv_heads]
    kinds = {layer.window_tokens: layer for layer in attending}.values()
    total = 0
    if is_quantized(request.kv_type):
        total += sum(4 * (kind.key_length**2 + kind.value_length**2) for kind in kinds)
    if not request.flash_attention:
        widest = max((layer.kv_heads * layer.value_length for layer in attending), default=0)
        total += 8 * pass_tokens(request) * widest * len(kinds)
    return total


def _rows(model: ModelInfo, role: Role) -> float:
    return _RESIDUAL_ROWS[role] + _MORE_RESIDUAL_ROWS.get(model.architecture, 0.0)


def _feed_forward_width(model: ModelInfo, request: PlanRequest, role: Role) -> int:
    """Values per token while a feed-forward runs: gate, up and their product; for experts, those of each one used."""
    e, rows = model.embedding_length, _rows(model, role)
    latent = 1.5 if model.latent_key_length else 0.0
    dense = 3 * model.feed_forward_length + (min(rows, 4 + rows - _RESIDUAL_ROWS[role]) + latent) * e
    dense = max(dense + 2 * model.per_layer_input_length, 5 * model.per_layer_input_length + 2 * rows * e)
    if is_quantized(request.kv_type):  # the rotated queries of a block whose feed-forward runs beside its attention
        dense += model.n_heads * max((layer.key_length for layer in model.layers), default=0)
    if not model.n_experts or not model.expert_feed_forward_length:
        return int(dense)
    used, wide = model.n_experts_used, model.expert_feed_forward_length
    gathered = used * (2 * e + wide) + (rows + 0.5) * e  # what the experts used return, before it is summed
    return int(max(dense, 3 * used * wide + min(rows, 4) * e, gathered))


def _attention_width(model: ModelInfo, request: PlanRequest, role: Role) -> int:
    """Values per token around attention: queries and what they become, keys and values, the residual."""
    e, rows = model.embedding_length, _RESIDUAL_ROWS[role]
    attending = [layer for layer in model.layers if layer.kv_heads]
    if not attending:
        return 0
    longest = max(layer.key_length for layer in attending)
    own = max(layer.kv_heads * (layer.key_length + layer.value_length) for layer in attending)
    if model.latent_key_length:
        more = {"gpu": 3, "shared": 3, "host": 6}[role]
        return model.n_heads * (2 * longest + model.latent_key_length) + more * e
    queries = 3 if is_quantized(request.kv_type) else 2
    return queries * model.n_heads * longest + own + rows * e


def _recurrent_width(model: ModelInfo, request: PlanRequest) -> int:
    """Values per token in a recurrent block, with the states of all slots spread over the tokens of the pass."""
    shape = model.recurrence
    if shape is None:
        return 0
    e, inner, conv = model.embedding_length, shape.inner, shape.convolved
    memory = shape.kept * conv * 2
    if shape.kind == "rwkv":
        per_token, per_slot = 19 * e, 3.5 * shape.state
    elif shape.kind == "delta":
        per_token, per_slot = 3 * conv + inner + 2 * e, 2 * shape.state + memory
    elif shape.heads:
        per_token, per_slot = 4 * inner + 3 * conv + shape.heads + 3 * e, shape.state + memory
    else:
        per_token, per_slot = 6 * inner + 2 * e, shape.state + memory
    return int(per_token + per_slot * request.slots / pass_tokens(request)) + 1


def _scores_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Without flash attention: the scores of every head, token and cell in f32."""
    cells = max(
        (windowed_cells(x, request) or cells_per_stream(request) for x in model.layers if x.kv_heads), default=0
    )
    return 4 * pass_tokens(request) * cells * model.n_heads


def _f16_copy_bytes(model: ModelInfo, request: PlanRequest) -> int:
    def copied(layer: LayerInfo) -> int:
        cells = windowed_cells(layer, request) or cells_per_stream(request)
        return 2 * cells * layer.kv_heads * (layer.key_length + layer.value_length)

    return max(map(copied, model.layers), default=0)


def inputs_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return the host's buffer when every layer is elsewhere: the mask, the embeddings and their copy."""
    width = 2 * model.embedding_length + model.per_layer_input_length
    attention = mask_bytes(model, request) + _inputs_of_attention_bytes(model, request)
    return attention + 4 * pass_tokens(request) * width + _SMALL_INPUTS_BYTES


def output_bytes(model: ModelInfo, request: PlanRequest) -> int:
    """Return the host buffer for rows of logits: one per slot, and more once a pass gives more.

    llama.cpp's own account leaves it out. Source: llama.cpp src/llama-context.cpp (output_reserve).
    """
    return 4 * model.n_vocab * max(request.slots, output_rows(request))


def staging_bytes(model: ModelInfo, placement: Placement) -> int:
    """Return the extra compute buffer of a GPU when weights stay on the host.

    Prompts of 32 tokens or more run on the GPU even for host layers and host experts: their weights are copied into the
    compute buffer, one operation at a time. Source: llama.cpp ggml/src/ggml-backend.cpp and ggml-cuda.cu
    (GGML_OP_OFFLOAD_MIN_BATCH). llama.cpp's RPC device does not do this.
    """
    host = placement.host_layers
    copied = (x for x in model.layers if x.index in host or (x.expert_bytes and placement.experts_on_host(x.index)))
    return max((layer.largest_host_copy_bytes for layer in copied), default=0)


def pipeline_bytes(model: ModelInfo, request: PlanRequest, placement: Placement) -> tuple[int, int]:
    """Return what a second GPU adds to the compute buffers (of each GPU, of the host) when no weight is on the host.

    Batches then overlap, so what is handed over exists PIPELINE_COPIES times: the mask and the embeddings, and between
    GPUs the residual beside the activations. Source: llama.cpp src/llama-context.cpp (pipeline_parallel) and
    ggml/src/ggml-backend.cpp (GGML_SCHED_MAX_COPIES); its own figures for two devices.
    """
    if placement.n_devices < 2 or placement.strategy != "full":
        return 0, 0
    mask = mask_bytes(model, request)
    activations = 4 * pass_tokens(request) * model.embedding_length
    more = PIPELINE_COPIES - 1
    return more * mask + (2 * PIPELINE_COPIES - 1) * activations, more * (mask + activations)
