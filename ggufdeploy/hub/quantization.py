"""Names of quantizations as they appear in file names and references.

The conventions, with their publishers and examples, are described in docs/quantization-names.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# A separator that publishers write, double or leave out: "Q4_K_M", "q4-k-m", "q4km", "q_4_k_m".
_S = r"[-_]?"
# Sources: llama.cpp tools/quantize/quantize.cpp (QUANT_OPTIONS); ik_llama.cpp ggml.h (KS, KSS, KL, KT, K, R4, R8, KV);
# file names on the Hub for the rest (UD-, _L, _XL, _P, _MOE, _HB16). A number after a hyphen is no "_0": "Q4-0.5B".
_FULL = re.compile(
    rf"""(?<![A-Z0-9])(?P<dynamic>UD[-_])?(?:
      IQ{_S}(?P<i_bits>[1-6]){_S}(?P<i_size>XXS|XS|NL|KSS|KS|KL|KT|K|S|M|XL|L)
    | Q{_S}(?P<k_bits>[2-8]){_S}K(?:{_S}(?P<k_size>XXL|XXS|XL|XS|S|M|L|P|V)(?![A-Z0-9]))?
    | Q{_S}(?P<bits>[1-8])[-_](?P<kind>[01])(?!\.\d)(?P<rows>_[48]_[48])?
    | TQ(?P<t_bits>[12])_0 | (?P<fp4>MX|NV)FP4 | (?P<bitnet>I2_S)
    )(?P<more>(?:_(?:XXS|XXL|XS|XL|S|M|L|P|R[48]|HB16|MOE))*)(?![A-Z0-9])""",
    re.VERBOSE,
)
_FLOAT = re.compile(r"(?<![A-Z0-9])(?P<brain>B)?FP?(?P<bits>16|32)(?![A-Z0-9])")
_BARE = re.compile(r"(?<![A-Z0-9])Q(?P<bits>[1-8])(?=$|[-_.]IMAT)")
# "gemma-3-27b-it-qat-q4_0-unquantized.Q6_K.gguf": weights trained for Q4_0 and stored in full.
_UNQUANTIZED = re.compile(r"[-_.]UNQUANTIZED")
_SHARD_SUFFIX = re.compile(r"[-.]?(?:SHARD)?-\d{5}-OF-\d{5}$")
# Source: QUANT_OPTIONS says "alias for Q3_K_M" and so on.
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q6": "Q6_K", "Q8": "Q8_0"}

_KINDS = ("full", "bare", "float")
_IK_ONLY = re.compile(r"IQ\d_(?:K|KS|KSS|KL|KT)(?:_R[48])?|.*_R[48]|IQ[56]_.*|Q8_KV|.*_KV_R8")
_REMOVED = re.compile(r"Q4_0_[48]_[48]|IQ4_NL_[48]_[48]")


@dataclass(frozen=True)
class QuantizationName:
    """A quantization found in a name. start: of its first character there; kind: how exactly it says it.

    "full": a recipe ("Q4_K_M"); "float": not quantized ("BF16"); "bare": only the bits ("Q4").
    """

    canonical: str
    kind: Literal["full", "bare", "float"]
    start: int


def parse_quantization(path: str) -> str | None:
    """Return the canonical quantization that a file's path names, None when it names none.

    The file's own name goes before its folder's ("UD-Q4_K_XL/model-00001-of-00002.gguf"), but a recipe in the folder's
    goes before a float type in the file's ("Q4_K_M/model-BF16-abliterated-00001-of-00002.gguf").
    """
    found = [item for part in reversed(path.split("/")) if (item := find_quantization(part))]
    return min(found, key=lambda item: _KINDS.index(item.kind)).canonical if found else None


def find_quantization(name: str) -> QuantizationName | None:
    """Return the quantization that one file or folder name states.

    A recipe goes before all else, wherever it stands: "model-BF16-Q4_K_M" was made from BF16, and "model-Q6_K-Q8",
    "model-Q4_K_M-fp16" keep some tensors in more bits. Bare bits count at the end only; among equals the last counts.
    """
    found: dict[str, QuantizationName] = {}
    for item in _all(name):
        found[item.kind] = item
    return next((found[kind] for kind in _KINDS if kind in found), None)


def name_before_quantization(name: str) -> str:
    """Return what stands before the first quantization in a file's name: the model's own name, as written there."""
    first = min((item.start for item in _all(name)), default=None)
    return _stem(name) if first is None else name[:first]


def canonical_quantization(text: str) -> str | None:
    """Return the canonical form of a quantization written by hand ("q4_k_m", "Q6", "ud-q4_k_xl"), else None."""
    upper = re.sub(r"^I1[-_.]", "", text.upper())
    for pattern, build in ((_FULL, _full_name), (_FLOAT, _float_name), (_BARE, _bare_name)):
        match = pattern.fullmatch(upper)
        if match:
            return build(match)
    return None


def looks_like_quantization(text: str) -> bool:
    """Whether someone who wrote `text` meant a quantization, perhaps with a slip ("Q4_K_X")."""
    return re.match(r"(?i)(UD[-_]|i1-)?(I?Q\d|TQ\d|B?F(P)?(16|32)\b|MXFP|NVFP)", text) is not None


def why_unloadable(quantization: str) -> str | None:
    """Return why llama.cpp cannot load files of a quantization, None when nothing speaks against it.

    Source: llama.cpp ggml/include/ggml.h (types 31 to 33 and 36 to 38 were "removed from gguf files"; it has no I2_S);
    ik_llama.cpp ggml/include/ggml.h (the types it adds).
    """
    if _REMOVED.fullmatch(quantization):
        return "a repacked format that llama.cpp no longer reads; Q4_0 is repacked while loading"
    if quantization == "I2_S":
        return "a format of bitnet.cpp, which llama.cpp cannot load"
    if _IK_ONLY.fullmatch(quantization):
        return "a format of ik_llama.cpp, which llama.cpp cannot load"
    return None


def _stem(name: str) -> str:
    """Return the name without ".gguf" and without a shard's number."""
    stem = re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    return stem[: len(stem) - len(match[0])] if (match := _SHARD_SUFFIX.search(stem.upper())) else stem


def _all(name: str) -> Iterator[QuantizationName]:
    """Yield every quantization in a name, in order within each kind."""
    upper = re.sub(r"\.GGUF$", "", _stem(name).upper())  # "x.Q6_K.gguf-00001-of-00006.gguf" ends twice
    for match in _FULL.finditer(upper):
        if not _UNQUANTIZED.match(upper, match.end()):
            yield QuantizationName(_full_name(match), "full", match.start())
    for match in _FLOAT.finditer(upper):
        yield QuantizationName(_float_name(match), "float", match.start())
    for match in _BARE.finditer(upper):
        yield QuantizationName(_bare_name(match), "bare", match.start())


def _full_name(match: re.Match[str]) -> str:
    if match["i_bits"]:
        name = f"IQ{match['i_bits']}_{match['i_size']}"
    elif match["k_bits"]:
        size = match["k_size"]
        name = f"Q{match['k_bits']}_K" + ("V" if size == "V" else f"_{size}" if size else "")
    elif match["bits"]:
        name = f"Q{match['bits']}_{match['kind']}{match['rows'] or ''}"
    elif match["t_bits"]:
        name = f"TQ{match['t_bits']}_0"
    else:
        name = f"{match['fp4']}FP4" if match["fp4"] else "I2_S"
    name = _ALIASES.get(name + match["more"], name + match["more"])
    return f"UD-{name}" if match["dynamic"] else name


def _float_name(match: re.Match[str]) -> str:
    return f"{match['brain'] or ''}F{match['bits']}"


def _bare_name(match: re.Match[str]) -> str:
    name = f"Q{match['bits']}"
    return _ALIASES.get(name, name)
