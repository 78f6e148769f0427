"""From bytes on the wire to a typed request, or a 4xx that names the field."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from ggufdeploy.errors import BadRequest
from ggufdeploy.server.state import ServerConfig

T = TypeVar("T")
_DISCARD_BYTES = 32 << 20
_MAX_REASON_CHARS = 200  # msgspec repeats a wrong value in full
_WHERE = re.compile(r"(?P<reason>.*) - at `(?:key in )?\$\.?(?P<path>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")


async def read_json(request: Request, kind: type[T], config: ServerConfig) -> T:
    """Return the body as a `kind`. Raises HTTPException 408, 413 or 415, and BadRequest with the field's name."""
    _check_media_type(request)
    try:
        body = await asyncio.wait_for(_read(request, config.max_body_bytes), config.body_timeout_s)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"The body did not arrive within {config.body_timeout_s:.0f} s.") from error
    return decode(body, kind)


def decode(body: bytes, kind: type[T]) -> T:
    """Return JSON `body` as a `kind`. Raises BadRequest: malformed, too deep, or a field of the wrong type or range."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        param, reason = _explain(str(error))
        subject = f"Invalid value for '{param}'" if param else "Invalid request body"
        raise BadRequest(f"{subject}: {reason}.", param=param, code="invalid_value") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequest("The body is nested too deeply.", code="invalid_json") from error


def _explain(message: str) -> tuple[str | None, str]:
    """Split msgspec's "reason - at `$.messages[0].role`" into ("messages.0.role", "reason"), a long reason cut."""
    found = _WHERE.fullmatch(message)
    reason, path = (found["reason"], found["path"]) if found else (message, "")
    path = re.sub(r"\[(\d+)\]", r".\1", path.replace("[...]", "")).lstrip(".")
    missing = _MISSING.match(reason)
    if missing:
        path, reason = f"{path}.{missing['field']}".lstrip("."), "it is required"
    return path or None, reason[:1].lower() + reason[1:_MAX_REASON_CHARS]


def _check_media_type(request: Request) -> None:
    """Accept JSON, or no type at all. A page can post text or forms to any address without asking, but not JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("", "application/json"):
        raise HTTPException(415, f"The Content-Type must be application/json, not {media_type}.")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"The Content-Encoding {encoding} is not supported.")


async def _read(request: Request, max_bytes: int) -> bytes:
    """Return the whole body, keeping no more than `max_bytes`.

    What is too large is read on for a while, since many clients read the answer only after all is sent.
    """
    announced = request.headers.get("content-length", "")
    size = int(announced[:20]) if announced.isdecimal() else 0
    too_large = HTTPException(413, f"The body is larger than {max_bytes:,} bytes.")
    if size > max_bytes and "expect" in request.headers:
        raise too_large
    parts: list[bytes] = []
    keep, received = size <= max_bytes, 0
    try:
        async for part in request.stream():
            received += len(part)
            keep = keep and received <= max_bytes
            if keep:
                parts.append(part)
            elif received > max_bytes + _DISCARD_BYTES:
                break
    except ClientDisconnect as error:
        raise HTTPException(400, "The connection closed before the body was complete.") from error
    if not keep:
        raise too_large
    return b"".join(parts)
