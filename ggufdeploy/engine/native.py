"""ctypes that llama-cpp-python lacks: short calls that keep the GIL, a batch on NumPy arrays, devices, the log.

`api` is the module `llama_cpp.llama_cpp`, handed in by `llamacpp.py`.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ggufdeploy.engine.request import TensorOverride
from ggufdeploy.errors import LoadFailed

_CONNECT_TIMEOUT_S = 10.0

_TYPES = {"p": ctypes.c_void_p, "s": ctypes.c_char_p, "i": ctypes.c_int32, "b": ctypes.c_bool, "n": ctypes.c_size_t}

# llama.cpp keeps the log callback for as long as the process lives, so it may never be collected.
_log_callbacks: list[Any] = []


class _BufferOverride(ctypes.Structure):
    """llama_model_tensor_buft_override of llama.h."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class Native:
    """Functions looked up by name in libllama and the ggml libraries it is linked with."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self._without_gil = ctypes.CDLL(None, handle=api._lib._handle)
        self._with_gil = ctypes.PyDLL(None, handle=api._lib._handle)
        self._rpc_endpoints: set[str] = set()

    def short(self, name: str, result: Any, arguments: str) -> Callable[..., Any]:
        """Bind a function that returns at once, keeping the GIL; `arguments` spells the types: p s i b n."""
        return _bound(self._with_gil, name, result, arguments)

    def long(self, name: str, result: Any, arguments: str) -> Callable[..., Any]:
        """Bind a function that computes or waits, giving up the GIL."""
        return _bound(self._without_gil, name, result, arguments)

    def set_log(self, feed: Callable[[int, str], None]) -> None:
        """Send llama.cpp's log to `feed(level, text)`, on whichever thread logs."""

        def on_log(level: int, text: bytes, _: Any) -> None:
            feed(level, text.decode("utf-8", errors="replace"))

        callback = self.api.llama_log_callback(on_log)
        _log_callbacks.append(callback)
        self.api.llama_log_set(callback, ctypes.c_void_p(0))

    def reset_log(self) -> None:
        """Let llama.cpp log to stderr again, so that nothing calls into Python while the interpreter ends."""
        self.api.llama_log_set(self.api.llama_log_callback(), ctypes.c_void_p(0))

    def add_rpc_device(self, endpoint: str) -> None:
        """Register the devices of an RPC server ("host:port"), once per process. Raises LoadFailed.

        Source: llama.cpp ggml/include/ggml-rpc.h. A server that does not answer would abort the process, so it is
        tried first.
        """
        if not hasattr(self.api._lib, "ggml_backend_rpc_add_server"):
            raise LoadFailed(
                "The installed llama-cpp-python was built without RPC devices.",
                hint='rebuild it: CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-binary :all: llama-cpp-python==0.3.36',
            )
        if endpoint in self._rpc_endpoints:
            return
        host, _, port = endpoint.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except (OSError, ValueError, OverflowError) as error:
            raise LoadFailed(f"The RPC device {endpoint} does not answer: {error}") from error
        registry = self.long("ggml_backend_rpc_add_server", ctypes.c_void_p, "s")(endpoint.encode())
        if not registry:
            raise LoadFailed(f"The RPC device {endpoint} was refused by llama.cpp.")
        self.long("ggml_backend_register", None, "p")(registry)
        self._rpc_endpoints.add(endpoint)

    def buffer_overrides(self, overrides: Sequence[TensorOverride]) -> ctypes.Array[_BufferOverride] | None:
        """Return the NULL-terminated array llama.cpp wants, None for none; it must outlive the load.

        Raises LoadFailed for a device that does not exist.
        """
        if not overrides:
            return None
        entries = [_BufferOverride(item.pattern.encode(), self._buffer_type(item.device)) for item in overrides]
        return (_BufferOverride * (len(entries) + 1))(*entries, _BufferOverride(None, None))

    def _buffer_type(self, device: str) -> int:
        if device == "CPU":
            return int(self.long("ggml_backend_cpu_buffer_type", ctypes.c_void_p, "")())
        handle = self.long("ggml_backend_dev_by_name", ctypes.c_void_p, "s")(device.partition("[")[0].encode())
        if not handle:
            raise LoadFailed(f"Tensors are to be placed on the device {device}, which llama.cpp does not see.")
        return int(self.long("ggml_backend_dev_buffer_type", ctypes.c_void_p, "p")(handle))


class Batch:
    """One llama_batch over our own arrays, filled again for every step. Holds at most `capacity` tokens."""

    def __init__(self, capacity: int, batch_type: Any) -> None:
        import numpy as np  # not at the top: planning imports this file and no arrays, and has 0.1 s to lose

        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        # seq_id is an array of pointers: row i points at the i-th element of _sequences.
        self._rows = self._sequences.ctypes.data + np.arange(capacity, dtype=np.uint64) * 4
        self._batch = batch_type()
        for field, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._rows),
            ("logits", self._outputs),
        ):
            pointer_type = dict(batch_type._fields_)[field]
            setattr(self._batch, field, ctypes.cast(array.ctypes.data, pointer_type))

    def fill(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], outputs: Sequence[int]
    ) -> Any:
        """Return the llama_batch for these columns, valid until the next call."""
        n = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._sequences[:n] = sequences
        self._outputs[:n] = outputs
        self._batch.n_tokens = n
        return self._batch


def _bound(library: Any, name: str, result: Any, arguments: str) -> Callable[..., Any]:
    function = library[name]  # by item, for a function object of our own: the attribute is shared with llama_cpp
    function.restype = result
    function.argtypes = [_TYPES[letter] for letter in arguments]
    return function  # type: ignore[no-any-return]
