"""Parse a GGUF header from any stream, in one pass, trusting nothing in it.

Source of the format: ggml docs/gguf.md; of what must be refused: llama.cpp ggml/src/gguf.cpp. The limits are ours: wide
enough for every published model (the largest header known, 262,144 tokens with 515,000 merges, has 15.8 MB), and tight
enough that a hostile file costs seconds and megabytes at most.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ggufdeploy.errors import HeaderTruncated, NotFound
from ggufdeploy.gguf.cursor import MAX_HEADER_BYTES, Cursor, Readable
from ggufdeploy.gguf.foreign import looks_like
from ggufdeploy.gguf.types import GGML_TYPES, REMOVED_TYPES, GgmlType

MAX_PAIRS = 65_536
MAX_TENSORS = 1 << 20
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 64
MAX_ARRAY_ITEMS = 1 << 26
MAX_NESTED_ARRAYS = 65_536
MAX_KEPT_ITEMS = 4096
MAX_DIMS = 4
MAX_BLOCKS = 512
MAX_I64 = (1 << 63) - 1
DEFAULT_ALIGNMENT = 32

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_U32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9


@dataclass(frozen=True)
class SkippedArray:
    """An array that was not kept: strings (the vocabulary), nested arrays, or more than 4,096 numbers."""

    length: int


Value: TypeAlias = "bool | int | float | str | tuple[bool | int | float, ...] | SkippedArray"


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the tensor table. shape[0] is the row length; offset: bytes from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class HeaderPrefix:
    """The pairs that lie in the first bytes of a file; nothing is known of its tensors but their number.

    metadata: the pairs read so far. An array whose end is cut off stands there as SkippedArray, because its length is
    known. complete: all pairs were there. read_bytes: how far the parser came.
    """

    source: str
    version: int
    metadata: Mapping[str, Value]
    n_tensors: int
    complete: bool
    read_bytes: int


@dataclass(frozen=True)
class Header:
    """Everything before the tensor data of one file.

    source: the file or URL, for messages. data_offset: bytes from the start of the file to the first tensor.
    """

    source: str
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int

    @property
    def read_bytes(self) -> int:
        """How far the parser came; for messages."""
        return self.data_offset

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without the padding between them."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def needed_bytes(self) -> int:
        """The least size a complete file with this header has."""
        return self.data_offset + max((t.offset + t.n_bytes for t in self.tensors), default=0)


def read_header_file(path: Path) -> Header:
    """Read the header of a local file and check that no tensor lies beyond its end. Raises NotFound, BadGguf."""
    try:
        with path.open("rb") as file:
            return read_header(file, source=str(path), file_bytes=path.stat().st_size)
    except FileNotFoundError:
        raise NotFound("file", str(path)) from None


def read_header(stream: Readable, *, source: str, file_bytes: int | None = None) -> Header:
    """Read a header from the start of a file or of a prefix of it; only `stream.read(n)` is used.

    source: file or URL, for messages. file_bytes: size of the whole file; with it, a tensor beyond the end is an error
    ("the file is cut: N bytes of M"), without it extents cannot be checked. Raises HeaderTruncated when the stream ends
    inside the header (fetch more and call again with a new stream), BadGguf for everything else that is wrong.
    """
    cursor = Cursor(stream, source, file_bytes)
    version = _read_version(cursor)
    n_tensors = _read_count(cursor, "tensors", MAX_TENSORS)
    n_pairs = _read_count(cursor, "key-value pairs", MAX_PAIRS)
    metadata: dict[str, Value] = {}
    _read_metadata(cursor, n_pairs, metadata)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)
    tensors = _read_tensors(cursor, n_tensors, alignment)
    data_offset = -(-cursor.position // alignment) * alignment if tensors else cursor.position
    header = Header(source, version, metadata, tensors, alignment, data_offset)
    if data_offset > MAX_HEADER_BYTES:
        cursor.fail(f"its data starts at byte {data_offset:,}; headers beyond {MAX_HEADER_BYTES:,} bytes are refused")
    if file_bytes is not None and header.needed_bytes > file_bytes:
        cursor.fail(
            f"the file is cut: {file_bytes:,} bytes of {header.needed_bytes:,}", hint="download it again or resume it"
        )
    return header


def read_prefix(stream: Readable, *, source: str, file_bytes: int | None = None) -> HeaderPrefix:
    """Read the pairs at the start of a file, as far as the stream goes. Parameters as read_header.

    Raises HeaderTruncated when not even the number of pairs is there, BadGguf for everything that is wrong.
    """
    cursor = Cursor(stream, source, file_bytes)
    version = _read_version(cursor)
    n_tensors = _read_count(cursor, "tensors", MAX_TENSORS)
    n_pairs = _read_count(cursor, "key-value pairs", MAX_PAIRS)
    metadata: dict[str, Value] = {}
    complete = True
    try:
        _read_metadata(cursor, n_pairs, metadata)
    except HeaderTruncated:
        complete = False
        _check_block_count(cursor, metadata)
    return HeaderPrefix(source, version, metadata, n_tensors, complete, cursor.position)


def _read_version(cursor: Cursor) -> int:
    start = cursor.peek(512)
    if start[:4] != b"GGUF"[: max(len(start), 1)]:
        cursor.fail(f"it is {looks_like(start)}")
    cursor.skip(4, "the magic number")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        cursor.fail("it is in big-endian byte order; convert it with gguf-py's gguf_convert_endian.py")
    if version == 1:
        cursor.fail("it has version 1, which llama.cpp no longer reads; get a newer conversion of the model")
    if version not in (2, 3):
        cursor.fail(f"it has version {version}; versions 2 and 3 are known")
    return version


def _read_count(cursor: Cursor, what: str, limit: int) -> int:
    count = cursor.u64(f"the number of {what}")
    if count > limit:
        cursor.fail(f"it claims {count:,} {what}, the limit is {limit:,}")
    return count


def _read_metadata(cursor: Cursor, n_pairs: int, metadata: dict[str, Value]) -> None:
    """Add all pairs to `metadata`, which keeps those before the end of a stream that is cut."""
    for index in range(n_pairs):
        key = cursor.string(f"key {index}", MAX_KEY_BYTES)
        if not key:
            cursor.fail(f"key {index} is empty")
        if key in metadata:
            cursor.fail(f"key {key!r} occurs twice")
        kind = cursor.u32(f"the type of {key!r}")
        value: Value
        if kind == _ARRAY:
            item_kind, count = _read_array_start(cursor, key)
            metadata[key] = SkippedArray(count)  # stands when the stream ends inside the array
            value = _read_items(cursor, item_kind, count, key)
        else:
            value = _read_value(cursor, kind, key)
        metadata[key] = value
        if key == "general.alignment":
            _check_alignment(cursor, kind, value)
    _check_block_count(cursor, metadata)


def _check_alignment(cursor: Cursor, kind: int, value: Value) -> None:
    if kind != _U32 or not isinstance(value, int):
        cursor.fail(f"general.alignment must have type {_U32} (u32), it has type {kind}")
    if value < 1 or value & (value - 1):
        cursor.fail(f"general.alignment is {value}, which is not a power of two")


def _check_block_count(cursor: Cursor, metadata: Mapping[str, Value]) -> None:
    """llama.cpp aborts its process above LLAMA_MAX_LAYERS (src/llama-hparams.h), so this cannot be left to it."""
    blocks = metadata.get(f"{metadata.get('general.architecture')}.block_count", 0)
    if not isinstance(blocks, int) or blocks > MAX_BLOCKS:
        cursor.fail(f"its block_count is {blocks!r}; at most {MAX_BLOCKS} blocks are possible")


def _read_value(cursor: Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.string(f"the value of {key!r}")
    return _read_numbers(cursor, kind, 1, key)[0]


def _read_numbers(cursor: Cursor, kind: int, count: int, key: str) -> tuple[bool | int | float, ...]:
    letter = _letter(cursor, kind, key)
    numbers: tuple[bool | int | float, ...]
    numbers = struct.unpack(f"<{count}{letter}", cursor.take(count * struct.calcsize(letter), f"the value of {key!r}"))
    return tuple(n != 0 for n in numbers) if kind == _BOOL else numbers


def _letter(cursor: Cursor, kind: int, key: str) -> str:
    if kind not in _SCALARS:
        cursor.fail(f"{key!r} has the unknown value type {kind}")
    return _SCALARS[kind]


def _read_array_start(cursor: Cursor, key: str) -> tuple[int, int]:
    kind = cursor.u32(f"the item type of {key!r}")
    return kind, _read_count(cursor, f"items in {key!r}", MAX_ARRAY_ITEMS)


def _read_items(
    cursor: Cursor, kind: int, count: int, key: str, *, nested: bool = False
) -> tuple[bool | int | float, ...] | SkippedArray:
    if kind == _ARRAY:
        if nested:
            cursor.fail(f"{key!r} nests arrays more than two deep")
        if count > MAX_NESTED_ARRAYS:
            cursor.fail(f"{key!r} claims {count:,} arrays, the limit is {MAX_NESTED_ARRAYS:,}")
        for _ in range(count):
            _read_items(cursor, *_read_array_start(cursor, key), key, nested=True)
    elif kind == _STRING:
        cursor.skip_strings(count, repr(key))
    elif count <= MAX_KEPT_ITEMS and not nested:
        return _read_numbers(cursor, kind, count, key)
    else:
        cursor.skip(count * struct.calcsize(_letter(cursor, kind, key)), f"the value of {key!r}")
    return SkippedArray(count)


def _read_tensors(cursor: Cursor, n_tensors: int, alignment: int) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for index in range(n_tensors):
        tensor = _read_tensor(cursor, index)
        if tensor.name in tensors:
            cursor.fail(f"tensor {tensor.name!r} occurs twice")
        if tensor.offset != expected:
            cursor.fail(f"tensor {tensor.name!r} is at offset {tensor.offset:,}, {expected:,} was expected")
        expected += -(-tensor.n_bytes // alignment) * alignment
        if expected > MAX_I64:
            cursor.fail(f"tensor {tensor.name!r} ends beyond the largest possible file")
        tensors[tensor.name] = tensor
    return tuple(tensors.values())


def _read_tensor(cursor: Cursor, index: int) -> TensorInfo:
    name = cursor.string(f"the name of tensor {index}", MAX_NAME_BYTES)
    if "\0" in name:
        cursor.fail(f"the name of tensor {index} contains a zero byte")
    n_dims = cursor.u32(f"the dimension count of {name!r}")
    if n_dims > MAX_DIMS:
        cursor.fail(f"tensor {name!r} claims {n_dims} dimensions, the limit is {MAX_DIMS}")
    raw = cursor.take(8 * n_dims + 12, f"the description of {name!r}")
    *shape, type_id, offset = struct.unpack(f"<{n_dims}QIQ", raw)
    elements = 1
    for length in shape:
        elements *= max(length, 1)
    if elements > MAX_I64:
        cursor.fail(f"tensor {name!r} claims {'x'.join(map(str, shape))} elements, more than 2^63-1")
    ggml_type = _tensor_type(cursor, name, type_id)
    try:
        n_bytes = ggml_type.nbytes(shape)
    except ValueError as error:
        cursor.fail(f"tensor {name!r}: {error}")
    return TensorInfo(name, tuple(shape), ggml_type, offset, n_bytes)


def _tensor_type(cursor: Cursor, name: str, type_id: int) -> GgmlType:
    if type_id in REMOVED_TYPES:
        cursor.fail(
            f"tensor {name!r} has type {REMOVED_TYPES[type_id]}, which llama.cpp no longer reads",
            hint="choose a newer quantization of the model",
        )
    if type_id not in GGML_TYPES:
        cursor.fail(
            f"tensor {name!r} has the unknown type {type_id}; it is damaged, or newer than this program",
            hint="update ggufdeploy, or choose another quantization",
        )
    return GGML_TYPES[type_id]
