"""GET /v1/models and /v1/models/{id}: the one model served; an alias is found but not listed."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggufdeploy.server.errors import json_response
from ggufdeploy.server.state import ServerState


def model_routes(state: ServerState) -> list[Route]:
    """Return both model routes. An id may contain slashes ("owner/repo")."""

    async def list_models(request: Request) -> Response:
        return json_response({"object": "list", "data": [_model(state, state.config.model_id)]})

    async def get_model(request: Request) -> Response:
        name = request.path_params["id"]
        state.require_model(name)
        return json_response(_model(state, name))

    return [Route("/models", list_models), Route("/models/{id:path}", get_model)]


def _model(state: ServerState, name: str) -> dict[str, Any]:
    """max_model_len (vLLM's name): the longest request in tokens, null until the model is loaded."""
    info = state.engine.status.info
    return {
        "id": name,
        "object": "model",
        "created": state.config.created,
        "owned_by": "ggufdeploy",
        "max_model_len": None if info is None else info.context_tokens,
    }
