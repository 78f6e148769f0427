"""GET /openapi.json: OpenAPI 3.1, made of the routes and of the types their bodies are read with.

Source: OpenAPI Specification 3.1.1. Its schemas are JSON Schema 2020-12, which is what msgspec writes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggufdeploy import __version__
from ggufdeploy.server import answers as shapes
from ggufdeploy.server.errors import json_response
from ggufdeploy.server.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

JSON = "application/json"
EVENTS = "text/event-stream"

_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_RETRY_AFTER = {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}

ERRORS: Mapping[int, str] = {
    400: "The request is malformed, asks for what is not supported, or its prompt is longer than the context.",
    401: "The API key is missing or wrong.",
    403: "The Host or Origin header is not one this server answers to.",
    404: "No such model is served.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full.",
    500: "The engine or the server failed.",
    503: "The model is loading, being loaded again, could not be loaded, or the server is stopping.",
}
_ALWAYS = (403, 500)
_WITH_BODY = (400, 408, 413, 415, 503)


@dataclass(frozen=True)
class Contract:
    """What a route takes and gives. answers: media type -> type, for status 200. unready: the type it answers 503 with.

    errors: statuses beyond those that every route, or every route with a body, may answer. public: needs no API key.
    """

    summary: str
    answers: Mapping[str, Any]
    body: type | None = None
    unready: type | None = None
    errors: tuple[int, ...] = ()
    public: bool = False


CONTRACTS: Mapping[str, Contract] = {
    "chat_completions": Contract(
        "Answer a chat", {JSON: shapes.ChatAnswer, EVENTS: shapes.ChatChunk}, body=ChatBody, errors=(404, 429)
    ),
    "completions": Contract(
        "Continue a text", {JSON: shapes.TextAnswer, EVENTS: shapes.TextAnswer}, body=CompletionBody, errors=(404, 429)
    ),
    "list_models": Contract("List what is served", {JSON: shapes.ModelList}),
    "get_model": Contract("Describe a model; its id may contain slashes", {JSON: shapes.ModelCard}, errors=(404,)),
    "tokenize": Contract("Turn a text into tokens", {JSON: shapes.TokensAnswer}, body=TokenizeBody),
    "detokenize": Contract("Turn tokens into a text", {JSON: shapes.ContentAnswer}, body=DetokenizeBody),
    "apply_template": Contract(
        "Show the prompt a chat becomes", {JSON: shapes.PromptAnswer}, body=ChatBody, errors=(404,)
    ),
    "health": Contract(
        "Say whether requests are served", {JSON: shapes.HealthAnswer}, unready=shapes.HealthAnswer, public=True
    ),
    "livez": Contract("Say that the process answers", {JSON: shapes.HealthAnswer}, public=True),
    "plan": Contract("Show what was planned and what was allocated", {JSON: shapes.PlanAnswer}),
    "metrics": Contract("Give Prometheus its figures", {"text/plain": str}),
    "openapi": Contract("Show this document", {JSON: dict[str, Any]}),
}
"""Name of a route's endpoint -> its contract. A test compares it with the routes."""


def openapi_routes(others: Sequence[Route], *, needs_key: bool) -> list[Route]:
    """Return the route that describes `others` and itself. The document is made at the first request for it."""

    @functools.cache
    def document() -> dict[str, Any]:
        return openapi_document(routes, needs_key=needs_key)

    async def openapi(request: Request) -> Response:
        return json_response(document())

    own = [Route("/openapi.json", openapi)]
    routes = [*others, *own]
    return own


def openapi_document(routes: Sequence[Route], *, needs_key: bool) -> dict[str, Any]:
    """Return the document. Raises KeyError for a route without a contract."""
    contracts = [CONTRACTS[route.name] for route in routes]
    types: list[Any] = [shapes.ErrorAnswer]
    for contract in contracts:
        types += [*contract.answers.values(), *filter(None, (contract.body, contract.unready))]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route, contract in zip(routes, contracts, strict=True):
        item = paths.setdefault(_PATH_PARAMETER.sub(r"{\1}", route.path), {})
        for method in sorted((route.methods or set()) - {"HEAD"}):
            item[method.lower()] = _operation(route, contract, needs_key=needs_key)
    components: dict[str, Any] = {"schemas": schemas, "responses": _error_responses()}
    if needs_key:
        components["securitySchemes"] = _KEYS
    return {
        "openapi": "3.1.1",
        "info": {"title": "ggufdeploy", "version": __version__},
        "servers": [{"url": "/v1"}, {"url": "/"}],
        "security": [{name: []} for name in _KEYS] if needs_key else [],
        "paths": paths,
        "components": components,
    }


def _operation(route: Route, contract: Contract, *, needs_key: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": contract.summary}
    names = _PATH_PARAMETER.findall(route.path)
    if names:
        schema = {"type": "string"}
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if contract.body is not None:
        operation["requestBody"] = {"required": True, "content": _content({JSON: contract.body})}
    statuses = {*_ALWAYS, *contract.errors, *(_WITH_BODY if contract.body else ())}
    if contract.public:
        operation["security"] = []
    elif needs_key:
        statuses.add(401)
    responses: dict[str, Any] = {"200": {"description": contract.summary + ".", "content": _content(contract.answers)}}
    responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)}
    if contract.unready is not None:
        responses["503"] = {"description": "Not now.", "content": _content({JSON: contract.unready})}
    return operation | {"responses": responses}


def _error_responses() -> dict[str, Any]:
    """Return one response per status; those that ask for patience may say how much."""
    responses: dict[str, Any] = {}
    for status, text in ERRORS.items():
        responses[str(status)] = {"description": text, "content": _content({JSON: shapes.ErrorAnswer})}
        if status in (429, 503):
            responses[str(status)]["headers"] = {"Retry-After": _RETRY_AFTER}
    return responses


def _content(types: Mapping[str, Any]) -> dict[str, Any]:
    schemas, _ = msgspec.json.schema_components(types.values(), ref_template=_REF)
    return {media_type: {"schema": schema} for media_type, schema in zip(types, schemas, strict=True)}
