"""Chat templates: Jinja from a file nobody has vetted, so rendered in a sandbox, in a process of its own.

The environment is the one templates are written for: Hugging Face transformers' `apply_chat_template`
(trim_blocks, lstrip_blocks, loop controls, raise_exception, strftime_now, tojson that leaves text readable).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ggufdeploy.engine.request import ChatMessage, ToolCall, ToolSpec
from ggufdeploy.errors import BadRequest

MAX_TEMPLATE_BYTES = 256 << 10
_MAX_REASON_CHARS = 500


class ChatTemplate:
    """A compiled template. Rendering is thread-safe; compiling and rendering may take for ever (see `rendering`).

    Raises BadRequest from the constructor when the template is too large or is not Jinja.
    """

    def __init__(self, source: str, *, bos_text: str = "", eos_text: str = "") -> None:
        size_bytes = len(source.encode("utf-8", errors="surrogatepass"))
        if size_bytes > MAX_TEMPLATE_BYTES:
            raise BadRequest(f"The chat template has {size_bytes:,} bytes, more than {MAX_TEMPLATE_BYTES:,}.")
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BadRequest(f"The model's chat template is broken at line {error.lineno}: {error.message}") from error
        except Exception as error:  # nested too deeply, a constant too large: it cannot be compiled
            raise BadRequest(f"The model's chat template is broken: {_reason(error)}") from error

    def render(
        self, messages: Sequence[ChatMessage], *, tools: Sequence[ToolSpec] = (), continue_last: bool = False
    ) -> str:
        """Return the prompt for `messages`, ending where the assistant is to speak.

        continue_last: it ends inside the last message instead, which the model will continue.
        Raises BadRequest when the template refuses the conversation (roles out of order, no system role, ...).
        """
        if not messages:
            raise BadRequest("messages is empty", param="messages")
        rendered = self._render_any(messages, tools, add_generation_prompt=not continue_last)
        return _cut_after(rendered, messages[-1].content) if continue_last else rendered

    def _render_any(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec], *, add_generation_prompt: bool
    ) -> str:
        """Give the arguments of calls as objects, which most templates want, else as text, as DeepSeek's do."""
        with_objects = [_as_dict(message, load_arguments=True) for message in messages]
        try:
            return self._render(with_objects, tools, add_generation_prompt)
        except BadRequest:
            if not any(message.tool_calls for message in messages):
                raise
            with_text = [_as_dict(message, load_arguments=False) for message in messages]
            with contextlib.suppress(BadRequest):
                return self._render(with_text, tools, add_generation_prompt)
            raise

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec], add_generation_prompt: bool
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=[_tool_as_dict(tool) for tool in tools] or None,
                documents=None,
                **self._tokens,
            )
        except Exception as error:  # a template is a program: whatever it trips over, it cannot render these messages
            raise BadRequest(
                f"The model's chat template refused the messages: {_reason(error)}", param="messages"
            ) from error


def missing_template() -> BadRequest:
    """Return the error for a chat request to a model without a template."""
    return BadRequest(
        "This model's file has no chat template: use /v1/completions, or put a chat_template into a profile.",
        param="messages",
    )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_MAX_REASON_CHARS]


def _as_dict(message: ChatMessage, *, load_arguments: bool) -> dict[str, Any]:
    """Return the message as templates know it; what it lacks is left out, since many ask `is defined`."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        out["name"] = message.name
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
        if not message.content:  # gpt-oss's name for it; its template takes no content beside it
            out["thinking"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [_call_as_dict(call, load_arguments) for call in message.tool_calls]
    return out


def _call_as_dict(call: ToolCall, load_arguments: bool) -> dict[str, Any]:
    arguments = json.loads(call.arguments_json) if load_arguments else call.arguments_json
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool_as_dict(tool: ToolSpec) -> dict[str, Any]:
    """Return the tool in OpenAI's shape; a function without parameters takes an empty object."""
    parameters = json.loads(tool.parameters_json) if tool.parameters_json else {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description or "", "parameters": parameters}
    return {"type": "function", "function": function}


def _cut_after(rendered: str, content: str) -> str:
    """Cut what the template writes after the last message; templates may trim the message itself."""
    for text in (content, content.strip()):
        index = rendered.rfind(text)
        if index >= 0:
            return rendered[: index + len(text)]
    raise BadRequest("The model's chat template changes the last message, so it cannot be continued.", param="messages")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Lets templates keep queues, as Kimi K2's does of call ids. All lists they get are made for one rendering."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return (isinstance(obj, list) and attr in ("append", "pop")) or super().is_safe_attribute(obj, attr, value)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    environment.filters["tojson"] = _tojson
    functions: Mapping[str, Callable[..., Any]] = {"raise_exception": _raise, "strftime_now": _strftime_now}
    environment.globals.update(functions)
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
