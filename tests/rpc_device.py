"""A GPU-type device without a GPU: a child process serves its CPU over llama.cpp's RPC backend, on loopback only.

Needs a llama.cpp built with GGML_RPC=ON. Source: llama.cpp ggml/include/ggml-rpc.h (ggml_backend_rpc_start_server).
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


def rpc_is_available() -> bool:
    """Say whether the installed llama.cpp has the RPC backend."""
    import llama_cpp.llama_cpp as llama

    return hasattr(llama._lib, "ggml_backend_rpc_start_server")


@contextlib.contextmanager
def rpc_device(threads: int = 1, memory_bytes: int | None = None) -> Iterator[str]:
    """Yield "127.0.0.1:PORT" of a fresh RPC server; its process ends with the block.

    memory_bytes: it cannot allocate more than about this much, though it says that it has all of the RAM.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(port), str(threads), str(memory_bytes or 0)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_listens(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the RPC server does not listen on port {port} (exit code {process.poll()})")


def _serve(port: int, threads: int, memory_bytes: int) -> None:
    import llama_cpp.llama_cpp as llama

    library = llama._lib
    llama.llama_log_set(ctypes.cast(None, llama.llama_log_callback), ctypes.c_void_p(0))
    library.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    library.ggml_backend_dev_by_type.argtypes = [ctypes.c_int]
    devices = (ctypes.c_void_p * 1)(library.ggml_backend_dev_by_type(_CPU_DEVICE))
    start = library.ggml_backend_rpc_start_server
    start.restype = None
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    if memory_bytes:
        _limit_memory(memory_bytes)
    start(f"127.0.0.1:{port}".encode(), None, threads, 1, ctypes.cast(devices, ctypes.c_void_p))


def _limit_memory(memory_bytes: int) -> None:
    """Let this process allocate so much more than it has now. Source: setrlimit(2), RLIMIT_DATA counts mappings too."""
    import resource

    status = Path("/proc/self/status").read_text(encoding="ascii")
    used_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    limit_bytes = used_kib * 1024 + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:4]))
