"""Tools and tool calls of a chat request, checked and made the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ggufdeploy.engine.request import ToolCall, ToolSpec
from ggufdeploy.errors import BadRequest
from ggufdeploy.server.schemas import ChatBody, ToolBody, ToolCallBody
from ggufdeploy.server.toolcalls.choice import takes_tools
from ggufdeploy.server.toolcalls.pieces import Tool, Tools

_arguments_decoder = msgspec.json.Decoder(dict[str, Any])


def offered_tools(body: ChatBody, template: str | None) -> Sequence[ToolBody]:
    """Return the tools the model is shown, none with tool_choice "none". Raises BadRequest for what cannot be done."""
    _check_choice(body.tool_choice)
    if not body.tools or body.tool_choice == "none":
        return ()
    for at, tool in enumerate(body.tools):
        if tool.type != "function":
            message = f"Tools of type {tool.type[:40]!r} are not supported, only functions."
            raise BadRequest(message, param=f"tools.{at}.type", code="unsupported_value")
    if template is not None and not takes_tools(template):
        message = "This model's chat template does not show tools to the model; send the request without them."
        raise BadRequest(message, param="tools", code="unsupported_parameter")
    return body.tools


def tool_specs(tools: Sequence[ToolBody]) -> tuple[ToolSpec, ...]:
    """Return the tools for the template."""
    functions = [tool.function for tool in tools]
    return tuple(
        ToolSpec(
            each.name,
            each.description,
            None if each.parameters is None else msgspec.json.encode(each.parameters).decode(),
        )
        for each in functions
    )


def parsed_tools(tools: Sequence[ToolBody]) -> Tools:
    """Return the tools for the parser of the answer, by name."""
    found: dict[str, Tool] = {}
    for function in (tool.function for tool in tools):
        properties = (function.parameters or {}).get("properties")
        found[function.name] = Tool(function.name, properties if isinstance(properties, dict) else {})
    return found


def past_calls(calls: Sequence[ToolCallBody] | None, param: str) -> tuple[ToolCall, ...]:
    """Return the calls of an assistant's message. Raises BadRequest for arguments that are no JSON object."""
    return tuple(
        ToolCall(call.id or "", call.function.name, _arguments(call.function.arguments, f"{param}.{at}"))
        for at, call in enumerate(calls or ())
    )


def _arguments(arguments: str | dict[str, Any], param: str) -> str:
    if isinstance(arguments, dict):
        return msgspec.json.encode(arguments).decode()
    text = arguments if arguments.strip() else "{}"
    try:
        _arguments_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        param = f"{param}.function.arguments"
        message = f"Invalid value for '{param}': it is not the text of a JSON object."
        raise BadRequest(message, param=param, code="invalid_value") from error
    return text


def _check_choice(choice: Any) -> None:
    if choice in (None, "none", "auto"):
        return
    forced = choice == "required" or isinstance(choice, dict)
    reason = "a call cannot be forced by this server yet" if forced else "it is none of 'none' and 'auto'"
    raise BadRequest(
        f"Unsupported value for 'tool_choice': {reason}; send 'auto' or leave it out.",
        param="tool_choice",
        code="unsupported_parameter" if forced else "invalid_value",
    )
