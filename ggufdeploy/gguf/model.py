"""GGUF headers -> the facts a planner needs about a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerInfo:
    """One transformer block.

    dense_bytes: its tensors except routed experts; expert_bytes: its routed experts (`ffn_*_exps`).
    kv_heads is 0 for a block without a KV cache. key_length and value_length: elements per KV head.
    """

    index: int
    dense_bytes: int
    expert_bytes: int
    kv_heads: int
    key_length: int
    value_length: int

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
