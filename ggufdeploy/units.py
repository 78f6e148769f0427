"""Quantities: parse what people type, format what they read. The only such code in the project.

Memory is binary (GiB); a decimal unit (GB) means powers of ten, as everywhere outside computing.
Token counts use k = 1024, because context lengths are powers of two ("32k" is 32,768).
"""

from __future__ import annotations

import re

from ggufdeploy.errors import BadValue

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 10**3,
    "m": MIB, "mib": MIB, "mb": 10**6,
    "g": GIB, "gib": GIB, "gb": 10**9,
    "t": 1 << 40, "tib": 1 << 40, "tb": 10**12,
}  # fmt: skip
_TOKEN_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_QUANTITY = re.compile(r"\s*(\d+(?:[_,]\d{3})*(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def _parse(text: str, name: str, units: dict[str, int], example: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise BadValue(name, f"{name}: {text!r} is not a quantity", hint=f"write it like {example}")
    return int(float(match[1].replace("_", "").replace(",", "")) * units[match[2].lower()])


def parse_bytes(text: str, *, name: str = "size") -> int:
    """Return bytes for "8GiB", "8G" (both binary), "80GB" (decimal) or "1024". Raises BadValue."""
    return _parse(text, name, _BYTE_UNITS, "8GiB")


def parse_tokens(text: str, *, name: str = "tokens") -> int:
    """Return tokens for "32768", "32k" (32,768) or "1m" (1,048,576). Raises BadValue."""
    return _parse(text, name, _TOKEN_UNITS, "32768 or 32k")


def format_bytes(n_bytes: int) -> str:
    """Return binary units with one decimal: "79.7 GiB", "292.0 MiB", "512 B"."""
    sign, size = ("-" if n_bytes < 0 else ""), abs(n_bytes)
    for unit, scale in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale:
            return f"{sign}{size / scale:.1f} {unit}"
    return f"{sign}{size} B"


def format_file_size(n_bytes: int) -> str:
    """Return decimal units, as the Hub and file managers show them: "85.6 GB"."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} B"


def format_rate(tokens_per_s: float) -> str:
    """Return tokens/s with the digits that mean something: "0.42", "8.6", "78"."""
    digits = 2 if tokens_per_s < 1 else 1 if tokens_per_s < 20 else 0
    return f"{tokens_per_s:.{digits}f} tokens/s"


def format_duration(seconds: float) -> str:
    """Return "0.4 s", "12 s", "3 min 05 s" or "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
