"""Ask llama.cpp how many bytes a configuration takes, without loading a weight.

`DryRun` keeps one child process that answers questions: a load with `no_alloc` and a context, measured per device, in
about 0.2 s. It runs on a ghost (a GGUF header, sparse up to the file's size), so a 60 GB model costs 55 MB of memory.
The child is expendable: a header that aborts llama.cpp is an EngineError here.
Source: llama.cpp common/fit.h (common_get_device_memory_data), exported by libllama-common.
"""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import msgspec

import ggufdeploy
from ggufdeploy.engine.native import Native
from ggufdeploy.engine.parameters import context_params, model_params
from ggufdeploy.engine.parent import child_environment
from ggufdeploy.engine.request import EngineConfig
from ggufdeploy.errors import EngineError, NoDryRun

TIMEOUT_S = 60.0
"""Per question. The first one also initialises the GPUs, which takes seconds on machines with many."""
_DATA_LIMIT_BYTES = 8 << 30
_LOG_BYTES = 64 << 10  # the end of the child's stderr; a hostile header may make llama.cpp talk a lot
_LOG_INFO = 2  # source: llama.cpp ggml/include/ggml.h, GGML_LOG_LEVEL_INFO


class DeviceMemory(msgspec.Struct, frozen=True):
    """One device's record, in bytes. free_bytes: before this model, as llama.cpp reads it."""

    name: str
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


class DryRunAnswer(msgspec.Struct, frozen=True):
    """devices: GPU-type devices in llama.cpp's order. host: all host buffers together.

    Host weights that the CPU backend would repack are missing from `host.weights_bytes`; the tensor table has them.
    """

    devices: tuple[DeviceMemory, ...]
    host: DeviceMemory


class _Reply(msgspec.Struct, frozen=True):
    answer: DryRunAnswer | None = None
    error: str | None = None
    unavailable: bool = False


class DryRun:
    """A child process that answers `ask`; start it with `with`. Not thread-safe."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  a pipe would fill up and block the child

    def __enter__(self) -> DryRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._stderr.close()

    def ask(self, config: EngineConfig) -> DryRunAnswer:
        """Return the bytes `config` takes per device.

        Raises EngineError when llama.cpp refuses the model, aborts, or does not answer in TIMEOUT_S; the next question
        then gets a fresh child.
        """
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        answered = True
        try:
            config = msgspec.structs.replace(config, model_path=str(Path(config.model_path).absolute()))
            child.stdin.write(msgspec.json.encode(config) + b"\n")
            child.stdin.flush()
            answered = bool(select.select([child.stdout], [], [], TIMEOUT_S)[0])
            line = child.stdout.readline() if answered else b""
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._died(timed_out=not answered)
        reply = msgspec.json.decode(line, type=_Reply)
        if reply.unavailable:
            raise NoDryRun(reply.error or "no dry run")
        if reply.answer is None:
            raise EngineError(f"llama.cpp refused the question of a dry run: {reply.error}")
        return reply.answer

    def _start(self) -> subprocess.Popen[bytes]:
        # `-m` imports from the working directory first: let that be ours, not whatever the user is in.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ggufdeploy.engine.dryrun"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=child_environment(),
            cwd=Path(ggufdeploy.__file__).parents[1],
        )
        return self._child

    def _died(self, *, timed_out: bool) -> EngineError:
        child = self._child
        assert child is not None
        child.kill()
        code = child.wait()
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(end - _LOG_BYTES, 0))
        log = [line for line in self._stderr.read().decode("utf-8", "replace").splitlines() if line.strip()][-20:]
        self._end()
        if timed_out:
            return EngineError(f"llama.cpp's dry run did not answer within {TIMEOUT_S:.0f} s", log=log)
        reason = next((line for line in reversed(log) if "error loading" in line), f"it ended with status {code}")
        hint = "see the engine's version and what it can do: ggufdeploy doctor"
        return EngineError(f"llama.cpp cannot load this model: {reason}", log=log, hint=hint)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        if child.poll() is None:
            child.kill()
        child.wait()


class _Vector(ctypes.Structure):
    """std::vector on the Itanium ABI: three pointers. Read only; a few bytes per question are not freed."""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("capacity", ctypes.c_void_p))

    def __len__(self) -> int:
        return (self.end or 0) - (self.begin or 0)


class _Record(ctypes.Structure):
    """`common_device_memory_data` in llama.cpp common/fit.h."""

    _fields_ = (
        ("total", ctypes.c_int64),
        ("free", ctypes.c_int64),
        ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t),
        ("compute", ctypes.c_size_t),
    )


class _Oracle:
    """The exported C++ function. Lives in the child only."""

    _SYMBOL = (
        "_Z29common_get_device_memory_dataPKcPK18llama_model_paramsPK20llama_context_params"
        "RSt6vectorIP19ggml_backend_deviceSaIS9_EERjSD_SD_14ggml_log_level"
    )

    def __init__(self, rpc_endpoints: tuple[str, ...]) -> None:
        try:
            import llama_cpp
            from llama_cpp import llama_cpp as api
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: its shared library does not load
            raise NoDryRun(f"llama-cpp-python cannot be loaded, so no dry run: {error}") from error
        package = Path(llama_cpp.__file__).parent
        found = [path for folder in (package.parent, package) for path in (folder / "lib").glob("libllama-common.*")]
        if not found:
            raise NoDryRun("this build of llama-cpp-python has no libllama-common, so no dry run")
        try:
            self._call = ctypes.CDLL(str(found[0]))[self._SYMBOL]
        except (OSError, AttributeError) as error:
            raise NoDryRun(f"{found[0].name} has not the dry run of the pinned llama.cpp: {error}") from error
        self._call.restype = _Vector
        api.llama_backend_init()
        self._native = Native(api)
        self._name = self._native.short("ggml_backend_dev_name", ctypes.c_char_p, "p")
        for endpoint in rpc_endpoints:
            self._native.add_rpc_device(endpoint)

    def ask(self, config: EngineConfig) -> DryRunAnswer:
        """Answer one question; a refused model ends the process (a C++ exception nobody catches)."""
        model, context = model_params(self._native, config), context_params(self._native, config)
        devices, counters = _Vector(), [ctypes.c_uint32() for _ in range(3)]
        result: _Vector = self._call(
            config.model_path.encode(),
            ctypes.byref(model.value),
            ctypes.byref(context.value),
            ctypes.byref(devices),
            *(ctypes.byref(counter) for counter in counters),
            ctypes.c_int(_LOG_INFO),
        )
        records = (_Record * (len(result) // ctypes.sizeof(_Record))).from_address(result.begin)
        count = len(devices) // ctypes.sizeof(ctypes.c_void_p)
        pointers = (ctypes.c_void_p * count).from_address(devices.begin) if count else ()
        names = [self._name(pointer).decode() for pointer in pointers]
        parts = [_memory(name, record) for name, record in zip([*names, "CPU"], records, strict=True)]
        return DryRunAnswer(tuple(parts[:-1]), parts[-1])


def _memory(name: str, record: _Record) -> DeviceMemory:
    return DeviceMemory(name, record.total, record.free, record.model, record.context, record.compute)


def _limit_memory() -> None:
    """Bound the child's heap. Not with a GPU driver: CUDA maps far more address space than it uses."""
    import resource

    if not Path("/dev/nvidiactl").exists():
        resource.setrlimit(resource.RLIMIT_DATA, (_DATA_LIMIT_BYTES, _DATA_LIMIT_BYTES))


def main() -> None:
    """Answer EngineConfig lines on stdin with _Reply lines on stdout until stdin closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints must not mix with the answers
    _limit_memory()
    oracle: _Oracle | None = None
    for line in sys.stdin.buffer:
        try:
            config = msgspec.json.decode(line, type=EngineConfig)
            oracle = oracle or _Oracle(config.rpc_endpoints)
            reply = _Reply(answer=oracle.ask(config))
        except EngineError as error:
            reply = _Reply(error=error.message, unavailable=isinstance(error, NoDryRun))
        out.write(msgspec.json.encode(reply) + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
