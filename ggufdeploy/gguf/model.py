"""GGUF headers -> the facts a planner needs about a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggufdeploy.gguf.attention import KvShape, kv_shapes
from ggufdeploy.gguf.keys import Keys, model_keys
from ggufdeploy.gguf.reader import Header, SkippedArray, TensorInfo
from ggufdeploy.gguf.shards import merge_shards

_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps")
"""The tensors llama.cpp's own --cpu-moe moves. Source: llama.cpp common/common.h."""
_FEED_FORWARD = re.compile(r"\.ffn_(?:up|down|gate|gate_up)\.")
_INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
"""Source: llama.cpp src/llama-arch.cpp, LLM_TENSOR_LAYER_INPUT."""


@dataclass(frozen=True)
class LayerInfo:
    """One transformer block.

    dense_bytes: its tensors except routed experts; expert_bytes: its routed experts (`ffn_*_exps`).
    kv_heads is 0 for a block without a KV cache. key_length and value_length: elements per KV head.
    largest_host_copy_bytes: what a GPU must hold to run this block's feed-forward while its weights stay in RAM: the
    largest routed-expert tensor, or for a dense block all its feed-forward matrices.
    window_tokens: the block keeps KV only for its sliding window; None: for the whole context.
    """

    index: int
    dense_bytes: int
    expert_bytes: int
    kv_heads: int
    key_length: int
    value_length: int
    largest_host_copy_bytes: int
    window_tokens: int | None = None

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
    blocks, token_embedding, output = _sort_tensors(keys, tensors, n_layers)
    shapes = kv_shapes(keys, n_layers)
    layers = tuple(_layer(index, blocks[index], shapes[index]) for index in range(n_layers))
    tied = "output.weight" not in tensors
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
        token_embedding_bytes=sum(t.n_bytes for t in token_embedding),
        output_bytes=sum(t.n_bytes for t in output) + (tensors["token_embd.weight"].n_bytes if tied else 0),
        layers=layers,
        total_bytes=sum(t.n_bytes for t in tensors.values()),
        n_tensors=len(tensors),
        file_type=file_type if isinstance(file_type, int) else None,
        chat_template=keys.text("tokenizer.chat_template"),
    )


def _sort_tensors(
    keys: Keys, tensors: Mapping[str, TensorInfo], n_layers: int
) -> tuple[list[list[TensorInfo]], list[TensorInfo], list[TensorInfo]]:
    """Return the tensors of each block, of the input and of the output (all that is neither)."""
    if "token_embd.weight" not in tensors:
        keys.fail(
            "it has no token embedding (token_embd.weight)" if tensors else "it has no tensors, only a vocabulary"
        )
    blocks: list[list[TensorInfo]] = [[] for _ in range(n_layers)]
    token_embedding: list[TensorInfo] = []
    output: list[TensorInfo] = []
    for name, tensor in tensors.items():
        match = _BLOCK.search(name)
        if match is None:
            (token_embedding if name.startswith(_INPUT) else output).append(tensor)
        elif int(match[1]) >= n_layers:
            keys.fail(f"tensor {name!r} belongs to a block beyond its block_count of {n_layers}")
        else:
            blocks[int(match[1])].append(tensor)
    return blocks, token_embedding, output


def _layer(index: int, tensors: Sequence[TensorInfo], kv: KvShape) -> LayerInfo:
    experts = [t.n_bytes for t in tensors if _EXPERTS.search(t.name)]
    feed_forward = sum(t.n_bytes for t in tensors if _FEED_FORWARD.search(t.name) and len(t.shape) > 1)
    return LayerInfo(
        index=index,
        dense_bytes=sum(t.n_bytes for t in tensors) - sum(experts),
        expert_bytes=sum(experts),
        kv_heads=kv.heads,
        key_length=kv.key_length,
        value_length=kv.value_length,
        largest_host_copy_bytes=max(experts, default=feed_forward),
        window_tokens=kv.window_tokens,
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
