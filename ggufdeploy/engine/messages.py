"""What the API process and the worker say to each other: msgpack, each message behind its length."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from ggufdeploy.engine.request import EngineConfig, EngineInfo, Event, GenerateRequest, Question, Stats

HEADER = struct.Struct("<I")
MAX_MESSAGE_BYTES = 1 << 30


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first command, once."""

    config: EngineConfig


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Run a request; its id is not in flight."""

    request: GenerateRequest


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget a request; no event follows. Unknown ids are ignored: it may have finished meanwhile."""

    id: str


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Answered by Reply with the same number."""

    number: int
    question: Question


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Fail what still runs, free everything, exit 0."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How much is loaded, 0..1."""

    fraction: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Loaded; requests are taken from now on."""

    info: EngineInfo


class GaveUp(msgspec.Struct, frozen=True, tag="gave_up"):
    """The model could not be loaded, or cannot be served any longer; the worker exits after this."""

    message: str
    out_of_memory: bool
    log: tuple[str, ...]
    hint: str | None


class Step(msgspec.Struct, frozen=True, tag="step"):
    """All that one step of the engine brought about."""

    events: tuple[Event, ...]
    stats: Stats


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """error: why there is no answer; param: the field of the request that is to blame."""

    number: int
    answer: tuple[int, ...] | str = ""
    error: str | None = None
    param: str | None = None


Command = Load | Submit | Cancel | Ask | Stop
Report = Progress | Ready | GaveUp | Step | Reply

_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_encode: Callable[[Command | Report], bytes] = msgspec.msgpack.Encoder().encode


def pack(message: Command | Report) -> bytes:
    """Return the message with its length in front."""
    body = _encode(message)
    return HEADER.pack(len(body)) + body


def unpack_length(header: bytes) -> int:
    """Return how many bytes follow. Raises ValueError when they cannot be a message."""
    length: int = HEADER.unpack(header)[0]
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length:,} bytes")
    return length


def unpack_command(body: bytes) -> Command:
    """Raises msgspec.DecodeError."""
    return _command_decoder.decode(body)


def unpack_report(body: bytes) -> Report:
    """Raises msgspec.DecodeError."""
    return _report_decoder.decode(body)
