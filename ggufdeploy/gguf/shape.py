"""A model's shape from the first 64 KiB of a file: enough to shortlist before any whole header is read.

Converters write the architecture's keys before the vocabulary, which makes up nearly all of a header: at offsets of 372
to 1,522 bytes in all of twenty published files. That is their habit, not the specification, so a prefix without the
keys is a reason to read the whole header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggufdeploy.gguf.attention import KvShape, kv_shapes
from ggufdeploy.gguf.keys import Keys, model_keys
from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.gguf.reader import HeaderPrefix, SkippedArray
from ggufdeploy.gguf.recurrent import recurrence

PREFIX_BYTES = 64 << 10

_NEEDED = ("block_count", "embedding_length")
_TOKENS = "tokenizer.ggml.tokens"
_TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "command-r", "cohere2", "openelm"})
"""Architectures published without an output matrix of their own. Source: their files in llama.cpp src/models/."""
_UNGATED = frozenset(
    {
        "arcee", "bloom", "codeshell", "falcon", "gpt2", "gptneox", "jais2", "mpt", "nemotron", "phi2", "plm",
        "starcoder", "starcoder2",
    }
)  # fmt: skip
"""Architectures whose feed-forward has two matrices instead of three: LLM_FFN_SEQ without SwiGLU in the same files."""


@dataclass(frozen=True)
class _BlockParams:
    """Weights of one block; norms and biases are left out. feed_forward: the part of `dense` beside the attention."""

    dense: int
    experts: int
    feed_forward: int

    @property
    def total(self) -> int:
        return self.dense + self.experts


def estimate_info(prefix: HeaderPrefix, total_bytes: int, n_params: int | None = None) -> ModelInfo | None:
    """Return the model as it should be with `total_bytes` of weights, spread over its matrices by their elements.

    KV heads, windows, experts and widths are the file's own; how many bytes each tensor takes is not known yet, so
    every element counts alike. n_params: the model's, where known; it tells whether the output matrix is a tensor of
    its own, which the keys do not say. None when the prefix ends before all keys of the architecture are surely there.
    Raises BadGguf for keys that are wrong or absurd, and for files that are not models.
    """
    if not _suffices(prefix.metadata, complete=prefix.complete):
        return None
    keys = model_keys(prefix)
    n_layers, embedding = keys.required("block_count"), keys.required("embedding_length")
    shapes = kv_shapes(keys, n_layers)
    blocks = _blocks(keys, shapes)
    n_vocab = _vocabulary_size(keys)
    matrix = n_vocab * embedding
    once = sum(block.total for block in blocks) + matrix
    tied = keys.architecture in _TIED if n_params is None else n_params < once + matrix // 2
    counted = max(once if tied else once + matrix, 1)

    def n_bytes(elements: int) -> int:
        return elements * total_bytes // counted

    n_experts = keys.number("expert_count") or 0
    feed_forward = _per_block(keys, "feed_forward_length", n_layers)
    return ModelInfo(
        architecture=keys.architecture,
        name=keys.text("general.name"),
        n_params=n_params or counted,
        n_layers=n_layers,
        embedding_length=embedding,
        feed_forward_length=max(feed_forward),
        expert_feed_forward_length=max(_expert_widths(keys, n_layers)) if n_experts else None,
        n_heads=max(_per_block(keys, "attention.head_count", n_layers)),
        n_experts=n_experts,
        n_experts_used=max(_per_block(keys, "expert_used_count", n_layers)),
        n_vocab=n_vocab,
        context_train_tokens=keys.number("context_length"),
        sliding_window_tokens=next((shape.window_tokens for shape in shapes if shape.window_tokens), None),
        tied_embeddings=tied,
        token_embedding_bytes=n_bytes(matrix),
        output_bytes=n_bytes(matrix),
        layers=tuple(
            LayerInfo(
                index=index,
                dense_bytes=n_bytes(block.dense),
                expert_bytes=n_bytes(block.experts),
                kv_heads=shape.heads,
                key_length=shape.key_length,
                value_length=shape.value_length,
                largest_host_copy_bytes=n_bytes(block.experts // 3 or block.feed_forward),
                window_tokens=shape.window_tokens,
                indexer_length=shape.indexer_length,
                state_elements=shape.state_elements,
            )
            for index, (block, shape) in enumerate(zip(blocks, shapes, strict=True))
        ),
        total_bytes=total_bytes,
        n_tensors=prefix.n_tensors,
        file_type=None,
        chat_template=None,
        latent_key_length=keys.number("attention.key_length_mla"),
        per_layer_input_length=(keys.number("embedding_length_per_layer_input") or 0) * n_layers,
        recurrence=recurrence(keys),
    )


def _suffices(metadata: Mapping[str, object], *, complete: bool) -> bool:
    """Tell whether the architecture's keys are behind us: all pairs were read, or the vocabulary has begun."""
    architecture = metadata.get("general.architecture")
    known = complete or any(key.startswith("tokenizer.") for key in metadata)
    sized = _TOKENS in metadata or f"{architecture}.vocab_size" in metadata
    return known and sized and all(f"{architecture}.{name}" in metadata for name in _NEEDED)


def _vocabulary_size(keys: Keys) -> int:
    tokens = keys.header.metadata.get(_TOKENS)
    return tokens.length if isinstance(tokens, SkippedArray) else keys.required("vocab_size")


def _per_block(keys: Keys, name: str, n_layers: int) -> tuple[int, ...]:
    return keys.per_block(name, n_layers) or (0,) * n_layers


def _expert_widths(keys: Keys, n_layers: int) -> tuple[int, ...]:
    """Return the experts' widths; Mixtral and its like give them as feed_forward_length."""
    widths = keys.per_block("expert_feed_forward_length", n_layers)
    return _per_block(keys, "feed_forward_length", n_layers) if widths is None else widths


def _blocks(keys: Keys, shapes: Sequence[KvShape]) -> list[_BlockParams]:
    n_layers, embedding = len(shapes), keys.required("embedding_length")
    matrices = 2 if keys.architecture in _UNGATED else 3
    wide, expert_wide = _per_block(keys, "feed_forward_length", n_layers), _expert_widths(keys, n_layers)
    experts, first = _per_block(keys, "expert_count", n_layers), keys.number("leading_dense_block_count") or 0
    every = keys.number("interleave_moe_layer_step") or 1
    shared = keys.number("expert_shared_feed_forward_length")
    n_shared = keys.number("expert_shared_count") or 0
    attention = _attention(keys, shapes)
    blocks = []
    for index in range(n_layers):
        mixture = experts[index] if index >= first and (index + 1) % every == 0 else 0
        if mixture:
            beside = shared if shared is not None else n_shared * expert_wide[index]
            routed = mixture * matrices * embedding * expert_wide[index]
        else:
            beside, routed = wide[index], 0
        feed_forward = matrices * embedding * beside
        blocks.append(_BlockParams(attention[index] + feed_forward + mixture * embedding, routed, feed_forward))
    return blocks


def _attention(keys: Keys, shapes: Sequence[KvShape]) -> list[int]:
    """Return the weights of each block's attention; a recurrent block counts as if it had the queries and the output.

    Source of the low-rank form: llama.cpp src/models/deepseek2.cpp.
    """
    embedding = keys.required("embedding_length")
    heads = _per_block(keys, "attention.head_count", len(shapes))
    key, value = keys.number("attention.key_length_mla"), keys.number("attention.value_length_mla")
    rank, query_rank = keys.number("attention.kv_lora_rank"), keys.number("attention.q_lora_rank")
    if key is None or value is None or rank is None:
        return [
            embedding
            * (heads[index] * (kv.key_length + kv.value_length) + kv.heads * (kv.key_length + kv.value_length))
            for index, kv in enumerate(shapes)
        ]
    rotated = keys.number("rope.dimension_count") or 0
    result = []
    for n in heads:
        query = query_rank * (embedding + n * key) if query_rank else embedding * n * key
        compressed = embedding * (rank + rotated) + rank * n * (max(key - rotated, 0) + value)
        result.append(query + compressed + n * value * embedding)
    return result
