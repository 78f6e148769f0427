"""Write GGUF files byte by byte: real shapes as sparse files, tiny models with real weights, and broken files.

Source of the layout: the GGUF specification (ggml docs/gguf.md). Splits: llama.cpp tools/gguf-split/gguf-split.cpp.

    write_mixtral_8x22b(tmp_path, "Q4_K_S", shards=2)     # 80 GB of tensors, under 2 MB on disk
    write_model(tmp_path / "m.gguf", TINY_LLAMA, "F32")   # loads and generates
    GgufBuilder("llama").kv("llama.block_count", 2).tensor("t", (32, 4), "Q8_0").to_bytes()
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from ggufdeploy.gguf.types import GGML_TYPES_BY_NAME
from tests.gguf_blueprints import Blueprint, from_shape
from tests.gguf_mix import FILE_TYPE_IDS, tensor_type
from tests.gguf_shapes import (
    CHAT_TEMPLATE,
    GEMMA_3_4B,
    LLAMA_31_8B,
    MIXTRAL_8X22B,
    SMOLLM2_135M,
    TINY_GEMMA,
    TINY_LLAMA,
    TINY_MIXTRAL,
    TINY_TIED,
    ModelShape,
    vocabulary,
)

__all__ = [
    "GEMMA_3_4B", "LLAMA_31_8B", "MIXTRAL_8X22B", "SMOLLM2_135M", "TINY_GEMMA", "TINY_LLAMA", "TINY_MIXTRAL",
    "TINY_TIED", "GgufBuilder", "Kind", "ModelShape", "Shard", "build_model", "write_mixtral_8x22b", "write_model",
]  # fmt: skip


_RUNNABLE = frozenset({"F32", "F16", "Q8_0", "Q4_0"})
"""Quantizations in which the writer can fill in weights."""


class Kind(IntEnum):
    """Value types of the key-value section."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


_FORMATS = {
    Kind.U8: "B", Kind.I8: "b", Kind.U16: "H", Kind.I16: "h", Kind.U32: "I", Kind.I32: "i", Kind.F32: "f",
    Kind.BOOL: "?", Kind.U64: "Q", Kind.I64: "q", Kind.F64: "d",
}  # fmt: skip


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _kind_of(value: object) -> Kind:
    by_type = {bool: Kind.BOOL, int: Kind.U32, float: Kind.F32, str: Kind.STRING, bytes: Kind.STRING}
    return Kind.ARRAY if isinstance(value, list) else by_type[type(value)]


def _encode(value: object, kind: Kind, item: Kind | None = None) -> bytes:
    if kind is Kind.STRING:
        assert isinstance(value, str | bytes)
        return _string(value)
    if kind is not Kind.ARRAY:
        return struct.pack("<" + _FORMATS[kind], value)
    assert isinstance(value, list)
    item = item or (_kind_of(value[0]) if value else Kind.U32)
    start = struct.pack("<IQ", item, len(value))
    if item in _FORMATS:
        return start + struct.pack(f"<{len(value)}{_FORMATS[item]}", *value)
    return start + b"".join(_encode(v, item) for v in value)


@dataclass
class GgufBuilder:
    """One GGUF file in memory; the methods return self, so calls can be chained.

    The public fields are there to be wrong on purpose: magic, version, and the two counts (None: the true ones).
    Tensors without data are holes in the file, so a 60 GB model costs the size of its header on disk.
    """

    architecture: str | None = None
    alignment: int = 32
    magic: bytes = b"GGUF"
    version: int = 3
    kv_count: int | None = None
    tensor_count: int | None = None
    _entries: list[bytes] = field(default_factory=list)
    _infos: list[bytes] = field(default_factory=list)
    _data: list[tuple[int, bytes]] = field(default_factory=list)
    _data_bytes: int = 0

    def __post_init__(self) -> None:
        if self.architecture is not None:
            self.kv("general.architecture", self.architecture)
        if self.alignment != 32:
            self.kv("general.alignment", self.alignment)

    def kv(self, key: str | bytes, value: object, kind: Kind | None = None, item: Kind | None = None) -> GgufBuilder:
        """Add one pair. kind, item (of an array): guessed as u32, f32, bool, string, array when not given."""
        kind = kind or _kind_of(value)
        return self.raw_kv(_string(key) + struct.pack("<I", kind) + _encode(value, kind, item))

    def raw_kv(self, entry: bytes) -> GgufBuilder:
        """Add the bytes of one pair as they are."""
        self._entries.append(entry)
        return self

    def tensor(
        self,
        name: str | bytes,
        dims: Sequence[int],
        type_name: str = "F32",
        data: bytes | None = None,
        *,
        type_id: int | None = None,
        offset: int | None = None,
    ) -> GgufBuilder:
        """Add a tensor behind the last one; type_id and offset replace what is written, not what is reserved."""
        ggml_type = GGML_TYPES_BY_NAME[type_name]
        n_bytes = math.prod(dims) // ggml_type.block_elements * ggml_type.block_bytes
        if data is not None:
            assert len(data) == n_bytes, f"{name!r}: {len(data)} bytes of {n_bytes}"
            self._data.append((self._data_bytes, data))
        info = _string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        info += struct.pack(
            "<IQ", ggml_type.id if type_id is None else type_id, self._data_bytes if offset is None else offset
        )
        self._infos.append(info)
        self._data_bytes += -(-n_bytes // self.alignment) * self.alignment
        return self

    def header(self) -> bytes:
        """Return everything before the tensor data, padded to the alignment."""
        counts = (
            len(self._infos) if self.tensor_count is None else self.tensor_count,
            len(self._entries) if self.kv_count is None else self.kv_count,
        )
        start = self.magic + struct.pack("<IQQ", self.version, *counts)
        header = b"".join([start, *self._entries, *self._infos])
        return header + bytes(-len(header) % self.alignment)

    @property
    def file_bytes(self) -> int:
        """Logical size of the whole file."""
        return len(self.header()) + self._data_bytes

    def to_bytes(self) -> bytes:
        """Return the whole file; for small ones."""
        header = self.header()
        content = bytearray(header + bytes(self._data_bytes))
        for offset, data in self._data:
            content[len(header) + offset : len(header) + offset + len(data)] = data
        return bytes(content)

    def write(self, path: Path, *, ghost: bool = True) -> Path:
        """Write the file, its holes sparse; ghost=False stops behind the header. Returns path."""
        header = self.header()
        with path.open("wb") as file:
            file.write(header)
            if ghost:
                for offset, data in self._data:
                    file.seek(len(header) + offset)
                    file.write(data)
                file.truncate(len(header) + self._data_bytes)
        return path


@dataclass(frozen=True)
class Shard:
    """One file of a model: name as llama.cpp wants it, and its builder (`header()`, `file_bytes`, `write()`)."""

    name: str
    builder: GgufBuilder


def build_model(
    shape: ModelShape | Blueprint,
    quantization: str,
    *,
    stem: str | None = None,
    shards: int = 1,
    seed: int | None = None,
) -> list[Shard]:
    """Return the files of a model, first shard first.

    stem: file name without ".gguf"; default "<name>-<quantization>". shards: the first carries all keys, the later ones
    only split.*, as gguf-split writes them; tensors are dealt by size. seed: fill F32 and F16 tensors with random
    weights (norms with ones), so that the model can run; None leaves holes.
    """
    stem = stem or f"{shape.name}-{quantization}"
    shape = from_shape(shape, "") if isinstance(shape, ModelShape) else shape
    listed = [(name, dims, tensor_type(name, dims, quantization, shape.mix)) for name, dims in shape.tensors]
    groups = _deal(listed, shards)
    result = []
    for index, group in enumerate(groups):
        builder = _metadata(shape, quantization) if index == 0 else GgufBuilder()
        if shards > 1:
            builder.kv("split.no", index, Kind.U16).kv("split.count", shards, Kind.U16)
            builder.kv("split.tensors.count", len(listed), Kind.I32)
        for name, dims, type_name in group:
            data = None if seed is None else _weights(name, dims, type_name, seed)
            builder.tensor(name, dims, type_name, data)
        name = f"{stem}.gguf" if shards == 1 else f"{stem}-{index + 1:05d}-of-{shards:05d}.gguf"
        result.append(Shard(name, builder))
    return result


def _deal(listed: list[tuple[str, tuple[int, ...], str]], shards: int) -> list[list[tuple[str, tuple[int, ...], str]]]:
    """Cut the list into runs of about equal bytes, none empty."""
    sizes = [GGML_TYPES_BY_NAME[type_name].nbytes(dims) for _, dims, type_name in listed]
    groups: list[list[tuple[str, tuple[int, ...], str]]] = [[] for _ in range(shards)]
    before = 0
    for entry, size in zip(listed, sizes, strict=True):
        groups[before * shards // sum(sizes)].append(entry)
        before += size
    if not all(groups):
        raise ValueError(f"{len(listed)} tensors cannot be dealt to {shards} shards by size")
    return groups


def _metadata(shape: Blueprint, quantization: str) -> GgufBuilder:
    """Keys in the converter's order: general, architecture, tokenizer, then what the quantizer adds."""
    builder = GgufBuilder(shape.architecture).kv("general.type", "model").kv("general.name", shape.name)
    builder.kv("general.file_type", FILE_TYPE_IDS[quantization])
    for key, value in shape.keys.items():
        builder.kv(f"{shape.architecture}.{key}", value)
    tokens, scores, types = vocabulary(shape.n_vocab)
    builder.kv("tokenizer.ggml.model", "llama").kv("tokenizer.ggml.pre", "default")
    builder.kv("tokenizer.ggml.tokens", tokens).kv("tokenizer.ggml.scores", scores)
    builder.kv("tokenizer.ggml.token_type", types, item=Kind.I32)
    for key, token in (("bos", 1), ("eos", 2), ("unknown", 0)):
        builder.kv(f"tokenizer.ggml.{key}_token_id", token)
    builder.kv("tokenizer.ggml.add_bos_token", True).kv("tokenizer.ggml.add_eos_token", False)
    builder.kv("tokenizer.chat_template", CHAT_TEMPLATE)
    return builder.kv("general.quantization_version", 2)


def _weights(name: str, dims: Sequence[int], type_name: str, seed: int) -> bytes:
    """Return weights that keep activations near 1; the same for the same name, shape and seed."""
    import numpy as np

    random = np.random.default_rng([seed, *name.encode()])
    if "_norm" in name or "time_mix_ln" in name:
        values = np.ones(math.prod(dims))
    elif name.endswith(".ssm_a"):  # the decay of a state: negative, or it grows without bound
        values = -np.ones(math.prod(dims))
    else:
        values = random.standard_normal(math.prod(dims)) / math.sqrt(dims[0])
    if type_name in ("Q8_0", "Q4_0"):
        return _quantized(values, type_name)
    return bytes(values.astype({"F32": "<f4", "F16": "<f2"}[type_name]).tobytes())


def _quantized(values: Any, type_name: str) -> bytes:
    """Return rows of Q8_0 or Q4_0 blocks: an f16 scale, then 32 values. Source: llama.cpp ggml/src/ggml-common.h."""
    import numpy as np

    blocks = values.reshape(-1, 32)
    scale = np.maximum(abs(blocks).max(axis=1, keepdims=True), 1e-8) / (127 if type_name == "Q8_0" else 7)
    levels = np.rint(blocks / scale)
    if type_name == "Q8_0":
        stored = levels.astype(np.int8).view(np.uint8)
    else:
        nibbles = (levels + 8).astype(np.uint8)
        stored = nibbles[:, :16] | nibbles[:, 16:] << 4
    return bytes(np.hstack([scale.astype("<f2").view(np.uint8), stored]).tobytes())


def write_model(
    path: Path,
    shape: ModelShape | Blueprint,
    quantization: str,
    *,
    shards: int = 1,
    ghost: bool = True,
    seed: int | None = None,
) -> Path:
    """Write a model's files and return the first one's path.

    path: a folder (files get their usual name) or a `.gguf` file (with shards: its stem gets "-00001-of-0000N").
    ghost: sparse up to the logical size; False writes the headers alone. seed: see build_model; tiny shapes without a
    seed get 0, because they exist to be run.
    """
    folder, stem = (path.parent, path.stem) if path.suffix == ".gguf" else (path, None)
    folder.mkdir(parents=True, exist_ok=True)
    if seed is None and shape.name.startswith(("tiny-", "zoo-")) and quantization in _RUNNABLE:
        seed = 0
    files = build_model(shape, quantization, stem=stem, shards=shards, seed=seed)
    paths = [shard.builder.write(folder / shard.name, ghost=ghost) for shard in files]
    return paths[0]


def write_mixtral_8x22b(path_or_dir: Path, quantization: str, shards: int = 1, ghost: bool = True) -> Path:
    """Write Mixtral-8x22B-Instruct's exact shape (563 tensors, 140,630,071,296 parameters) and return the first file.

    In a folder the files are called as on the Hub: "Mixtral-8x22B-Instruct-v0.1.Q4_K_S-00001-of-00002.gguf".
    """
    if path_or_dir.suffix != ".gguf":
        path_or_dir = path_or_dir / f"{MIXTRAL_8X22B.name}.{quantization}.gguf"
    return write_model(path_or_dir, MIXTRAL_8X22B, quantization, shards=shards, ghost=ghost)
