"""GGUF headers -> the facts a planner needs about a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ggufdeploy.gguf.attention import KvShape, kv_shapes, trunk_blocks
from ggufdeploy.gguf.keys import Keys, model_keys
from ggufdeploy.gguf.reader import Header, SkippedArray, TensorInfo
from ggufdeploy.gguf.recurrent import Recurrence, recurrence
from ggufdeploy.gguf.shards import merge_shards

_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps")
"""The tensors llama.cpp's own --cpu-moe moves. Source: llama.cpp common/common.h."""
_FEED_FORWARD = re.compile(r"\.ffn_(?:up|down|gate|gate_up)\.")
_INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
"""Source: llama.cpp src/llama-arch.cpp, LLM_TENSOR_LAYER_INPUT."""
_FIRST_BLOCK = ("token_embd_norm.", "per_layer_model_proj.", "per_layer_proj_norm.")
"""Created with block number 0, so they live where block 0 does. Source: llama.cpp src/models/."""
_OUTPUT_NORM_LFM2 = ("lfm2", "lfm2moe")  # there token_embd_norm is the output's: LLM_TENSOR_OUTPUT_NORM_LFM2
_WITH_EVERY_BLOCK = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
"""Copied to each device that holds a block (TENSOR_DUPLICATED)."""
_OUTPUT_BEFORE_INPUT = ("gemma3n", "gemma4")
"""They create the tied output before the embedding, so that it is a second copy even on the same device."""
_ALIGNMENT = 32  # of a tensor in a host buffer. Source: llama.cpp ggml/src/ggml-impl.h, TENSOR_ALIGNMENT
_GPU_ALIGNMENT, _GPU_ROW = 128, 512  # source: llama.cpp ggml/src/ggml-cuda/ggml-cuda.cu (get_alloc_size)


@dataclass(frozen=True)
class LayerInfo:
    """One transformer block.

    dense_bytes: its tensors except routed experts; expert_bytes: its routed experts (`ffn_*_exps`).
    kv_heads is 0 for a block without a KV cache. key_length and value_length: elements per KV head.
    largest_host_copy_bytes: what a GPU must hold to run this block's feed-forward while its weights stay in RAM: the
    largest routed-expert tensor, or for a dense block all its feed-forward matrices.
    window_tokens: the block keeps KV only for its sliding window; None: for the whole context.
    indexer_length: elements of a sparse-attention indexer's key per token. state_elements: 32-bit numbers of a
    recurrent state per slot. padding_bytes: what a GPU's alignment adds to the block at most. Bytes are those of host
    buffers, every tensor padded to 32; a block the engine does not load (multi-token prediction) has none.
    """

    index: int
    dense_bytes: int
    expert_bytes: int
    kv_heads: int
    key_length: int
    value_length: int
    largest_host_copy_bytes: int
    window_tokens: int | None = None
    indexer_length: int = 0
    state_elements: int = 0
    padding_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All tensors of the block."""
        return self.dense_bytes + self.expert_bytes


@dataclass(frozen=True)
class ModelInfo:
    """One model at one quantization, from the headers of all its shards.

    n_layers: `block_count`; llama.cpp's `n_gpu_layers` counts one more, the output layer.
    token_embedding_bytes stays in system RAM always. output_bytes: output norm and output matrix; with tied
    embeddings the token embedding once more, because llama.cpp copies it to the output's device.
    total_bytes: tensor bytes in the file (a tied output counts once). None: the header does not say.
    output_norm_bytes: what of output_bytes is not the copy of a tied embedding. block_shared_bytes: rope factors, held
    by every device that holds a block. tied_copy_on_host: a tied output is a copy also where the embedding lies.
    latent_key_length: elements per head of a query in multi-head latent attention. per_layer_input_length: elements of
    all blocks' own input embeddings per token.
    """

    architecture: str
    name: str | None
    n_params: int
    n_layers: int
    embedding_length: int
    feed_forward_length: int
    expert_feed_forward_length: int | None
    n_heads: int
    n_experts: int
    n_experts_used: int
    n_vocab: int
    context_train_tokens: int | None
    sliding_window_tokens: int | None
    tied_embeddings: bool
    token_embedding_bytes: int
    output_bytes: int
    layers: tuple[LayerInfo, ...]
    total_bytes: int
    n_tensors: int
    file_type: int | None
    chat_template: str | None
    output_norm_bytes: int = 0
    output_padding_bytes: int = 0
    block_shared_bytes: int = 0
    tied_copy_on_host: bool = False
    latent_key_length: int | None = None
    per_layer_input_length: int = 0
    recurrence: Recurrence | None = None


def model_info(headers: Sequence[Header]) -> ModelInfo:
    """Merge the headers of all shards, in order, into what a planner needs.

    Raises BadGguf when a shard is missing or out of order, when keys are missing or absurd, and for GGUF files that are
    not models: projectors, adapters, importance matrices, vocabularies. Source of the defaults: llama.cpp
    src/llama-model.cpp (load_hparams).
    """
    tensors = merge_shards(headers)
    keys = model_keys(headers[0])
    n_layers = keys.required("block_count")
    n_experts = keys.number("expert_count") or 0
    parts = _sort_tensors(keys, tensors, n_layers)
    trunk = trunk_blocks(keys, n_layers)
    shapes = kv_shapes(keys, n_layers)
    layers = tuple(_layer(i, parts.blocks[i] if i < trunk else (), shapes[i]) for i in range(n_layers))
    tied = "output.weight" not in tensors
    copied = (tensors["token_embd.weight"],) if tied else ()
    file_type = headers[0].metadata.get("general.file_type")
    return ModelInfo(
        architecture=keys.architecture,
        name=keys.text("general.name"),
        n_params=sum(math.prod(t.shape) for t in tensors.values()),
        n_layers=n_layers,
        embedding_length=keys.required("embedding_length"),
        feed_forward_length=_largest(keys, "feed_forward_length", n_layers) or 0,
        expert_feed_forward_length=_expert_width(keys, tensors, n_layers) if n_experts else None,
        n_heads=_largest(keys, "attention.head_count", n_layers) or 0,
        n_experts=n_experts,
        n_experts_used=_largest(keys, "expert_used_count", n_layers) or 0,
        n_vocab=_vocabulary_size(keys, tensors),
        context_train_tokens=keys.number("context_length"),
        sliding_window_tokens=next((s.window_tokens for s in shapes if s.window_tokens), None),
        tied_embeddings=tied,
        token_embedding_bytes=_held(parts.input),
        output_bytes=_held((*parts.output, *copied)),
        layers=layers,
        total_bytes=sum(t.n_bytes for t in tensors.values()),
        n_tensors=len(tensors),
        file_type=file_type if isinstance(file_type, int) else None,
        chat_template=keys.text("tokenizer.chat_template"),
        output_norm_bytes=_held(parts.output) if tied else 0,
        output_padding_bytes=_gpu_padding((*parts.output, *copied)),
        block_shared_bytes=_held(parts.with_every_block),
        tied_copy_on_host=tied and keys.architecture in _OUTPUT_BEFORE_INPUT,
        latent_key_length=keys.number("attention.key_length_mla"),
        recurrence=recurrence(keys),
        per_layer_input_length=(keys.number("embedding_length_per_layer_input") or 0) * n_layers,
    )


@dataclass
class _Parts:
    """A model's tensors by where they live."""

    blocks: list[list[TensorInfo]]
    input: list[TensorInfo] = field(default_factory=list)
    output: list[TensorInfo] = field(default_factory=list)
    with_every_block: list[TensorInfo] = field(default_factory=list)

    def place(self, architecture: str, tensor: TensorInfo) -> None:
        """Add a tensor that names no block."""
        if tensor.name.startswith(_INPUT):
            self.input.append(tensor)
        elif tensor.name.startswith(_WITH_EVERY_BLOCK):
            self.with_every_block.append(tensor)
        elif tensor.name.startswith(_FIRST_BLOCK) and architecture not in _OUTPUT_NORM_LFM2:
            self.blocks[0].append(tensor)
        else:
            self.output.append(tensor)


def _sort_tensors(keys: Keys, tensors: Mapping[str, TensorInfo], n_layers: int) -> _Parts:
    if "token_embd.weight" not in tensors:
        keys.fail(
            "it has no token embedding (token_embd.weight)" if tensors else "it has no tensors, only a vocabulary"
        )
    parts = _Parts([[] for _ in range(n_layers)])
    for name, tensor in tensors.items():
        match = _BLOCK.search(name)
        if match is None:
            parts.place(keys.architecture, tensor)
        elif int(match[1]) >= n_layers:
            keys.fail(f"tensor {name!r} belongs to a block beyond its block_count of {n_layers}")
        else:
            parts.blocks[int(match[1])].append(tensor)
    return parts


def _held(tensors: Iterable[TensorInfo]) -> int:
    """Return bytes in a host buffer."""
    return sum(_padded(t.n_bytes, _ALIGNMENT) for t in tensors)


def _gpu_padding(tensors: Iterable[TensorInfo]) -> int:
    """Return what a GPU needs more: larger alignment, and quantized rows filled up to whole groups of 512."""
    return sum(_padded(t.n_bytes + _row_tail(t), _GPU_ALIGNMENT) - _padded(t.n_bytes, _ALIGNMENT) for t in tensors)


def _row_tail(tensor: TensorInfo) -> int:
    missing = -tensor.shape[0] % _GPU_ROW if tensor.shape and tensor.type.block_elements > 1 else 0
    return missing // tensor.type.block_elements * tensor.type.block_bytes


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _layer(index: int, tensors: Sequence[TensorInfo], kv: KvShape) -> LayerInfo:
    experts = [t for t in tensors if _EXPERTS.search(t.name)]
    feed_forward = sum(t.n_bytes for t in tensors if _FEED_FORWARD.search(t.name) and len(t.shape) > 1)
    expert_bytes = _held(experts)
    return LayerInfo(
        index=index,
        dense_bytes=_held(tensors) - expert_bytes,
        expert_bytes=expert_bytes,
        kv_heads=kv.heads,
        key_length=kv.key_length,
        value_length=kv.value_length,
        largest_host_copy_bytes=max((t.n_bytes for t in experts), default=feed_forward),
        window_tokens=kv.window_tokens,
        indexer_length=kv.indexer_length,
        state_elements=kv.state_elements,
        padding_bytes=_gpu_padding(tensors),
    )


def _largest(keys: Keys, name: str, n_layers: int) -> int | None:
    values = keys.per_block(name, n_layers)
    return None if values is None else max(values)


def _expert_width(keys: Keys, tensors: Mapping[str, TensorInfo], n_layers: int) -> int | None:
    """Models from before the key (Mixtral) give the experts' width as feed_forward_length."""
    width = _largest(keys, "expert_feed_forward_length", n_layers)
    return _largest(keys, "feed_forward_length", n_layers) if width is None else width


def _vocabulary_size(keys: Keys, tensors: Mapping[str, TensorInfo]) -> int:
    """Return the tokenizer's size, else `vocab_size`, else the rows of the token embedding."""
    tokens = keys.header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, SkippedArray):
        return tokens.length
    size = keys.number("vocab_size")
    return size if size is not None else math.prod(tensors["token_embd.weight"].shape[1:])
