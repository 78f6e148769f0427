"""Names of quantizations as they appear in file names and references."""

from __future__ import annotations

import re

# Source: llama.cpp tools/quantize/quantize.cpp (QUANT_OPTIONS) and file names on the Hub; longer names first.
_BASE = (
    r"IQ[1-4]_(?:XXS|XS|NL|S|M)"
    r"|Q4_0_4_4|Q4_0_4_8|Q4_0_8_8"
    r"|Q[2-8]_K|Q[1-8]_[01]|TQ[12]_0|MXFP4|NVFP4|BF16|F(?:P)?16|F(?:P)?32|Q[2-8]"
)
# What publishers append: _S _M _L _XL _P, _hb16, _MOE, and the sizes of i-quants.
_SUFFIX = r"(?:_(?:XXS|XXL|XS|XL|S|M|L|P|NL|R\d+|HB16|MOE))*"
_NAME = re.compile(rf"(?<![A-Z0-9])(?P<dynamic>UD[-_])?(?P<name>(?:{_BASE}){_SUFFIX})(?![A-Z0-9])")
_HYPHENS = re.compile(r"(?<![A-Z0-9])(Q[2-6])-K(?:-([SML]))?(?![A-Z0-9])")
_SPELLINGS = {"Q6": "Q6_K", "Q8": "Q8_0", "FP16": "F16", "FP32": "F32"}


def parse_quantization(path: str) -> str | None:
    """Return the canonical quantization that a file's path names, None when it names none.

    The last match wins, since base types occur earlier in names ("model_bf16-Q4_K_M.gguf"); the file's own name
    goes before its folder's ("UD-Q4_K_XL/model-00001-of-00002.gguf").
    """
    for part in reversed(path.upper().split("/")):
        names = list(_NAME.finditer(_underscored(part.removesuffix(".GGUF"))))
        if names:
            return _canonical(names[-1])
    return None


def canonical_quantization(text: str) -> str | None:
    """Return the canonical form of a quantization written by hand ("q4_k_m", "Q6", "ud-q4_k_xl"), else None."""
    match = _NAME.fullmatch(_underscored(text.upper().removeprefix("I1-")))
    return _canonical(match) if match else None


def looks_like_quantization(text: str) -> bool:
    """Whether someone who wrote `text` meant a quantization, perhaps with a slip ("Q4_K_X")."""
    return re.match(r"(?i)(UD[-_]|i1-)?(I?Q\d|TQ\d|B?F(P)?(16|32)\b|MXFP|NVFP)", text) is not None


def _underscored(text: str) -> str:
    """Write "Q4-K-M" as "Q4_K_M"."""
    return _HYPHENS.sub(lambda match: f"{match[1]}_K" + (f"_{match[2]}" if match[2] else ""), text)


def _canonical(match: re.Match[str]) -> str:
    name = _SPELLINGS.get(match["name"], match["name"])
    return f"UD-{name}" if match["dynamic"] else name
