"""Typed access to a header's architecture keys, with llama.cpp's rules about defaults and per-block arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from ggufdeploy.errors import BadGguf
from ggufdeploy.gguf.reader import Header, HeaderPrefix, SkippedArray

_MAX_U32 = (1 << 32) - 1

_NOT_MODELS = {
    "mmproj": "a multimodal projector",
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
}


@dataclass(frozen=True)
class Keys:
    """The keys `<architecture>.*` of a header; names are given without that prefix. Everything raises BadGguf."""

    header: Header | HeaderPrefix
    architecture: str

    def fail(self, reason: str) -> NoReturn:
        """Raise BadGguf for this header."""
        raise BadGguf(self.header.source, self.header.read_bytes, reason)

    def text(self, key: str) -> str | None:
        """Return a string by its full key, or None when it is absent."""
        value = self.header.metadata.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(f"{key} is not a string")
        return value

    def number(self, name: str) -> int | None:
        """Return an unsigned 32-bit integer, or None when it is absent."""
        key = f"{self.architecture}.{name}"
        value = self.header.metadata.get(key)
        return None if value is None else self._unsigned(key, value)

    def required(self, name: str) -> int:
        """Return an unsigned integer above 0."""
        value = self.number(name)
        if value is None:
            self.fail(f"its header lacks {self.architecture}.{name}")
        if value == 0:
            self.fail(f"its {self.architecture}.{name} is 0")
        return value

    def per_block(self, name: str, n_blocks: int) -> tuple[int, ...] | None:
        """Return one integer per block, from an array of that length or from a single value; None when absent.

        Source: llama.cpp src/llama-model-loader.cpp, get_key_or_arr.
        """
        key = f"{self.architecture}.{name}"
        value = self.header.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, tuple | SkippedArray):
            length = len(value) if isinstance(value, tuple) else value.length
            if isinstance(value, SkippedArray) or length != n_blocks:
                self.fail(f"{key} has {length:,} items for {n_blocks} blocks")
            return tuple(int(item) if isinstance(item, bool) else self._unsigned(key, item) for item in value)
        return (self._unsigned(key, value),) * n_blocks

    def is_array(self, name: str) -> bool:
        """The key is there and holds an array."""
        return isinstance(self.header.metadata.get(f"{self.architecture}.{name}"), tuple | SkippedArray)

    def _unsigned(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_U32:
            self.fail(f"{key} is {value!r}, which is not an unsigned 32-bit integer")
        return value


def model_keys(header: Header | HeaderPrefix) -> Keys:
    """Return the architecture's keys, or say what the file is if it is not a language model."""
    keys = Keys(header, "general")
    kind = _NOT_MODELS.get(keys.text("general.type") or "model")
    architecture = keys.text("general.architecture")
    if kind is None and architecture == "clip":
        kind = _NOT_MODELS["mmproj"]
    if kind is not None:
        keys.fail(f"it holds {kind}, not a model")
    if architecture is None:
        keys.fail("its header lacks general.architecture")
    return Keys(header, architecture)
