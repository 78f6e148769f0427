"""POST /tokenize: the token ids of a text."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggufdeploy.errors import BadRequest
from ggufdeploy.server.body import read_json
from ggufdeploy.server.errors import json_response
from ggufdeploy.server.schemas import TokenizeBody, unsupported
from ggufdeploy.server.state import ServerState


def tokenize_routes(state: ServerState) -> list[Route]:
    """Return the tokenize route. The begin-of-sequence token is not added."""

    async def tokenize(request: Request) -> Response:
        state.require_ready()
        body = await read_json(request, TokenizeBody, state.config)
        if body.add_special or body.add_special_tokens:
            raise unsupported("add_special" if body.add_special else "add_special_tokens")
        text = body.prompt if body.content is None else body.content
        if text is None:
            raise BadRequest("Invalid value for 'content': it is required.", param="content", code="invalid_value")
        tokens = await state.engine.tokenize(text)
        return json_response({"tokens": tokens, "count": len(tokens)})

    return [Route("/tokenize", tokenize, methods=["POST"])]
