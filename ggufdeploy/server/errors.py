"""Errors as OpenAI clients read them: {"error": {"message", "type", "param", "code"}} and the status that goes with it.

The only place that knows which status a class of errors.py has. The openai SDK retries 408, 409, 429 and every 5xx
unless `x-should-retry: false` is sent, and honours `retry-after-ms` and `retry-after` (openai-python
src/openai/_base_client.py): permanent failures are therefore 4xx or carry that header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ggufdeploy.errors import (
    BadRequest,
    ContextOverflow,
    DryRunDied,
    EngineCrashed,
    EngineError,
    GgufdeployError,
    LoadFailed,
    ModelNotServed,
    NoDryRun,
    Overloaded,
    RequestError,
)
from ggufdeploy.server.state import ServerState


@dataclass(frozen=True)
class Shape:
    """status: HTTP status. type, code: fields of the body. retry: None leaves the decision to the client."""

    status: int
    type: str
    code: str | None
    retry: bool | None = None


SHAPES: Mapping[type[GgufdeployError], Shape] = {
    RequestError: Shape(400, "invalid_request_error", None),
    BadRequest: Shape(400, "invalid_request_error", None),
    ContextOverflow: Shape(400, "invalid_request_error", "context_length_exceeded"),
    ModelNotServed: Shape(404, "invalid_request_error", "model_not_found"),
    Overloaded: Shape(429, "rate_limit_error", "rate_limit_exceeded"),
    EngineError: Shape(500, "server_error", "engine_error", retry=False),
    NoDryRun: Shape(500, "server_error", "engine_error", retry=False),
    DryRunDied: Shape(500, "server_error", "engine_error", retry=False),
    LoadFailed: Shape(503, "server_error", "model_load_failed", retry=False),
    EngineCrashed: Shape(500, "server_error", "engine_crashed", retry=False),
}
UNAVAILABLE = Shape(503, "service_unavailable_error", "service_unavailable")
BUG = Shape(500, "server_error", "internal_error", retry=False)
HTTP_SHAPES: Mapping[int, Shape] = {
    400: Shape(400, "invalid_request_error", "bad_request"),
    401: Shape(401, "authentication_error", "invalid_api_key"),
    403: Shape(403, "permission_error", "forbidden"),
    404: Shape(404, "invalid_request_error", "unknown_url"),
    405: Shape(405, "invalid_request_error", "method_not_allowed"),
    408: Shape(408, "invalid_request_error", "request_timeout", retry=False),
    413: Shape(413, "invalid_request_error", "request_too_large"),
    415: Shape(415, "invalid_request_error", "unsupported_media_type"),
}
_MAX_PATH_CHARS = 200


def shape_of(error: Exception, *, accepting: bool) -> Shape:
    """Return the shape of `error`. accepting: the server takes requests, so Overloaded means a full queue (429)."""
    if isinstance(error, Overloaded) and not accepting:
        return UNAVAILABLE
    for cls in type(error).__mro__:
        if cls in SHAPES:
            return SHAPES[cls]
    return BUG


def error_body(error: Exception, shape: Shape, served: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON document for `error`; a bug shows nothing of its inside. served: names `model` may take."""
    message = error.message if isinstance(error, GgufdeployError) and shape is not BUG else "Internal server error."
    fields: dict[str, Any] = {"message": message, "type": shape.type, "param": None, "code": shape.code}
    if isinstance(error, BadRequest):
        fields |= {"param": error.param, "code": error.code}
    elif isinstance(error, ModelNotServed):
        fields |= {"param": "model", "message": f"{message} This server has: {', '.join(served)}."}
    elif isinstance(error, ContextOverflow):
        fields |= {"n_prompt_tokens": error.prompt_tokens, "n_ctx": error.context_tokens}
    return {"error": fields}


def error_headers(error: Exception, shape: Shape) -> dict[str, str]:
    """Return what tells a client whether and when to try again."""
    headers: dict[str, str] = {}
    if shape.retry is not None:
        headers["x-should-retry"] = str(shape.retry).lower()
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    return headers


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `document` as JSON."""
    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")


def http_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error of the HTTP layer itself: no such path, no key, too large."""
    shape = HTTP_SHAPES.get(status, Shape(status, "invalid_request_error", None))
    retry = {} if shape.retry is None else {"x-should-retry": str(shape.retry).lower()}
    body = {"error": {"message": message, "type": shape.type, "param": None, "code": shape.code}}
    return json_response(body, status, {**retry, **(headers or {})})


class ErrorHandlers:
    """Starlette's exception handlers: every error leaves as JSON."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def known(self, request: Request, error: Exception) -> Response:
        """Answer for a GgufdeployError; one that is not about requests or the engine is a bug, raised again."""
        shape = shape_of(error, accepting=self._state.accepting)
        if shape is BUG:
            raise error
        return self._respond(error, shape)

    async def bug(self, request: Request, error: Exception) -> Response:
        """Answer 500; Starlette raises the error again afterwards and uvicorn logs its traceback."""
        return self._respond(error, BUG)

    async def http(self, request: Request, error: Exception) -> Response:
        """Answer for what Starlette's router raises: unknown path, wrong method."""
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        message, where = error.detail, f"{request.method} {request.url.path}"[:_MAX_PATH_CHARS]
        if error.status_code == 404:
            message = f"There is no {where}."
        elif error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
            message = f"{where} is not possible; use {headers['Allow']}."
        return http_error(error.status_code, message, headers)

    def _respond(self, error: Exception, shape: Shape) -> Response:
        headers = error_headers(error, shape)
        if self._state.inflight.draining:
            headers["connection"] = "close"
        return json_response(error_body(error, shape, self._state.config.served), shape.status, headers)
