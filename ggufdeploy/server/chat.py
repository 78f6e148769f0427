"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import Route

from ggufdeploy.engine.request import ChatMessage, ChatPrompt
from ggufdeploy.errors import BadRequest
from ggufdeploy.server.body import read_json
from ggufdeploy.server.generation import Answer, Choice, Generation
from ggufdeploy.server.logprobs import chat_logprobs
from ggufdeploy.server.prepare import engine_requests, make_head
from ggufdeploy.server.schemas import ChatBody, ContentPart, MessageBody, ToolBody, unsupported
from ggufdeploy.server.state import ServerState
from ggufdeploy.server.streaming import CHAT
from ggufdeploy.server.toolcalls.choice import choose
from ggufdeploy.server.tools import offered_tools, parsed_tools, past_calls, tool_specs


def chat_routes(state: ServerState) -> list[Route]:
    """Return the chat route."""

    async def chat_completions(request: Request) -> Generation:
        state.require_ready()
        body = await read_json(request, ChatBody, state.config)
        state.require_model(body.model)
        return Generation(state, chat_answer(state, body))

    return [Route("/chat/completions", chat_completions, methods=["POST"])]


def chat_answer(state: ServerState, body: ChatBody) -> Answer:
    """Return what is to be generated for `body`. Raises BadRequest."""
    body.check_supported()
    tools = offered_tools(body, state.chat_template)
    parallel = body.parallel_tool_calls is not False
    make_parser = choose(state.chat_template or "", parsed_tools(tools), parallel=parallel)
    head = make_head(state, "chatcmpl")
    limit = body.max_completion_tokens or body.max_tokens
    requests = engine_requests(state, body, head, [chat_prompt(body, tools)], limit)
    if make_parser is not None:
        requests = tuple(msgspec.structs.replace(request, spelled=True) for request in requests)
    return Answer(
        head=head,
        dialect=CHAT,
        object="chat.completion",
        requests=requests,
        n=len(requests),
        prefixes=("",) * len(requests),
        choices=_choices,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        make_parser=make_parser,
    )


def chat_prompt(body: ChatBody, tools: Sequence[ToolBody]) -> ChatPrompt:
    """Return the messages for the template. Raises BadRequest for content that cannot be served."""
    messages = tuple(_message(message, f"messages.{at}") for at, message in enumerate(body.messages))
    return ChatPrompt(messages, continue_last=_continues(body), tools=tool_specs(tools))


def _continues(body: ChatBody) -> bool:
    """Whether the last message is to be continued: an assistant's is, as llama-server does, unless told otherwise."""
    roles = [message.role for message in body.messages]
    ends_with_assistant = roles[-1] == "assistant"
    if roles[-2:] == ["assistant", "assistant"]:
        raise _bad("the last two messages are both the assistant's", "messages")
    if body.continue_final_message and body.add_generation_prompt:
        raise _bad("it excludes 'add_generation_prompt'", "continue_final_message")
    if body.continue_final_message and not ends_with_assistant:
        raise _bad("the last message is not the assistant's", "continue_final_message")
    if body.add_generation_prompt is False and not ends_with_assistant:
        raise unsupported("add_generation_prompt")
    return ends_with_assistant and body.continue_final_message is not False and not body.add_generation_prompt


def _message(message: MessageBody, param: str) -> ChatMessage:
    if message.function_call:
        raise unsupported(f"{param}.function_call")
    if message.tool_calls and message.role != "assistant":
        raise _bad("only the assistant makes calls", f"{param}.tool_calls")
    if message.content is None and message.role != "assistant":
        raise _bad("it is required", f"{param}.content")
    # Templates know "system"; OpenAI's newer name for it means the same.
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(
        role,
        _text(message.content, f"{param}.content"),
        message.name,
        tool_calls=past_calls(message.tool_calls, f"{param}.tool_calls"),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning_content or message.reasoning,
    )


def _text(content: str | list[ContentPart] | None, param: str) -> str:
    """Return text parts joined by line breaks, as llama.cpp's chat parser joins them (common/chat.cpp)."""
    if content is None or isinstance(content, str):
        return content or ""
    for at, part in enumerate(content):
        if part.type not in ("text", "input_text"):
            message = f"Content of type {part.type[:40]!r} is not supported: this model is served for text alone."
            raise BadRequest(message, param=f"{param}.{at}.type", code="unsupported_value")
        if part.text is None:
            raise _bad("it is required", f"{param}.{at}.text")
    return "\n".join(part.text or "" for part in content)


def _choices(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "message": _answered(choice),
            "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
            "finish_reason": choice.reason,
        }
        for index, choice in enumerate(choices)
    ]


def _answered(choice: Choice) -> dict[str, Any]:
    if choice.message is not None:
        return choice.message.document()
    return {"role": "assistant", "content": choice.text, "refusal": None}


def _bad(reason: str, param: str) -> BadRequest:
    return BadRequest(f"Invalid value for '{param}': {reason}.", param=param, code="invalid_value")
