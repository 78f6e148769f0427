"""Chat templates: Jinja from a file nobody has vetted, so rendered in a sandbox, in a process of its own.

The environment is the one templates are written for: Hugging Face transformers' `apply_chat_template`
(trim_blocks, lstrip_blocks, loop controls, raise_exception, strftime_now, tojson that leaves text readable).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ggufdeploy.engine.request import ChatMessage
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

    def render(self, messages: Sequence[ChatMessage], *, continue_last: bool = False) -> str:
        """Return the prompt for `messages`, ending where the assistant is to speak.

        continue_last: it ends inside the last message instead, which the model will continue.
        Raises BadRequest when the template refuses the conversation (roles out of order, no system role, ...).
        """
        if not messages:
            raise BadRequest("messages is empty", param="messages")
        rendered = self._render(messages, add_generation_prompt=not continue_last)
        return _cut_after(rendered, messages[-1].content) if continue_last else rendered

    def _render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=[_as_dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
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


def _as_dict(message: ChatMessage) -> dict[str, str]:
    out = {"role": message.role, "content": message.content}
    if message.name is not None:
        out["name"] = message.name
    return out


def _cut_after(rendered: str, content: str) -> str:
    """Cut what the template writes after the last message; templates may trim the message itself."""
    for text in (content, content.strip()):
        index = rendered.rfind(text)
        if index >= 0:
            return rendered[: index + len(text)]
    raise BadRequest("The model's chat template changes the last message, so it cannot be continued.", param="messages")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
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
