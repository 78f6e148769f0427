"""ModelInfo without the quantization's own header: scaled from a sibling's, or derived from a profile's facts.

Good enough to shortlist; what is finally chosen gets its own header whenever that can be read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggufdeploy.gguf.model import LayerInfo, ModelInfo


@dataclass(frozen=True)
class Shape:
    """A model's shape as a profile states it. n_active_params: read per token, None for a dense model."""

    architecture: str
    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    n_experts: int
    n_experts_used: int
    n_params: int
    n_active_params: int | None
    context_train_tokens: int | None


def scale(info: ModelInfo, total_bytes: int) -> ModelInfo:
    """Return `info` as it would be if all tensors together had total_bytes: every part in proportion."""

    def part(n_bytes: int) -> int:
        return n_bytes * total_bytes // info.total_bytes if info.total_bytes else 0

    layers = tuple(
        replace(
            layer,
            dense_bytes=part(layer.dense_bytes),
            expert_bytes=part(layer.expert_bytes),
            largest_host_copy_bytes=part(layer.largest_host_copy_bytes),
        )
        for layer in info.layers
    )
    return replace(
        info,
        layers=layers,
        token_embedding_bytes=part(info.token_embedding_bytes),
        output_bytes=part(info.output_bytes),
        total_bytes=total_bytes,
        file_type=None,
    )


def derive(shape: Shape, total_bytes: int, n_vocab: int = 32_768) -> ModelInfo:
    """Return an estimate from a profile: all weights in equal layers, experts by the share of active parameters.

    n_vocab: a profile does not state it; it moves only the small share of embedding and output.
    """
    embedding = shape.n_heads * shape.head_size
    per_layer_params = max(shape.n_params - 2 * n_vocab * embedding, 1) // shape.n_layers
    bytes_per_param = total_bytes / shape.n_params
    expert_params = 0
    if shape.n_experts > shape.n_experts_used and shape.n_active_params is not None:
        idle_share = 1 - shape.n_experts_used / shape.n_experts
        expert_params = int((shape.n_params - shape.n_active_params) / idle_share / shape.n_layers)
    attention = 2 * embedding * (shape.n_heads + shape.n_kv_heads) * shape.head_size
    wide = max(per_layer_params - attention, 0) if not expert_params else expert_params // shape.n_experts
    embed_bytes = int(n_vocab * embedding * bytes_per_param)
    layer_bytes = (total_bytes - 2 * embed_bytes) // shape.n_layers
    expert_bytes = int(expert_params * bytes_per_param)
    copy_bytes = expert_bytes // 3 if expert_bytes else layer_bytes * 2 // 3
    layers = tuple(
        LayerInfo(
            index=index,
            dense_bytes=layer_bytes - expert_bytes,
            expert_bytes=expert_bytes,
            kv_heads=shape.n_kv_heads,
            key_length=shape.head_size,
            value_length=shape.head_size,
            largest_host_copy_bytes=copy_bytes,
        )
        for index in range(shape.n_layers)
    )
    return ModelInfo(
        architecture=shape.architecture,
        name=shape.name,
        n_params=shape.n_params,
        n_layers=shape.n_layers,
        embedding_length=embedding,
        feed_forward_length=wide // (3 * embedding),
        expert_feed_forward_length=wide // (3 * embedding) if expert_params else None,
        n_heads=shape.n_heads,
        n_experts=shape.n_experts,
        n_experts_used=shape.n_experts_used,
        n_vocab=n_vocab,
        context_train_tokens=shape.context_train_tokens,
        sliding_window_tokens=None,
        tied_embeddings=False,
        token_embedding_bytes=embed_bytes,
        output_bytes=embed_bytes,
        layers=layers,
        total_bytes=total_bytes,
        n_tensors=0,
        file_type=None,
        chat_template=None,
    )
