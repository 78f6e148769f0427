"""Keys and tensors of the architectures llama.cpp knows, one function per architecture, at any size.

A `Blueprint` is what `gguf_writer.build_model` needs. Source of keys and tensors: llama.cpp src/llama-arch.cpp and
src/models/<architecture>.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.gguf_mix import MixContext
from tests.gguf_shapes import ModelShape, hyperparameters, tensors

Tensor = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Blueprint:
    """keys: without the architecture's prefix. trait: what it is in the zoo for. source: of the dimensions."""

    name: str
    architecture: str
    keys: dict[str, object]
    tensors: tuple[Tensor, ...]
    mix: MixContext
    trait: str
    source: str = "made up"
    quantization: str = "F16"
    n_vocab: int = 384


@dataclass(frozen=True)
class Size:
    """What nearly all architectures have in common."""

    layers: int
    e: int
    ff: int
    heads: int
    kv: int
    d: int
    vocab: int = 384
    context: int = 2048


def _blueprint(
    name: str,
    architecture: str,
    size: Size,
    blocks: Iterable[Iterable[Tensor]],
    trait: str,
    *,
    keys: Mapping[str, object] | None = None,
    outside: Iterable[Tensor] = (),
    tied: bool = False,
    source: str = "made up",
    quantization: str = "F16",
    n_experts: int = 0,
) -> Blueprint:
    """Add the common keys, the embedding and the output around the blocks' own tensors."""
    common: dict[str, object] = {
        "block_count": size.layers, "context_length": size.context, "embedding_length": size.e,
        "feed_forward_length": size.ff, "attention.head_count": size.heads, "attention.head_count_kv": size.kv,
        "attention.key_length": size.d, "attention.value_length": size.d,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0, "rope.dimension_count": size.d,
        "vocab_size": size.vocab,
    }  # fmt: skip
    if n_experts:
        common["expert_count"] = n_experts
    listed: list[Tensor] = [("token_embd.weight", (size.e, size.vocab))]
    if not tied:
        listed.append(("output.weight", (size.e, size.vocab)))
    listed += outside
    for index, block in enumerate(blocks):
        listed += [(f"blk.{index}.{suffix}", dims) for suffix, dims in block]
    everything = {**common, **(keys or {})}
    everything = {key: value for key, value in everything.items() if value is not None}
    mix = MixContext(size.layers, n_experts, max(size.heads // max(size.kv, 1), 1), tied)
    return Blueprint(name, architecture, everything, tuple(listed), mix, trait, source, quantization, size.vocab)


def from_shape(shape: ModelShape, trait: str, source: str = "made up", quantization: str = "F16") -> Blueprint:
    """Return a `ModelShape` (llama or gemma3) as a blueprint."""
    return Blueprint(
        shape.name, shape.architecture, dict(hyperparameters(shape)), tuple(tensors(shape)), shape.mix, trait, source,
        quantization, shape.n_vocab,
    )  # fmt: skip


def _weights(**dims: tuple[int, ...]) -> Iterator[Tensor]:
    for name, shape in dims.items():
        yield f"{name}.weight", shape


def _attention(s: Size, kv: int | None = None, d: int | None = None) -> Iterator[Tensor]:
    kv, d = s.kv if kv is None else kv, d or s.d
    yield from _weights(
        attn_q=(s.e, s.heads * d), attn_k=(s.e, kv * d), attn_v=(s.e, kv * d), attn_output=(s.heads * d, s.e)
    )


def _dense(e: int, ff: int) -> Iterator[Tensor]:
    yield from _weights(ffn_gate=(e, ff), ffn_up=(e, ff), ffn_down=(ff, e))


def _experts(e: int, ff: int, n: int) -> Iterator[Tensor]:
    yield from _weights(ffn_gate_inp=(e, n), ffn_gate_exps=(e, ff, n), ffn_up_exps=(e, ff, n), ffn_down_exps=(ff, e, n))


def _shared(e: int, ff: int) -> Iterator[Tensor]:
    yield from _weights(ffn_gate_shexp=(e, ff), ffn_up_shexp=(e, ff), ffn_down_shexp=(ff, e))


def _norms(e: int, *names: str) -> Iterator[Tensor]:
    for name in names:
        yield f"{name}.weight", (e,)


OUTPUT_NORM = "output_norm.weight"


def llama(name: str, size: Size, trait: str, *, tied: bool = False, **more: Any) -> Blueprint:
    """Llama: grouped, multi-query or plain multi-head attention by the number of KV heads."""
    block = [*_norms(size.e, "attn_norm", "ffn_norm"), *_attention(size), *_dense(size.e, size.ff)]
    return _blueprint(
        name, "llama", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (size.e,))], tied=tied, **more
    )


def qwen3moe(name: str, size: Size, expert_ff: int, n: int, used: int, trait: str, **more: Any) -> Blueprint:
    """Mixture of experts with Q and K norms."""
    block = [
        *_norms(size.e, "attn_norm", "ffn_norm"), *_attention(size), *_norms(size.d, "attn_q_norm", "attn_k_norm"),
        *_experts(size.e, expert_ff, n),
    ]  # fmt: skip
    return _blueprint(
        name, "qwen3moe", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (size.e,))], n_experts=n,
        keys={"expert_used_count": used, "expert_feed_forward_length": expert_ff}, **more,
    )  # fmt: skip


def qwen2moe(name: str, size: Size, expert_ff: int, shared_ff: int, n: int, used: int, trait: str) -> Blueprint:
    """Experts and a shared expert beside them; biases on Q, K and V."""
    kv = size.kv * size.d
    block = [
        *_norms(size.e, "attn_norm", "ffn_norm"), *_attention(size),
        ("attn_q.bias", (size.e,)), ("attn_k.bias", (kv,)), ("attn_v.bias", (kv,)),
        *_experts(size.e, expert_ff, n), ("ffn_gate_inp_shexp.weight", (size.e,)), *_shared(size.e, shared_ff),
    ]  # fmt: skip
    keys = {
        "expert_used_count": used, "expert_feed_forward_length": expert_ff,
        "expert_shared_feed_forward_length": shared_ff,
    }  # fmt: skip
    return _blueprint(
        name, "qwen2moe", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (size.e,))], n_experts=n, keys=keys
    )


def gpt_oss(name: str, size: Size, n: int, used: int, window: int, trait: str, **more: Any) -> Blueprint:
    """Every second block windowed, attention sinks, experts with biases."""
    e, ff, q, kv = size.e, size.ff, size.heads * size.d, size.kv * size.d
    block = [
        *_norms(e, "attn_norm", "post_attention_norm"), *_attention(size),
        ("attn_q.bias", (q,)), ("attn_k.bias", (kv,)), ("attn_v.bias", (kv,)), ("attn_output.bias", (e,)),
        ("attn_sinks.weight", (size.heads,)), *_experts(e, ff, n), ("ffn_gate_inp.bias", (n,)),
        ("ffn_gate_exps.bias", (ff, n)), ("ffn_up_exps.bias", (ff, n)), ("ffn_down_exps.bias", (e, n)),
    ]  # fmt: skip
    keys = {"expert_used_count": used, "expert_feed_forward_length": ff, "attention.sliding_window": window}
    return _blueprint(
        name, "gpt-oss", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (e,))], n_experts=n, keys=keys,
        **more,
    )  # fmt: skip


def deepseek2(
    name: str, size: Size, *, lora: tuple[int, int], nope: int, rope: int, v: int, expert_ff: int, n: int, used: int,
    dense_lead: int, trait: str, indexer: tuple[int, int] | None = None, **more: Any,
) -> Blueprint:  # fmt: skip
    """Multi-head latent attention (keys only, one head) and a shared expert. lora: ranks of Q and of KV.

    indexer: heads and key length of a sparse-attention indexer, which makes it a deepseek32.
    """
    e, h, (q_rank, kv_rank) = size.e, size.heads, lora
    latent = [
        *_norms(e, "attn_norm", "ffn_norm"), *_norms(q_rank, "attn_q_a_norm"), *_norms(kv_rank, "attn_kv_a_norm"),
        *_weights(
            attn_q_a=(e, q_rank), attn_q_b=(q_rank, h * (nope + rope)), attn_kv_a_mqa=(e, kv_rank + rope),
            attn_k_b=(nope, kv_rank, h), attn_v_b=(kv_rank, v, h), attn_output=(h * v, e),
        ),
    ]  # fmt: skip
    if indexer:
        heads, length = indexer
        latent += _weights(**{"indexer.k_norm": (length,), "indexer.proj": (e, heads), "indexer.attn_k": (e, length)})
        latent += [("indexer.k_norm.bias", (length,)), ("indexer.attn_q_b.weight", (q_rank, heads * length))]
    sparse = [*_experts(e, expert_ff, n), ("exp_probs_b.bias", (n,)), *_shared(e, expert_ff)]
    blocks = [latent + (list(_dense(e, size.ff)) if i < dense_lead else sparse) for i in range(size.layers)]
    keys = {
        "attention.head_count_kv": 1, "attention.q_lora_rank": q_rank, "attention.kv_lora_rank": kv_rank,
        "attention.key_length": kv_rank + rope, "attention.value_length": kv_rank,
        "attention.key_length_mla": nope + rope, "attention.value_length_mla": v, "rope.dimension_count": rope,
        "leading_dense_block_count": dense_lead, "expert_feed_forward_length": expert_ff, "expert_used_count": used,
        "expert_shared_count": 1, "expert_gating_func": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True,
    }  # fmt: skip
    if indexer:
        names = ("head_count", "key_length", "top_k")
        keys |= dict(zip([f"attention.indexer.{name}" for name in names], [*indexer, 64], strict=True))
    return _blueprint(
        name, "deepseek32" if indexer else "deepseek2", size, blocks, trait, outside=[(OUTPUT_NORM, (e,))], n_experts=n,
        keys=keys, **more,
    )  # fmt: skip


def _delta_net(e: int, state: int, k_heads: int, v_heads: int, conv: int, *, fused: bool) -> Iterator[Tensor]:
    key, value = state * k_heads, state * v_heads
    yield from _weights(
        attn_qkv=(e, 2 * key + value), attn_gate=(e, value), ssm_conv1d=(conv, 2 * key + value), ssm_norm=(state,),
        ssm_out=(value, e),
    )  # fmt: skip
    yield "ssm_dt.bias", (v_heads,)
    yield "ssm_a", (v_heads,)
    yield from _weights(ssm_ba=(e, 2 * v_heads)) if fused else _weights(ssm_beta=(e, v_heads), ssm_alpha=(e, v_heads))


def _gated_attention(size: Size) -> Iterator[Tensor]:
    """Qwen's full attention beside a delta net: the query has a gate of its own width."""
    yield from _weights(attn_q=(size.e, 2 * size.heads * size.d))
    yield from (tensor for tensor in _attention(size) if not tensor[0].startswith("attn_q"))
    yield from _norms(size.d, "attn_q_norm", "attn_k_norm")


def _ssm_keys(conv: int, inner: int, state: int, rank: int, groups: int | None) -> dict[str, object]:
    return {
        "ssm.conv_kernel": conv, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank,
        "ssm.group_count": groups,
    }  # fmt: skip


def qwen3next(
    name: str, size: Size, *, expert_ff: int, n: int, used: int, state: int, k_heads: int, v_heads: int, rope: int,
    trait: str, **more: Any,
) -> Blueprint:  # fmt: skip
    """Three delta-net blocks, then one with full attention; experts with a shared one."""
    e = size.e
    sparse = [*_experts(e, expert_ff, n), ("ffn_gate_inp_shexp.weight", (e,)), *_shared(e, expert_ff)]
    norms = list(_norms(e, "attn_norm", "post_attention_norm"))
    full, recurrent = list(_gated_attention(size)), list(_delta_net(e, state, k_heads, v_heads, 4, fused=True))
    blocks = [norms + (full if (i + 1) % 4 == 0 else recurrent) + sparse for i in range(size.layers)]
    keys = {
        "expert_used_count": used, "expert_feed_forward_length": expert_ff, "rope.dimension_count": rope,
        "expert_shared_feed_forward_length": expert_ff, "full_attention_interval": 4,
        **_ssm_keys(4, state * v_heads, state, v_heads, k_heads),
    }  # fmt: skip
    return _blueprint(
        name, "qwen3next", size, blocks, trait, outside=[(OUTPUT_NORM, (e,))], n_experts=n, keys=keys, **more
    )


def qwen35(name: str, size: Size, *, state: int, k_heads: int, v_heads: int, trait: str) -> Blueprint:
    """A dense hybrid whose last block is an MTP head, which the engine skips."""
    e = size.e
    norms = list(_norms(e, "attn_norm", "post_attention_norm"))
    full, recurrent = list(_gated_attention(size)), list(_delta_net(e, state, k_heads, v_heads, 4, fused=False))
    trunk = size.layers - 1
    blocks = [norms + (full if (i + 1) % 4 == 0 else recurrent) + list(_dense(e, size.ff)) for i in range(trunk)]
    blocks.append(norms + full + list(_dense(e, size.ff)) + list(_nextn(e)))
    keys = {
        "nextn_predict_layers": 1, "full_attention_interval": 4, "rope.dimension_sections": [2, 2, 2, 0],
        **_ssm_keys(4, state * v_heads, state, v_heads, k_heads),
    }  # fmt: skip
    return _blueprint(name, "qwen35", size, blocks, trait, outside=[(OUTPUT_NORM, (e,))], keys=keys, tied=True)


def _nextn(e: int) -> Iterator[Tensor]:
    yield "nextn.eh_proj.weight", (2 * e, e)
    yield from _norms(e, "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")


def glm4moe(name: str, size: Size, expert_ff: int, n: int, used: int, trait: str) -> Blueprint:
    """A leading dense block, then experts, and a NextN block at the end, which the engine skips."""
    e = size.e
    attention = [*_norms(e, "attn_norm", "post_attention_norm"), *_attention(size)]
    sparse = [*_experts(e, expert_ff, n), ("exp_probs_b.bias", (n,)), *_shared(e, expert_ff)]
    blocks = [attention + (list(_dense(e, size.ff)) if i == 0 else sparse) for i in range(size.layers)]
    blocks[-1] = blocks[-1] + list(_nextn(e))
    keys = {
        "nextn_predict_layers": 1, "leading_dense_block_count": 1, "expert_used_count": used,
        "expert_feed_forward_length": expert_ff, "expert_shared_count": 1,
    }  # fmt: skip
    return _blueprint(name, "glm4moe", size, blocks, trait, outside=[(OUTPUT_NORM, (e,))], n_experts=n, keys=keys)


def _mamba2_block(e: int, inner: int, state: int, heads: int, groups: int) -> Iterator[Tensor]:
    conv = inner + 2 * groups * state
    yield from _weights(ssm_in=(e, inner + conv + heads), ssm_conv1d=(4, conv), ssm_out=(inner, e))
    yield "ssm_conv1d.bias", (conv,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (inner // groups, groups)


def granite_hybrid(
    name: str, size: Size, *, state: int, ssm_heads: int, groups: int, every: int, trait: str
) -> Blueprint:
    """Mamba-2 blocks, and one with attention in `every`; which is which is told by head_count_kv 0."""
    e, inner = size.e, 2 * size.e
    recurrent = list(_mamba2_block(e, inner, state, ssm_heads, groups))
    common = [*_norms(e, "attn_norm", "ffn_norm"), *_dense(e, size.ff)]
    attends = [(i + 1) % every == 0 for i in range(size.layers)]
    blocks = [common + (list(_attention(size)) if full else recurrent) for full in attends]
    keys = {
        "attention.head_count_kv": [size.kv if full else 0 for full in attends],
        **_ssm_keys(4, inner, state, ssm_heads, groups),
    }
    return _blueprint(name, "granitehybrid", size, blocks, trait, outside=[(OUTPUT_NORM, (e,))], keys=keys, tied=True)


def lfm2(name: str, size: Size, attends: tuple[bool, ...], trait: str) -> Blueprint:
    """Short convolutions and attention; its output norm is called token_embd_norm."""
    e = size.e
    common = [*_norms(e, "attn_norm", "ffn_norm"), *_dense(e, size.ff)]
    full = [*_attention(size), *_norms(size.d, "attn_q_norm", "attn_k_norm")]
    short = list(_weights(**{"shortconv.conv": (3, e), "shortconv.in_proj": (e, 3 * e), "shortconv.out_proj": (e, e)}))
    blocks = [common + (full if attend else short) for attend in attends]
    keys = {"attention.head_count_kv": [size.kv if attend else 0 for attend in attends], "shortconv.l_cache": 3}
    outside = [("token_embd_norm.weight", (e,))]
    return _blueprint(name, "lfm2", size, blocks, trait, outside=outside, keys=keys, tied=True)


def falcon_h1(name: str, size: Size, *, inner: int, state: int, ssm_heads: int, trait: str) -> Blueprint:
    """Attention and Mamba-2 side by side in every block."""
    e = size.e
    block = [
        *_norms(e, "attn_norm"), ("ffn_norm", (e,)), *_attention(size), *_dense(e, size.ff),
        *_mamba2_block(e, inner, state, ssm_heads, 1),
    ]  # fmt: skip
    keys = _ssm_keys(4, inner, state, ssm_heads, 1)
    return _blueprint(name, "falcon-h1", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (e,))], keys=keys)


_NO_ATTENTION: dict[str, object] = {
    "attention.head_count": 0, "attention.head_count_kv": 0, "attention.key_length": None,
    "attention.value_length": None, "rope.dimension_count": None, "feed_forward_length": 0,
}  # fmt: skip


def mamba(name: str, size: Size, state: int, rank: int, trait: str, **more: Any) -> Blueprint:
    """State space blocks only."""
    e, inner = size.e, 2 * size.e
    block = [
        *_norms(e, "attn_norm"),
        *_weights(
            ssm_in=(e, 2 * inner), ssm_conv1d=(4, inner), ssm_x=(inner, rank + 2 * state), ssm_dt=(rank, inner),
            ssm_out=(inner, e),
        ),
        ("ssm_conv1d.bias", (inner,)), ("ssm_dt.bias", (inner,)), ("ssm_a", (state, inner)), ("ssm_d", (inner,)),
    ]  # fmt: skip
    keys = _NO_ATTENTION | _ssm_keys(4, inner, state, rank, None)
    return _blueprint(
        name, "mamba", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (e,))], keys=keys, tied=True, **more
    )


def mamba2(name: str, size: Size, *, state: int, ssm_heads: int, groups: int, trait: str) -> Blueprint:
    """State space blocks with heads."""
    e, inner = size.e, 2 * size.e
    block = [*_norms(e, "attn_norm"), *_mamba2_block(e, inner, state, ssm_heads, groups)]
    keys = _NO_ATTENTION | _ssm_keys(4, inner, state, ssm_heads, groups)
    return _blueprint(
        name, "mamba2", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (e,))], keys=keys, tied=True
    )


def rwkv7(name: str, size: Size, *, head: int, rank: int, trait: str) -> Blueprint:
    """A linear recurrence with token shift instead of attention."""
    e, ff = size.e, size.ff
    vectors = [f"{n}.{part}" for n in ("attn_norm", "attn_norm_2", "time_mix_ln") for part in ("weight", "bias")]
    vectors += [f"time_mix_{n}.weight" for n in ("w0", "a0", "v0", "k_k", "k_a", "r_k")]
    block: list[Tensor] = [(name_, (e,)) for name_ in vectors]
    for part in "wavg":
        block += _weights(**{f"time_mix_{part}1": (e, rank), f"time_mix_{part}2": (rank, e)})
    for part in ("key", "value", "receptance", "output"):
        block += _weights(**{f"time_mix_{part}": (e, e)})
    block += _weights(time_mix_lerp_fused=(e, 1, 1, 6), channel_mix_lerp_k=(e, 1, 1))
    block += _weights(channel_mix_key=(e, ff), channel_mix_value=(ff, e))
    keys = _NO_ATTENTION | {
        "feed_forward_length": ff, "wkv.head_size": head, "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": None, "attention.decay_lora_rank": rank, "attention.iclr_lora_rank": rank,
        "attention.value_residual_mix_lora_rank": rank, "attention.gate_lora_rank": rank,
    }  # fmt: skip
    names = ("token_embd_norm.weight", "token_embd_norm.bias", OUTPUT_NORM, "output_norm.bias")
    return _blueprint(
        name, "rwkv7", size, [block] * size.layers, trait, outside=[(name_, (e,)) for name_ in names], keys=keys
    )


def gemma4(name: str, size: Size, *, wide: int, window: int, shared: int, trait: str) -> Blueprint:
    """Windowed blocks with narrower heads than the full ones, and last blocks that use another block's KV."""
    e = size.e
    blocks = []
    windowed = [(i + 1) % 3 != 0 for i in range(size.layers)]
    for index, swa in enumerate(windowed):
        d = size.d if swa else wide
        block = [
            *_norms(e, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), *_norms(d, "attn_q_norm"),
            *_attention(size, d=d), *_norms(d, "attn_k_norm"), *_dense(e, size.ff),
        ]  # fmt: skip
        own = index < size.layers - shared
        blocks.append([t for t in block if own or not t[0].startswith(("attn_k", "attn_v"))])
    keys = {
        "attention.sliding_window": window, "attention.sliding_window_pattern": windowed,
        "attention.shared_kv_layers": shared, "embedding_length_per_layer_input": 0,
        "attention.key_length": wide, "attention.value_length": wide,
        "attention.key_length_swa": size.d, "attention.value_length_swa": size.d,
        "rope.dimension_count": wide, "rope.dimension_count_swa": size.d,
    }  # fmt: skip
    outside = [(OUTPUT_NORM, (e,)), ("rope_freqs.weight", (wide // 2,))]
    return _blueprint(name, "gemma4", size, blocks, trait, outside=outside, keys=keys, tied=True)


def gemma3n(name: str, size: Size, *, window: int, per_layer: int, rank: int, trait: str) -> Blueprint:
    """Per-layer embeddings, and KV kept by the first twenty blocks only."""
    e, altup = size.e, 4
    block = [
        *_norms(e, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm", "altup_router_norm"),
        *_norms(e, "laurel_post_norm"), *_norms(size.d, "attn_q_norm", "attn_k_norm"), *_attention(size),
        *_dense(e, size.ff),
        *_weights(
            inp_gate=(e, per_layer), proj=(per_layer, e), altup_correct_coef=(altup, altup),
            altup_correct_scale=(e,), altup_predict_coef=(altup, altup * altup), altup_router=(e, altup),
            laurel_l=(e, rank), laurel_r=(rank, e),
        ),
    ]  # fmt: skip
    outside = [
        (OUTPUT_NORM, (e,)), ("altup_proj.weight", (e, e, altup - 1)), ("altup_unembd_proj.weight", (e, e, altup - 1)),
        ("per_layer_token_embd.weight", (per_layer * size.layers, size.vocab)),
        ("per_layer_model_proj.weight", (e, per_layer * size.layers)), ("per_layer_proj_norm.weight", (per_layer,)),
    ]  # fmt: skip
    keys = {
        "attention.sliding_window": window, "altup.num_inputs": altup, "altup.active_idx": 0,
        "embedding_length_per_layer_input": per_layer,
    }  # fmt: skip
    return _blueprint(name, "gemma3n", size, [block] * size.layers, trait, outside=outside, keys=keys, tied=True)


def openelm(name: str, size: Size, heads: tuple[int, ...], kv: tuple[int, ...], trait: str) -> Blueprint:
    """Numbers of heads and feed-forward widths of each block's own; Q, K and V in one tensor."""
    e, d = size.e, size.d
    widths = [size.ff * (index + 1) for index in range(size.layers)]
    blocks = [
        [
            *_norms(e, "attn_norm", "ffn_norm"), *_norms(d, "attn_q_norm", "attn_k_norm"),
            *_weights(attn_qkv=(e, (h + 2 * k) * d), attn_output=(h * d, e)), *_dense(e, ff),
        ]
        for h, k, ff in zip(heads, kv, widths, strict=True)
    ]  # fmt: skip
    keys = {
        "attention.head_count": list(heads), "attention.head_count_kv": list(kv), "feed_forward_length": widths,
    }  # fmt: skip
    return _blueprint(name, "openelm", size, blocks, trait, outside=[(OUTPUT_NORM, (e,))], keys=keys, tied=True)


def command_r(name: str, size: Size, trait: str, **more: Any) -> Blueprint:
    """Attention and feed-forward in parallel on one norm; from 64 blocks on with Q and K norms per head."""
    block = [*_norms(size.e, "attn_norm"), *_attention(size), *_dense(size.e, size.ff)]
    if size.layers >= 64:
        block += [("attn_q_norm.weight", (size.d, size.heads)), ("attn_k_norm.weight", (size.d, size.kv))]
    keys = {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.83}
    return _blueprint(
        name, "command-r", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (size.e,))], keys=keys, tied=True,
        **more,
    )  # fmt: skip


def phi3(name: str, size: Size, trait: str, **more: Any) -> Blueprint:
    """Q, K and V in one tensor, gate and up in another."""
    e, ff, qkv = size.e, size.ff, (size.heads + 2 * size.kv) * size.d
    block = [
        *_norms(e, "attn_norm", "ffn_norm"),
        *_weights(attn_qkv=(e, qkv), attn_output=(e, e), ffn_up=(e, 2 * ff), ffn_down=(ff, e)),
    ]
    return _blueprint(name, "phi3", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (e,))], **more)


def gemma3(name: str, size: Size, window: int, trait: str, **more: Any) -> Blueprint:
    """Five windowed blocks, then one that sees everything."""
    block = [
        *_norms(size.e, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), *_attention(size),
        *_norms(size.d, "attn_q_norm", "attn_k_norm"), *_dense(size.e, size.ff),
    ]  # fmt: skip
    return _blueprint(
        name, "gemma3", size, [block] * size.layers, trait, outside=[(OUTPUT_NORM, (size.e,))], tied=True,
        keys={"attention.sliding_window": window}, **more,
    )  # fmt: skip
