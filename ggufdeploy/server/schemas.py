"""Request bodies, typed. Unknown fields are tolerated, null means default, anything else must have the right type.

Ranges: OpenAI's where it has the parameter, llama.cpp's meaning otherwise (common/sampling.cpp, tools/server).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ggufdeploy.engine.request import SamplingParams
from ggufdeploy.errors import BadRequest

MAX_SEQUENCES = 64

Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Breaker = Annotated[str, Meta(min_length=1, max_length=40)]
StopText = Annotated[str, Meta(max_length=1024)]

# Parameters that would change the answer and that this server does not have, with the values that mean "off".
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "grammar": ("",),
    "json_schema": ({},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "chat_template": ("",),
    "chat_template_kwargs": ({},),
    "lora": ([],),
    "bad_words": ([],),
}


class StreamOptions(Struct):
    """include_usage: send the usage chunk."""

    include_usage: bool | None = None


class GenerationBody(Struct, kw_only=True):
    """What both generation routes take. repetition_penalty is the same as repeat_penalty."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=8)] | None = None
    max_tokens: Count | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=64)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=4096)] | None = None
    typical_p: Probability | None = None
    top_n_sigma: Annotated[float, Meta(ge=-1, le=1e6)] | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    dynatemp_range: Annotated[float, Meta(ge=0, le=10)] | None = None
    dynatemp_exponent: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    dry_penalty_last_n: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    dry_sequence_breakers: Annotated[list[Breaker], Meta(max_length=32)] | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Meta(ge=0, le=10)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=1024)] | None = None

    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    suffix: Any = None
    grammar: Any = None
    json_schema: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    lora: Any = None
    bad_words: Any = None

    def check_supported(self) -> None:
        """Raise BadRequest for a parameter that would be ignored although it changes the answer."""
        for name, off in _UNSUPPORTED.items():
            value = getattr(self, name)
            if value is not None and not _is_off(value, off):
                raise unsupported(name)

    def wanted_logprobs(self) -> int | None:
        """Return how many alternatives to each token are to be told, None for no logprobs. Raises BadRequest."""
        raise NotImplementedError

    def stop_texts(self) -> tuple[str, ...]:
        """Return the stop strings, empty ones left out as llama-server does."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """Return `defaults` with what the request sets. Raises BadRequest for a logit_bias key that is no token id."""
        repeat = self.repeat_penalty if self.repetition_penalty is None else self.repetition_penalty
        wanted: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": None if self.seed is None or self.seed == -1 else self.seed,
            "repeat_penalty": repeat,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "penalty_last_tokens": self.repeat_last_n,
            "typical_p": self.typical_p,
            "top_n_sigma": None if self.top_n_sigma is None else max(self.top_n_sigma, 0.0),
            "xtc_probability": self.xtc_probability,
            "xtc_threshold": self.xtc_threshold,
            "dynatemp_range": self.dynatemp_range,
            "dynatemp_exponent": self.dynatemp_exponent,
            "dry_multiplier": self.dry_multiplier,
            "dry_base": self.dry_base,
            "dry_allowed_length": self.dry_allowed_length,
            "dry_last_tokens": self.dry_penalty_last_n,
            "dry_sequence_breakers": None if self.dry_sequence_breakers is None else tuple(self.dry_sequence_breakers),
            "mirostat": self.mirostat,
            "mirostat_tau": self.mirostat_tau,
            "mirostat_eta": self.mirostat_eta,
            "logit_bias": None if self.logit_bias is None else _logit_bias(self.logit_bias),
        }
        return msgspec.structs.replace(defaults, **{name: value for name, value in wanted.items() if value is not None})


class ContentPart(Struct):
    """One part of a message; only text is served."""

    type: str
    text: str | None = None


class CalledBody(Struct):
    """What a call calls. arguments: the text of a JSON object, or the object, as some clients send it."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCallBody(Struct):
    """A call in an assistant's message of the history."""

    function: CalledBody
    id: str | None = None


class FunctionBody(Struct):
    """A function the model may call. `strict` is accepted and not enforced."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(Struct):
    """A tool the model may use."""

    type: str
    function: FunctionBody


class MessageBody(Struct):
    """One chat message as sent. content may be null for an assistant's message alone.

    reasoning_content and reasoning are two names for the same.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: Any = None


class ChatBody(GenerationBody, kw_only=True):
    """POST /v1/chat/completions. A trailing assistant message is continued unless continue_final_message is false."""

    messages: Annotated[list[MessageBody], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=1024)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            message = "Invalid value for 'top_logprobs': it requires 'logprobs': true."
            raise BadRequest(message, param="top_logprobs", code="invalid_value")
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionBody(GenerationBody, kw_only=True):
    """POST /v1/completions. prompt: text, token ids, or a list of either, one completion (times n) each."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    echo: bool | None = None
    best_of: int | None = None
    logprobs: bool | TopLogprobs | None = None

    def wanted_logprobs(self) -> int | None:
        if self.logprobs is None or self.logprobs is False:
            return None
        if self.echo:
            message = "'logprobs' with 'echo' would have to cover the prompt, which is not supported."
            raise BadRequest(message, param="logprobs", code="unsupported_parameter")
        return int(self.logprobs)


class TokenizeBody(Struct, kw_only=True):
    """POST /tokenize. content and add_special are llama-server's names, prompt and add_special_tokens vLLM's."""

    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Struct, kw_only=True):
    """POST /detokenize. At most a million tokens: a text of several MB."""

    tokens: Annotated[list[TokenId], Meta(max_length=2**20)]


def unsupported(name: str) -> BadRequest:
    """Return the error for a parameter this server does not have."""
    return BadRequest(
        f"'{name}' is not supported by this server yet, and leaving it out of account would change the answer; "
        "send the request without it.",
        param=name,
        code="unsupported_parameter",
    )


def _is_off(value: Any, off: tuple[Any, ...]) -> bool:
    """Compare without taking False for 0."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in off)


def _logit_bias(biases: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < 2**31):
            message = f"Invalid value for 'logit_bias': the key {key[:40]!r} is not a token id."
            raise BadRequest(message, param="logit_bias", code="invalid_value")
    return tuple((int(key), bias) for key, bias in biases.items())
