"""The child process that owns llama.cpp: `python -m ggufdeploy.engine.worker --fd N --parent PID`.

The socket N brings commands and takes reports. The process never outlives its parent: it ends when the socket does,
and on Linux the kernel ends it when the parent dies. It ignores SIGINT and SIGTERM; the parent decides.
stderr takes llama.cpp's log, so that the parent knows the last lines even when the process aborts.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

import msgspec

from ggufdeploy.engine.backend import Backend
from ggufdeploy.engine.engine import Engine
from ggufdeploy.engine.ladder import CPU_LIMIT_S, climb
from ggufdeploy.engine.messages import (
    HEADER,
    Ask,
    Cancel,
    Command,
    GaveUp,
    Load,
    Progress,
    Ready,
    Reply,
    Report,
    Step,
    Stop,
    Submit,
    pack,
    unpack_command,
    unpack_length,
)
from ggufdeploy.engine.parent import end_with_parent
from ggufdeploy.engine.request import EngineConfig, Event, Stats
from ggufdeploy.errors import BadRequest, EngineCrashed, EngineError, LoadFailed, RequestError

MakeBackend = Callable[[EngineConfig, Callable[[float], None], Callable[[str], None]], Backend]
"""Config, on_progress, on_log -> a loaded backend. Raises LoadFailed."""

_EXIT_BUG = 70
# How long a busy thread may keep the GIL from the engine's thread; Python's own 5 ms is a whole step.
_SWITCH_INTERVAL_S = 0.0005
_PROGRESS_STEP = 0.01


def load_llama_cpp(
    config: EngineConfig, on_progress: Callable[[float], None], on_log: Callable[[str], None]
) -> Backend:
    """Load with llama.cpp. Raises LoadFailed."""
    from ggufdeploy.engine.llamacpp import LlamaCppBackend

    return LlamaCppBackend(config, on_progress=on_progress, on_log=on_log)


class Worker:
    """Reads commands on the calling thread, runs the engine on another one. make_backend: tests inject faults here."""

    def __init__(self, connection: socket.socket, make_backend: MakeBackend = load_llama_cpp) -> None:
        self._make_backend = make_backend
        self._incoming = connection.makefile("rb")
        self._connection = connection
        self._sending = threading.Lock()
        self._engine: Engine | None = None
        self._last_stats: Stats | None = None
        self._progress = -1.0

    def serve(self) -> NoReturn:
        """Obey until the socket closes or Stop is done; the process ends here."""
        while (command := self._receive()) is not None:
            self._obey(command)
        os._exit(0)

    def _receive(self) -> Command | None:
        header = self._incoming.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        return unpack_command(self._incoming.read(unpack_length(header)))

    def _send(self, report: Report) -> None:
        try:
            with self._sending:
                self._connection.sendall(pack(report))
        except OSError:
            os._exit(0)  # the parent is gone

    def _obey(self, command: Command) -> None:
        if isinstance(command, Load):
            threading.Thread(target=self._own, args=(command.config,), name="engine", daemon=True).start()
            return
        engine = self._engine
        if isinstance(command, Stop) and engine is None:
            os._exit(0)
        assert engine is not None, "a command came before Ready was sent"
        if isinstance(command, Submit):
            engine.submit(command.request)
        elif isinstance(command, Cancel):
            engine.cancel(command.id)
        elif isinstance(command, Ask):
            self._ask(engine, command)
        else:
            engine.stop()

    def _ask(self, engine: Engine, command: Ask) -> None:
        def reply(answer: tuple[int, ...] | str | RequestError) -> None:
            if isinstance(answer, RequestError):
                param = answer.param if isinstance(answer, BadRequest) else None
                self._send(Reply(command.number, error=answer.message, param=param))
            else:
                self._send(Reply(command.number, answer))

        engine.ask(command.question, reply)

    def _own(self, config: EngineConfig) -> None:
        """Load the model, prove it, and serve; the engine's thread."""
        try:
            backend = self._make_backend(config, self._report_progress, _write_line)
            ladder = climb(
                backend,
                n_batch=config.n_batch,
                n_ubatch=config.n_ubatch,
                limit_s=None if config.n_gpu_layers else CPU_LIMIT_S,
                on_rung=self._report_alive,
            )
            self._engine = Engine(backend, config, self._report_step)
            self._send(Ready(msgspec.structs.replace(backend.info, ladder=ladder)))
            self._engine.run()
        except EngineError as error:
            out_of_memory = isinstance(error, LoadFailed | EngineCrashed) and error.out_of_memory
            self._send(GaveUp(error.message, out_of_memory, error.log, error.hint))
            os._exit(1)
        backend.close()
        os._exit(0)

    def _report_alive(self) -> None:
        """Let the parent know that a proof prompt was computed; on slow disks one takes minutes."""
        self._send(Progress(1.0))

    def _report_progress(self, fraction: float) -> None:
        if fraction - self._progress >= _PROGRESS_STEP:
            self._progress = fraction
            self._send(Progress(fraction))

    def _report_step(self, events: tuple[Event, ...], stats: Stats) -> None:
        if events or stats != self._last_stats:
            self._last_stats = stats
            self._send(Step(events, stats))


def _write_line(line: str) -> None:
    os.write(2, (line + "\n").encode("utf-8", errors="replace"))


def _exit_on_bug(args: threading.ExceptHookArgs) -> None:
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stderr.flush()
    os._exit(_EXIT_BUG)


def main(make_backend: MakeBackend = load_llama_cpp) -> None:
    """Set the process up and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    threading.excepthook = _exit_on_bug
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    Worker(socket.socket(fileno=arguments.fd), make_backend).serve()


if __name__ == "__main__":
    main()
