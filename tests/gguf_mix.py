"""Which tensor type llama.cpp's quantizer gives each tensor, as a pure function.

Source of the rules: llama.cpp src/llama-quant.cpp (llama_ftype_get_default_type, tensor_allows_quantization,
llama_tensor_get_type_impl, tensor_type_fallback). Proof: tests/gguf/test_writer.py compares whole models with the sizes
that llama.cpp's own dry run prints. Covered: the llama family and the Gemma family (separate Q, K, V; merged experts).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ggufdeploy.gguf.types import FILE_TYPES, GGML_TYPES_BY_NAME

FILE_TYPE_IDS = {name: id_ for id_, name in FILE_TYPES.items()}

_BASE_TYPES = {
    "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S",
    "MXFP4_MOE": "MXFP4",
}  # fmt: skip
_KEPT = (
    "_norm.weight", "ffn_gate_inp", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight",
    "time_mix_first", "time_mix_w", "time_mix_v0", "time_mix_v1", "time_mix_v2", "time_mix_a", "time_mix_g1",
    "time_mix_g2", "time_mix_decay", "lerp_",
)  # fmt: skip
_FLOATS = frozenset({"F32", "F16", "BF16"})
_LOW_BIT = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_LOW_BIT_WIDE = frozenset({"IQ2_S", "IQ2_M"})
_IQ4 = frozenset({"IQ4_NL", "IQ4_XS"})
_EIGHT_EXPERTS_OUTPUT_Q5 = frozenset(
    {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XS", "IQ3_XXS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}
)
_BLOCK_32_FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
}  # fmt: skip


@dataclass(frozen=True)
class MixContext:
    """What the rules look at besides the tensor. group_size: query heads per KV head. imatrix: one was given."""

    n_layers: int
    n_experts: int
    group_size: int
    tied: bool
    imatrix: bool = False

    @property
    def eight(self) -> bool:
        """Mixtral's special cases apply."""
        return self.n_experts == 8

    @property
    def is_70b(self) -> bool:
        """Llama's 80-layer shape, which has its own rule for attn_v."""
        return self.n_layers == 80 and self.group_size > 1

    def more_bits(self, layer: int) -> bool:
        """The first and last eighth of the layers and every third between them."""
        eighth = self.n_layers // 8
        return layer < eighth or layer >= 7 * self.n_layers // 8 or (layer - eighth) % 3 == 2

    def first(self, layer: int, part: int) -> bool:
        """The layer is in the first 1/part of the model."""
        return layer < self.n_layers // part


def tensor_type(name: str, shape: Sequence[int], quantization: str, context: MixContext) -> str:
    """Return the type name ("Q6_K") that a tensor gets in a file of that quantization ("Q4_K_M")."""
    if len(shape) < 2 or not name.endswith("weight") or any(part in name for part in _KEPT):
        return "F32"
    base = _BASE_TYPES.get(quantization, quantization)
    if base in _FLOATS:
        return base
    return _fallback(_mixed(name, shape, quantization, base, context), shape[0])


def _mixed(name: str, shape: Sequence[int], q: str, base: str, context: MixContext) -> str:
    if name == "output.weight" or (context.tied and name == "token_embd.weight"):
        return _output(shape, q, base)
    if q == "MXFP4_MOE":
        return "MXFP4" if len(shape) > 2 and shape[2] > 1 else "Q8_0"
    if name == "token_embd.weight":
        return _token_embedding(q, base)
    match = re.match(r"blk\.(\d+)\.(attn_[qkv]|attn_output|ffn_down|ffn_gate|ffn_up)", name)
    if match is None:
        return base
    layer, kind = int(match[1]), match[2]
    if q in _LOW_BIT:
        return _low_bit(kind, layer, q, base, context)
    rule = {"attn_v": _attn_v, "attn_k": _attn_k, "attn_output": _attn_output, "ffn_down": _ffn_down}.get(kind, _other)
    return rule(kind, layer, q, base, context)


def _output(shape: Sequence[int], q: str, base: str) -> str:
    if q == "MXFP4_MOE" or shape[0] % GGML_TYPES_BY_NAME[base].block_elements or base == "Q8_0":
        return "Q8_0"
    return "Q5_K" if q in _LOW_BIT | {"IQ3_XXS"} else "Q6_K"


def _token_embedding(q: str, base: str) -> str:
    if q in {"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"}:
        return "Q2_K"
    if q in _LOW_BIT_WIDE | {"IQ3_XXS"}:
        return "IQ3_S"
    return "Q4_K" if q in {"TQ1_0", "TQ2_0", "Q2_0"} else base


def _low_bit(kind: str, layer: int, q: str, base: str, context: MixContext) -> str:
    wide = "IQ3_S" if q in _LOW_BIT_WIDE else "Q2_K"
    if kind == "attn_v":
        return "Q4_K" if context.group_size >= 4 or context.n_experts >= 4 else wide
    if kind == "attn_k":
        return "Q4_K" if context.eight else base
    if kind == "ffn_down":
        return wide if context.first(layer, 8) else base
    if kind == "attn_output":
        if context.eight:
            return "Q5_K"
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(q, base)
    return base


def _attn_v(kind: str, layer: int, q: str, base: str, context: MixContext) -> str:
    if context.eight:
        return "Q8_0"
    chosen = _attn_v_dense(layer, q, base, context)
    return "Q5_K" if context.is_70b and chosen in {"Q3_K", "Q4_K"} else chosen


def _attn_v_dense(layer: int, q: str, base: str, context: MixContext) -> str:
    grouped = context.group_size >= 4
    if q == "Q2_K":
        return "Q4_K" if grouped else "Q3_K"
    if q == "IQ3_XXS":
        return "Q4_K" if grouped else "IQ3_XXS" if context.imatrix else "IQ3_S"
    if q == "IQ3_M" or (grouped and q in {"Q2_K_S", "IQ3_XS", "IQ3_S"}):
        return "Q4_K"
    if q == "Q3_K_M":
        return "Q5_K" if layer < 2 else "Q4_K"
    if q == "Q3_K_L" or (grouped and q in _IQ4) or (q == "Q4_K_S" and layer < 4):
        return "Q5_K"
    return "Q6_K" if q in {"Q4_K_M", "Q5_K_M"} and context.more_bits(layer) else base


def _attn_k(kind: str, layer: int, q: str, base: str, context: MixContext) -> str:
    return "Q8_0" if context.eight else _other(kind, layer, q, base, context)


def _other(kind: str, layer: int, q: str, base: str, context: MixContext) -> str:
    n = context.n_layers
    if kind in {"ffn_gate", "ffn_up"}:
        return "IQ3_XXS" if q == "IQ3_XS" and n // 8 <= layer < 7 * n // 8 else base
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(q, base)


def _attn_output(kind: str, layer: int, q: str, base: str, context: MixContext) -> str:
    if context.eight:
        return "Q5_K" if q in _EIGHT_EXPERTS_OUTPUT_Q5 else base
    dense = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
    return dense.get(q, base)


def _ffn_down(kind: str, layer: int, q: str, base: str, context: MixContext) -> str:
    early, more = context.first(layer, 8), context.more_bits(layer)
    if q in {"Q2_K", "Q3_K_L"}:
        return "Q3_K" if q == "Q2_K" else "Q5_K"
    if q == "Q3_K_M":
        return "Q5_K" if context.first(layer, 16) else "Q4_K"
    if q in {"Q4_K_M", "Q5_K_M"}:
        return "Q6_K" if more else base
    if q == "IQ3_M":
        return "Q4_K" if early or (context.eight and more) else base
    if q == "IQ3_XXS" and not context.imatrix:
        return "Q4_K" if early else "Q3_K"
    if early and context.imatrix:
        return {"Q2_K_S": "Q4_K", "Q4_K_S": "Q5_K", "Q4_0": "Q4_1", "Q5_0": "Q5_1"}.get(q, base)
    if early:
        return {"Q2_K_S": "Q4_K", "Q4_K_S": "Q5_K", "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}.get(q, base)
    return base


def _fallback(chosen: str, row: int) -> str:
    """Rows that are not whole blocks get a type with smaller blocks, in the end F16."""
    if row % GGML_TYPES_BY_NAME[chosen].block_elements == 0:
        return chosen
    smaller = _BLOCK_32_FALLBACK.get(chosen, chosen)
    return smaller if row % GGML_TYPES_BY_NAME[smaller].block_elements == 0 else "F16"
