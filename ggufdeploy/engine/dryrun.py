"""Ask llama.cpp how many bytes a configuration takes, without loading a weight.

`DryRun` keeps one child process that answers questions: a load with `no_alloc` and a context, measured per device, in
about 0.2 s. It runs on a ghost (a GGUF header, sparse up to the file's size), so a 60 GB model costs 55 MB of memory.
The child is expendable: whatever a header does to llama.cpp there is an EngineError here.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import msgspec

import ggufdeploy
from ggufdeploy.engine.breakdown import Breakdown, BufferBytes
from ggufdeploy.engine.loadlog import LoadLog, tells_out_of_memory
from ggufdeploy.engine.native import Native
from ggufdeploy.engine.parameters import Params, context_params, model_params
from ggufdeploy.engine.parent import child_environment, end_with_parent
from ggufdeploy.engine.request import EngineConfig
from ggufdeploy.errors import DryRunDied, EngineError, NoDryRun
from ggufdeploy.units import format_bytes

TIMEOUT_S = 60.0
"""Per question. The first one also initialises the GPUs, which takes seconds on machines with many."""
MEMORY_LIMIT_BYTES = 8 << 30
"""Resident. The state of recurrent layers is the one thing a dry run allocates: 0.1 GB per slot for the largest."""
_WATCH_INTERVAL_S = 0.05
_LAST_WORDS_S = 2.0  # from the end of its output to the end of a process
_MOST_LOG_BYTES = 256 << 20
_LOG_BYTES = 64 << 10  # the end of the child's stderr; a hostile header may make llama.cpp talk a lot
_LOG_LINES = 20
_SOURCE_FOLDER = re.compile(r"\S*/(?=[\w.-]+:\d+: )")  # where llama.cpp was built, in front of "ggml.c:3354: "
_DIED_HINT = "the file may be damaged or hostile: compare its checksum, or take it from another source"
_REFUSED_HINT = "see the engine's version and what it can do: ggufdeploy doctor"


class DeviceMemory(msgspec.Struct, frozen=True):
    """One device's record, in bytes. free_bytes: before this model, as llama.cpp reads it."""

    name: str
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


class DryRunAnswer(msgspec.Struct, frozen=True):
    """devices: GPU-type devices in llama.cpp's order. host: all host buffers together, also repacked weights.

    Not in it: the rows of logits (`planner.memory.output_bytes`), and what compute threads take while they work.
    """

    devices: tuple[DeviceMemory, ...]
    host: DeviceMemory


class _Reply(msgspec.Struct, frozen=True):
    answer: DryRunAnswer | None = None
    error: str | None = None
    log: tuple[str, ...] = ()
    hint: str | None = None
    kind: str = ""


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

        Raises EngineError when llama.cpp refuses the model or the question, NoDryRun when this build cannot measure,
        and of those DryRunDied when the child crashes, does not answer in TIMEOUT_S or takes more memory than
        MEMORY_LIMIT_BYTES; the next question then gets a fresh child.
        """
        child = self._child or self._start()
        config = msgspec.structs.replace(config, model_path=str(Path(config.model_path).absolute()))
        reply = self._receive(child, msgspec.json.encode(config) + b"\n")
        if reply.answer is not None:
            return reply.answer
        kinds: dict[str, type[EngineError]] = {"no_dry_run": NoDryRun, "died": DryRunDied}
        raise kinds.get(reply.kind, EngineError)(reply.error or "", log=reply.log, hint=reply.hint)

    def _start(self) -> subprocess.Popen[bytes]:
        # `-m` imports from the working directory first: let that be ours, not whatever the user is in.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ggufdeploy.engine.dryrun", str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=child_environment(),
            cwd=Path(ggufdeploy.__file__).parents[1],
        )
        return self._child

    def _receive(self, child: subprocess.Popen[bytes], question: bytes) -> _Reply:
        """Send a question and return the child's line, watching its time and memory. Raises DryRunDied."""
        assert child.stdin is not None
        assert child.stdout is not None
        deadline, line = time.monotonic() + TIMEOUT_S, b""
        try:
            child.stdin.write(question)
            while not line.endswith(b"\n"):
                if time.monotonic() > deadline:
                    raise self._died(f"did not answer within {TIMEOUT_S:.0f} s")
                if _resident_bytes(child.pid) > MEMORY_LIMIT_BYTES:
                    raise self._died(f"took more than {format_bytes(MEMORY_LIMIT_BYTES)} of memory")
                if select.select([child.stdout], [], [], _WATCH_INTERVAL_S)[0]:
                    part = child.stdout.read(1 << 20)
                    if not part:
                        raise self._died()
                    line += part
            return msgspec.json.decode(line, type=_Reply)
        except BrokenPipeError as error:
            raise self._died() from error
        except msgspec.DecodeError as error:
            raise self._died("gave an answer that is none") from error

    def _died(self, reason: str | None = None) -> DryRunDied:
        """End the child and return what to raise. reason: what it did; None: its own end and last words tell."""
        child = self._child
        assert child is not None
        try:
            code = child.wait(_LAST_WORDS_S if reason is None else 0)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        log = self._last_lines()
        self._end()
        if reason is None:
            reason = f"ended with {_status(code)}"
            if tells_out_of_memory(log):
                reason = f"could not get the memory it asked for, and {reason}"
            elif cause := next((line for line in reversed(log) if "GGML_ASSERT" in line or "what():" in line), None):
                reason += f": {_SOURCE_FOLDER.sub('', cause)}"
        return DryRunDied(f"llama.cpp's dry run of this model {reason}", log=log, hint=_DIED_HINT)

    def _last_lines(self) -> list[str]:
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(end - _LOG_BYTES, 0))
        text = self._stderr.read().decode("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()][-_LOG_LINES:]

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


def _status(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


def _resident_bytes(pid: int) -> int:
    """Return the memory a process holds, 0 where /proc does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class _Oracle:
    """llama.cpp with weights left out. Lives in the child only."""

    def __init__(self) -> None:
        try:
            from llama_cpp import llama_cpp as api
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: its shared library does not load
            raise NoDryRun(f"llama-cpp-python cannot be loaded, so no dry run: {error}") from error
        api.llama_backend_init()
        self._api, self._native = api, Native(api)
        self._breakdown = Breakdown(self._native)
        self._dev_name = self._native.short("ggml_backend_dev_name", ctypes.c_char_p, "p")
        self._log = LoadLog()
        self._native.set_log(self._feed)

    def ask(self, config: EngineConfig) -> DryRunAnswer:
        """Answer one question. Raises EngineError, NoDryRun; some headers end the process instead."""
        for endpoint in config.rpc_endpoints:
            self._native.add_rpc_device(endpoint)
        self._log = LoadLog(_write_line)
        memory = self._free_memory(with_gpus=bool(config.n_gpu_layers))
        params = model_params(self._native, config)
        params.value.no_alloc, params.value.load_mode = True, self._api.LLAMA_LOAD_MODE_NONE
        model = self._api.llama_model_load_from_file(config.model_path.encode(), params.value)
        if not model:
            raise self._refused("load this model")
        try:
            parts, used = self._measure(model, config), self._devices(model)
        finally:
            self._api.llama_model_free(model)
        records = [_sum(name, *memory[name], parts) for name in (*used, "CPU")]
        return DryRunAnswer(tuple(records[:-1]), records[-1])

    def _measure(self, model: int, config: EngineConfig) -> tuple[BufferBytes, ...]:
        params: Params = context_params(self._native, config)
        context = self._api.llama_init_from_model(model, params.value)
        if not context:
            raise self._refused("make a context for this model")
        parts = self._breakdown.read(context)
        self._api.llama_free(context)
        return parts

    def _devices(self, model: int) -> list[str]:
        """Return the names of the GPU-type devices the model uses. Source: llama.cpp src/llama-ext.h."""
        count = self._native.short("_Z21llama_model_n_devicesPK11llama_model", ctypes.c_int32, "p")(model)
        get = self._native.short("_Z22llama_model_get_devicePK11llama_modeli", ctypes.c_void_p, "pi")
        return [self._dev_name(get(model, index)).decode() for index in range(count)]

    def _free_memory(self, *, with_gpus: bool) -> dict[str, tuple[int, int]]:
        """Return (total, free) bytes per device, before this model takes anything. Looking at a GPU initialises it."""
        native, found = self._native, {}
        get = native.short("ggml_backend_dev_get", ctypes.c_void_p, "n")
        is_cpu = native.short("ggml_backend_dev_type", ctypes.c_int32, "p")
        read = native.long("ggml_backend_dev_memory", None, "ppp")
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        for index in range(native.short("ggml_backend_dev_count", ctypes.c_size_t, "")()):
            device = get(index)
            if with_gpus or is_cpu(device) == 0:
                read(device, ctypes.byref(free), ctypes.byref(total))
                found[self._dev_name(device).decode()] = (total.value, free.value)
        return found

    def _feed(self, level: int, text: str) -> None:
        self._log.feed(level, text)

    def _refused(self, what: str) -> EngineError:
        log = tuple(self._log.lines)[-_LOG_LINES:]
        if tells_out_of_memory(log):
            message = "llama.cpp's dry run of this model could not get the memory it asked for"
            return DryRunDied(message, log=log, hint=_DIED_HINT)
        reason = self._log.first_error or "it does not say why"
        return EngineError(f"llama.cpp cannot {what}: {reason}", log=log, hint=_REFUSED_HINT)


def _sum(name: str, total_bytes: int, free_bytes: int, parts: tuple[BufferBytes, ...]) -> DeviceMemory:
    mine = [part for part in parts if part.device == name]
    return DeviceMemory(
        name,
        total_bytes,
        free_bytes,
        sum(part.weights_bytes for part in mine),
        sum(part.kv_bytes for part in mine),
        sum(part.compute_bytes for part in mine),
    )


def _write_line(line: str) -> None:
    os.write(2, (line + "\n").encode("utf-8", errors="replace"))


def _limit_resources() -> None:
    """Bound what a header can make this process take; where memory runs out anyway, this process goes first."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_LOG_BYTES, _MOST_LOG_BYTES))
    # Not with a GPU driver: CUDA maps far more address space than it uses. The parent watches the resident memory.
    if not Path("/dev/nvidiactl").exists():
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    if Path("/proc/self/oom_score_adj").exists():
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Answer EngineConfig lines on stdin with _Reply lines on stdout until stdin closes."""
    end_with_parent(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints must not mix with the answers
    _limit_resources()
    oracle: _Oracle | None = None
    for line in sys.stdin.buffer:
        try:
            config = msgspec.json.decode(line, type=EngineConfig)
            oracle = oracle or _Oracle()
            reply = _Reply(answer=oracle.ask(config))
        except EngineError as error:
            kind = "died" if isinstance(error, DryRunDied) else "no_dry_run" if isinstance(error, NoDryRun) else ""
            reply = _Reply(error=error.message, log=error.log, hint=error.hint, kind=kind)
        out.write(msgspec.json.encode(reply) + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
