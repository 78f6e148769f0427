"""`python -m ggufdeploy.cli.engine_probe`: load llama.cpp in this process and say as JSON what it is and sees.

`doctor` runs it as a child: a library that aborts while its GPU drivers start must not take doctor with it.
"""

from __future__ import annotations

import ctypes
import sys

import msgspec

# Source: llama.cpp ggml/include/ggml-backend.h, enum ggml_backend_dev_type.
_KINDS = ("cpu", "gpu", "integrated gpu", "accelerator")


class ProbedDevice(msgspec.Struct, frozen=True):
    """One device llama.cpp sees. kind: one of _KINDS, None for one that is newer than this list."""

    name: str
    kind: str | None
    description: str
    free_bytes: int
    total_bytes: int


class Probe(msgspec.Struct, frozen=True):
    """gpu_offload: the build can use GPUs. features: llama.cpp's own line about its backends and CPU instructions."""

    gpu_offload: bool
    features: str
    devices: tuple[ProbedDevice, ...]


def probe() -> Probe:
    """Load llama.cpp, start its backends and list its devices. Raises LoadFailed."""
    from ggufdeploy.engine.llamacpp import initialise

    native = initialise()
    count = native.long("ggml_backend_dev_count", ctypes.c_size_t, "")()
    handles = [native.long("ggml_backend_dev_get", ctypes.c_void_p, "p")(index) for index in range(count)]
    kind_of = native.long("ggml_backend_dev_type", ctypes.c_int, "p")
    name_of = native.long("ggml_backend_dev_name", ctypes.c_char_p, "p")
    description_of = native.long("ggml_backend_dev_description", ctypes.c_char_p, "p")
    memory_of = native.long("ggml_backend_dev_memory", None, "ppp")
    devices = []
    for handle in handles:
        free, total, kind = ctypes.c_size_t(), ctypes.c_size_t(), kind_of(handle)
        memory_of(handle, ctypes.byref(free), ctypes.byref(total))
        devices.append(
            ProbedDevice(
                name_of(handle).decode(errors="replace"),
                _KINDS[kind] if 0 <= kind < len(_KINDS) else None,
                description_of(handle).decode(errors="replace"),
                free.value,
                total.value,
            )
        )
    features = native.api.llama_print_system_info().decode(errors="replace").strip()
    return Probe(bool(native.api.llama_supports_gpu_offload()), features, tuple(devices))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(probe()) + b"\n")
