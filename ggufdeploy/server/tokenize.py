"""POST /tokenize, /detokenize and /apply-template: what the vocabulary and the template make of a request.

The shapes are llama-server's (tools/server/README.md): {"tokens"}, {"content"} and {"prompt"}.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggufdeploy.errors import BadRequest
from ggufdeploy.server.body import read_json
from ggufdeploy.server.chat import chat_prompt
from ggufdeploy.server.errors import json_response
from ggufdeploy.server.schemas import ChatBody, DetokenizeBody, TokenizeBody, unsupported
from ggufdeploy.server.state import ServerState
from ggufdeploy.server.tools import offered_tools


def tokenize_routes(state: ServerState) -> list[Route]:
    """Return the three routes; they compute nothing with the model and wait for no slot."""

    async def tokenize(request: Request) -> Response:
        state.require_ready()
        body = await read_json(request, TokenizeBody, state.config)
        tokens = await state.engine.tokenize(_text(body), add_special=bool(body.add_special or body.add_special_tokens))
        return json_response({"tokens": tokens, "count": len(tokens)})

    async def detokenize(request: Request) -> Response:
        state.require_ready()
        body = await read_json(request, DetokenizeBody, state.config)
        return json_response({"content": await state.engine.detokenize(body.tokens)})

    async def apply_template(request: Request) -> Response:
        state.require_ready()
        body = await read_json(request, ChatBody, state.config)
        state.require_model(body.model)
        tools = offered_tools(body, state.chat_template)
        return json_response({"prompt": await state.engine.render(chat_prompt(body, tools))})

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", apply_template, methods=["POST"]),
    ]


def _text(body: TokenizeBody) -> str:
    """Return the text to tokenize. Raises BadRequest for none, and for options that would change the answer."""
    if body.parse_special is False:
        raise unsupported("parse_special")
    if body.with_pieces:
        raise unsupported("with_pieces")
    text = body.prompt if body.content is None else body.content
    if text is None:
        raise BadRequest("Invalid value for 'content': it is required.", param="content", code="invalid_value")
    return text
