"""llama.cpp's log: the last lines for error messages, and the facts that only the log tells.

Source of the lines: llama.cpp src/llama-model.cpp (load_tensors), src/llama-context.cpp, src/llama-kv-cache.cpp,
src/llama-memory-recurrent.cpp, at the commit that llama-cpp-python 0.3.36 carries. Sizes are printed in MiB with two
decimals, so bytes are exact to 5,243.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ggufdeploy.engine.breakdown import BufferBytes
from ggufdeploy.engine.request import DeviceBuffers
from ggufdeploy.units import MIB

KEPT_LINES = 50

# ggml_log_level
_DEBUG, _ERROR, _CONTINUED = 1, 4, 5

_BUFFER = re.compile(r":\s+(\S+)\s+(?:DSV4 \S+ )?(model|KV|RS|state|compute|output) buffer size =\s*([\d.]+) MiB")
_LAYER = re.compile(r"layer\s+(\d+) assigned to device (\S+), is_swa")
_OUT_OF_MEMORY = re.compile(
    r"failed to allocate|unable to allocate|out of memory|out of device memory|cudaMalloc failed|bad_alloc"
    r"|could not reserve space",
    re.I,
)
# Source: ggml/src/ggml-cuda/ggml-cuda.cu (buffer allocation, ggml_cuda_error), ggml/src/ggml-alloc.c,
# src/llama-model.cpp. CUDA names a device by number only.
_CUDA_REFUSAL = re.compile(r"allocating ([\d.]+) MiB on device (\d+)")
_BUFFER_REFUSAL = re.compile(r"(?:failed|unable) to allocate (\S+) buffer(?: of size (\d+))?")
_CUDA_ABORT = re.compile(r"current device: (\d+), in function")
_HOST = re.compile(r"CPU\b|CPU_|.*_Host$|AMX$|BLAS$")
_REPACKED = "CPU_REPACK"  # source: ggml/src/ggml-cpu/repack.cpp
_DECORATION = re.compile(r"\[.*\]$|_Mapped$|_Private$")


@dataclass(frozen=True)
class Refusal:
    """Who refused memory, "CPU" for the system, and how much was asked for. None: the log does not say."""

    device: str | None = None
    asked_bytes: int | None = None


class LoadLog:
    """Collects what llama.cpp says. `feed` is called by whichever thread logs; reading is safe once loading is over.

    on_line: called with every complete line above debug level.
    """

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._on_line = on_line
        self._partial = ""
        self._summed: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._latest: dict[tuple[str, str], int] = {}
        self._layers: dict[int, str] = {}
        self._first_error: str | None = None
        self._refused = False
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)

    def feed(self, level: int, text: str) -> None:
        """Take one message of the log callback; a line may come in pieces (level 5 continues the one before)."""
        if level == _CONTINUED and text.strip(". \n") == "":
            return  # progress dots
        *complete, self._partial = (self._partial + text).split("\n")
        for line in complete:
            self._take(level, line.strip())

    @property
    def layer_devices(self) -> tuple[str, ...]:
        """The device of every block and, last, of the output layer."""
        return tuple(self._layers[index] for index in sorted(self._layers))

    @property
    def first_error(self) -> str | None:
        """The first line logged as an error: the cause; those after it say what failed in turn."""
        return self._first_error

    @property
    def refused(self) -> bool:
        """Whether a line since the last `forget_refusal` said that memory was refused."""
        return self._refused

    def forget_refusal(self) -> None:
        """Start over before a call whose refusals matter."""
        self._refused = False

    def buffers(self, account: Iterable[BufferBytes] = ()) -> tuple[DeviceBuffers, ...]:
        """Return what was allocated, devices first and the host ("CPU") last.

        account: llama.cpp's own, exact figures for all but the rows of logits, which only the log has. Weights mapped
        from the file count on the host in full, even the parts that were copied to a device.
        """
        totals: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        mapped = any(name.endswith("_Mapped") for name, _ in self._summed)
        for name, device, kind, n_bytes in self._entries(account):
            again = mapped and kind == "model" and name == _REPACKED
            totals[device]["repacked" if again else kind] += n_bytes
        devices = sorted(totals, key=lambda device: (device == "CPU", device))
        return tuple(
            DeviceBuffers(
                device=device,
                weights_bytes=totals[device]["model"],
                kv_bytes=totals[device]["KV"] + totals[device]["RS"] + totals[device]["state"],
                compute_bytes=totals[device]["compute"] + totals[device]["output"],
                repacked_bytes=totals[device]["repacked"],
            )
            for device in devices
        )

    def _entries(self, account: Iterable[BufferBytes]) -> Iterator[tuple[str, str, str, int]]:
        """Yield buffer, device, kind and bytes."""
        exact = tuple(account)
        for part in exact:
            yield part.name, part.device, "model", part.weights_bytes
            yield part.name, part.device, "KV", part.kv_bytes
            yield part.name, part.device, "compute", part.compute_bytes
        for (name, kind), n_bytes in [*self._summed.items(), *self._latest.items()]:
            if not exact or kind == "output":
                yield name, _device_of(name), kind, n_bytes

    def _take(self, level: int, line: str) -> None:
        if not line:
            return
        if match := _BUFFER.search(line):
            name, kind, size = match[1], match[2], round(float(match[3]) * MIB)
            if kind in ("compute", "output"):  # printed again whenever they are reserved anew
                self._latest[name, kind] = size
            else:
                self._summed[name, kind] += size
        elif match := _LAYER.search(line):
            self._layers[int(match[1])] = match[2]
        if level == _DEBUG:
            return
        if _OUT_OF_MEMORY.search(line):
            self._refused = True
        if level == _ERROR and self._first_error is None:
            self._first_error = line
        self.lines.append(line)
        if self._on_line is not None:
            self._on_line(line)


def tells_out_of_memory(lines: Iterable[str]) -> bool:
    """Return whether a device or the system refused an allocation."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines)


def find_refusal(lines: Iterable[str]) -> Refusal:
    """Return what the log's lines tell of the first refused allocation."""
    device: str | None = None
    asked_bytes: int | None = None
    for line in lines:
        if match := _CUDA_REFUSAL.search(line):
            return Refusal(f"CUDA{match[2]}", round(float(match[1]) * MIB))
        if device is None and (match := _BUFFER_REFUSAL.search(line)):
            device = _device_of(match[1])
            asked_bytes = int(match[2]) if match[2] else None
        if match := _CUDA_ABORT.search(line):
            device = device or f"CUDA{match[1]}"
    return Refusal(device, asked_bytes)


def _device_of(buffer_name: str) -> str:
    """Return "CUDA0" for "CUDA0", "RPC0" for "RPC0[host:port]", "CPU" for every kind of host buffer."""
    return "CPU" if _HOST.match(buffer_name) else _DECORATION.sub("", buffer_name)
