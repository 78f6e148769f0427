"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from ggufdeploy.engine.request import Prompt, TextPrompt, TokenPrompt
from ggufdeploy.errors import BadRequest
from ggufdeploy.server.body import read_json
from ggufdeploy.server.generation import Answer, Choice, Generation
from ggufdeploy.server.logprobs import completion_logprobs
from ggufdeploy.server.prepare import engine_requests, make_head
from ggufdeploy.server.schemas import CompletionBody, unsupported
from ggufdeploy.server.state import ServerState
from ggufdeploy.server.streaming import COMPLETION


def completion_routes(state: ServerState) -> list[Route]:
    """Return the text completion route."""

    async def completions(request: Request) -> Generation:
        state.require_ready()
        body = await read_json(request, CompletionBody, state.config)
        state.require_model(body.model)
        return Generation(state, completion_answer(state, body))

    return [Route("/completions", completions, methods=["POST"])]


def completion_answer(state: ServerState, body: CompletionBody) -> Answer:
    """Return what is to be generated for `body`. Raises BadRequest."""
    body.check_supported()
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        raise unsupported("best_of")
    prompts = read_prompts(body)
    head = make_head(state, "cmpl")
    return Answer(
        head=head,
        dialect=COMPLETION,
        object=COMPLETION.object,
        requests=engine_requests(state, body, head, prompts, body.max_tokens),
        n=n,
        prefixes=tuple(_prefix(prompt, bool(body.echo)) for prompt in prompts for _ in range(n)),
        choices=_choices,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def read_prompts(body: CompletionBody) -> list[Prompt]:
    """Return the prompts: a flat list of numbers is one prompt of token ids. Raises BadRequest."""
    if isinstance(body.prompt, str):
        return [TextPrompt(body.prompt)]
    tokens = [item for item in body.prompt if isinstance(item, int)]
    if len(tokens) == len(body.prompt):
        return [TokenPrompt(tuple(tokens))]
    return [_prompt(item, at) for at, item in enumerate(body.prompt)]


def _prompt(item: str | int | list[int], at: int) -> Prompt:
    if isinstance(item, str):
        return TextPrompt(item)
    if isinstance(item, int):
        message = "Invalid value for 'prompt': token ids stand beside texts; put them in a list of their own."
        raise BadRequest(message, param=f"prompt.{at}", code="invalid_value")
    if not item:
        message = f"Invalid value for 'prompt.{at}': a list of token ids must not be empty."
        raise BadRequest(message, param=f"prompt.{at}", code="invalid_value")
    return TokenPrompt(tuple(item))


def _prefix(prompt: Prompt, echo: bool) -> str:
    if not echo:
        return ""
    if isinstance(prompt, TextPrompt):
        return prompt.text
    raise BadRequest(
        "'echo' is supported for prompts of text, not of token ids.", param="echo", code="unsupported_value"
    )


def _choices(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "text": choice.text,
            "logprobs": None if choice.logprobs is None else completion_logprobs(choice.logprobs),
            "finish_reason": choice.reason,
        }
        for index, choice in enumerate(choices)
    ]
