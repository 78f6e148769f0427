"""Chat templates, rendered in a process of their own.

The sandbox keeps a template from reaching anything, but not from looping, nor from asking for all the memory there is.
Here that costs a child process with a time and a memory limit, never the process that holds the model.
Run as `python -m ggufdeploy.engine.rendering --fd N --parent PID`, this file is that child.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

import ggufdeploy
from ggufdeploy.engine.messages import HEADER, unpack_length
from ggufdeploy.engine.parent import end_with_parent
from ggufdeploy.engine.request import ChatMessage, ToolSpec
from ggufdeploy.engine.templates import ChatTemplate
from ggufdeploy.errors import BadRequest

TIMEOUT_S = 10.0
"""For starting the child, compiling and rendering together; a long conversation takes some milliseconds."""

# Far more than a body of the largest size allowed needs, and little beside a model.
_MEMORY_BYTES = 1 << 30
_MAX_PROMPT_BYTES = 64 << 20


class _Setup(msgspec.Struct, frozen=True):
    source: str
    bos_text: str
    eos_text: str


class _Ask(msgspec.Struct, frozen=True):
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...]
    continue_last: bool


class _Reply(msgspec.Struct, frozen=True):
    """error None: text is the prompt."""

    text: str = ""
    error: str | None = None
    param: str | None = None


class Renderer:
    """A template in a child process, which is started when needed. Thread-safe; one rendering at a time."""

    def __init__(self, source: str, *, bos_text: str = "", eos_text: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._setup = _Setup(source, bos_text, eos_text)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._spawning = threading.Lock()  # `close` either sees the child or keeps it from being started
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is none."""
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        """Start the child without waiting for it, so that the first rendering does not. What fails, `render` says."""
        with self._lock, contextlib.suppress(OSError, EOFError):
            self._running()

    def render(
        self, messages: Sequence[ChatMessage], *, tools: Sequence[ToolSpec] = (), continue_last: bool = False
    ) -> str:
        """See ChatTemplate.render. Raises BadRequest also for a template that takes too long or too much memory."""
        with self._lock:
            try:
                connection = self._running()
                _send(connection, _Ask(tuple(messages), tuple(tools), continue_last))
                reply = msgspec.msgpack.decode(_receive(connection), type=_Reply)
            except TimeoutError as error:
                self._end()
                message = f"The model's chat template did not finish within {self._timeout_s:g} s."
                raise BadRequest(message, param="messages") from error
            except (OSError, EOFError) as error:
                self._end()
                raise BadRequest("The model's chat template ended its process.", param="messages") from error
        if reply.error is not None:
            raise BadRequest(reply.error, param=reply.param)
        return reply.text

    def close(self) -> None:
        """End the child, also while another thread waits for it; that thread gets a BadRequest."""
        with self._spawning:
            self._closed = True
            child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._end()

    def _running(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        ours, theirs = socket.socketpair()
        with theirs, self._spawning:
            if self._closed:
                ours.close()
                raise EOFError("closed")
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ggufdeploy.engine.rendering",
                    f"--fd={theirs.fileno()}",
                    f"--parent={os.getpid()}",
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # ours is a pipe somebody reads to its end: a child must not keep it open
                cwd=Path(ggufdeploy.__file__).parents[1],  # `-m` imports from the working directory first
            )
        ours.settimeout(self._timeout_s)
        self._socket = ours
        _send(ours, self._setup)
        return ours

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._socket = self._child = None


def _send(connection: socket.socket, message: _Setup | _Ask | _Reply) -> None:
    body = msgspec.msgpack.encode(message)
    connection.sendall(HEADER.pack(len(body)) + body)


def _receive(connection: socket.socket) -> bytes:
    """Raises EOFError when the other side is gone, TimeoutError."""
    return _exactly(connection, unpack_length(_exactly(connection, HEADER.size)))


def _exactly(connection: socket.socket, n_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < n_bytes:
        piece = connection.recv(min(n_bytes - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other process is gone")
        data += piece
    return bytes(data)


# The child


def _serve(connection: socket.socket) -> None:
    template: ChatTemplate | BadRequest
    setup = msgspec.msgpack.decode(_receive(connection), type=_Setup)
    try:
        template = ChatTemplate(setup.source, bos_text=setup.bos_text, eos_text=setup.eos_text)
    except BadRequest as error:
        template = error
    while True:
        ask = msgspec.msgpack.decode(_receive(connection), type=_Ask)
        _send(connection, _answer(template, ask))


def _answer(template: ChatTemplate | BadRequest, ask: _Ask) -> _Reply:
    if isinstance(template, BadRequest):
        return _Reply(error=template.message, param=template.param)
    try:
        text = template.render(ask.messages, tools=ask.tools, continue_last=ask.continue_last)
    except BadRequest as error:
        return _Reply(error=error.message, param=error.param)
    if len(text) > _MAX_PROMPT_BYTES:
        return _Reply(error=f"The model's chat template wrote {len(text):,} characters.", param="messages")
    return _Reply(text.encode("utf-8", errors="replace").decode())


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(ValueError, OSError):  # not every system knows this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def main() -> None:
    """Render for the process at the other end of the socket until it closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides
        signal.signal(number, signal.SIG_IGN)
    _limit_memory()
    with contextlib.suppress(EOFError, OSError):
        _serve(socket.socket(fileno=arguments.fd))


if __name__ == "__main__":
    main()
