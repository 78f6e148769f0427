"""llama.cpp's own account of a context, to the byte: weights, KV and compute per kind of buffer.

The account is a C++ map, `llama_get_memory_breakdown` of llama.cpp src/llama-ext.h. It is walked here as libstdc++
lays it out (bits/stl_tree.h); where the walk does not find as many entries as the map says it has, NoDryRun is raised
rather than a wrong number returned.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ggufdeploy.engine.native import Native
from ggufdeploy.errors import NoDryRun

_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
_HOST = "CPU"
_GPU_TYPES = (1, 2)  # source: llama.cpp ggml/include/ggml-backend.h, GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU
_MOST_ENTRIES = 1000


@dataclass(frozen=True)
class BufferBytes:
    """One kind of buffer ("CUDA0", "CPU", "CPU_REPACK"). device: whose memory it takes, "CPU" for every host buffer."""

    name: str
    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


class _Map(ctypes.Structure):
    """std::map: an empty comparator, the header node (colour, root, leftmost, rightmost), the number of entries."""

    _fields_ = (
        ("compare", ctypes.c_void_p),
        ("colour", ctypes.c_void_p),
        ("root", ctypes.c_void_p),
        ("leftmost", ctypes.c_void_p),
        ("rightmost", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    )


class _Node(ctypes.Structure):
    """A tree node with its value: the buffer type and `llama_memory_breakdown_data`."""

    _fields_ = (
        ("colour", ctypes.c_void_p),
        ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("buffer_type", ctypes.c_void_p),
        ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t),
        ("compute", ctypes.c_size_t),
    )


class Breakdown:
    """Reads the account of contexts. The map's memory, some hundred bytes, is not given back. Raises NoDryRun."""

    def __init__(self, native: Native) -> None:
        if sys.platform != "linux":
            raise NoDryRun("the layout of llama.cpp's memory account is known on Linux only, so no dry run")
        try:
            self._call = native.long(_SYMBOL, _Map, "p")
        except AttributeError as error:
            raise NoDryRun(f"this llama.cpp does not export its memory account, so no dry run: {error}") from error
        self._buffer_name = native.short("ggml_backend_buft_name", ctypes.c_char_p, "p")
        self._is_host = native.short("ggml_backend_buft_is_host", ctypes.c_bool, "p")
        self._device = native.short("ggml_backend_buft_get_device", ctypes.c_void_p, "p")
        self._device_name = native.short("ggml_backend_dev_name", ctypes.c_char_p, "p")
        self._device_type = native.short("ggml_backend_dev_type", ctypes.c_int32, "p")

    def read(self, context: int) -> tuple[BufferBytes, ...]:
        """Return what `context` and its model allocated, or with `no_alloc` would allocate."""
        account: _Map = self._call(context)
        nodes = list(_walk(account.root))
        if len(nodes) != account.count:
            raise NoDryRun("llama.cpp's memory account has another layout than expected, so no dry run")
        return tuple(
            BufferBytes(
                self._buffer_name(node.buffer_type).decode(),
                self._device_of(node.buffer_type),
                node.model,
                node.context,
                node.compute,
            )
            for node in nodes
        )

    def _device_of(self, buffer_type: int) -> str:
        device = self._device(buffer_type)
        if self._is_host(buffer_type) or not device or self._device_type(device) not in _GPU_TYPES:
            return _HOST
        name: bytes = self._device_name(device)
        return name.decode()


def _walk(root: int | None) -> Iterator[_Node]:
    """Yield the nodes in the map's order; a tree that is none ends early."""
    pending: list[int] = []
    at = root
    for _ in range(_MOST_ENTRIES):
        while at:
            pending.append(at)
            at = _Node.from_address(at).left
        if not pending:
            return
        node = _Node.from_address(pending.pop())
        yield node
        at = node.right
