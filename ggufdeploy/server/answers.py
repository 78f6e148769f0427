"""The shapes of the answers, for /openapi.json alone: what writes them fills dicts and bytes, which is quicker.

A test reads real answers with these types. Fields that are not always sent are `UNSET` by default.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from ggufdeploy.engine.request import EngineInfo

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(Struct):
    """cached_tokens: prompt tokens that needed no computing."""

    cached_tokens: int


class Usage(Struct):
    """Tokens of all prompts and choices; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CalledFunction(Struct):
    """arguments: the text of a JSON object."""

    name: str
    arguments: str


class AnswerCall(Struct):
    """A call the model makes."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Struct):
    """What the model said. content is null when it only makes calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnswerCall] | UnsetType = UNSET


class ChatChoice(Struct):
    """One whole text."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class ChatAnswer(Struct):
    """A whole chat answer. created: Unix time."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkFunction(Struct):
    """The name comes in a call's first chunk alone, the arguments after it."""

    arguments: str
    name: str | UnsetType = UNSET


class ChunkCall(Struct):
    """A piece of the call with this index. id and type come in its first chunk alone."""

    index: int
    function: ChunkFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChunkDelta(Struct):
    """role comes in a choice's first chunk alone, nothing in its last."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ChunkCall] | UnsetType = UNSET


class ChunkChoice(Struct):
    """A piece of one text."""

    index: int
    delta: ChunkDelta
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason | None


class ChatChunk(Struct):
    """The data of one event of a stream. choices is empty in the one that carries the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class TextChoice(Struct):
    """A whole text, or a piece of it in a stream, where finish_reason is null until the last."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason | None


class TextAnswer(Struct):
    """A whole text completion, and the data of one event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct):
    """max_model_len: the longest request in tokens, null until the model is loaded. created: Unix time."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class ModelList(Struct):
    """The one model served."""

    object: Literal["list"]
    data: list[ModelCard]


class TokensAnswer(Struct):
    """count: the number of tokens."""

    tokens: list[int]
    count: int


class ContentAnswer(Struct):
    """The text of the tokens."""

    content: str


class PromptAnswer(Struct):
    """The text the model's template makes."""

    prompt: str


class HealthAnswer(Struct):
    """progress: 0..1 of a load. error: why the engine failed or restarts."""

    status: Literal["ok", "loading", "restarting", "failed", "stopping"]
    progress: float | UnsetType | None = UNSET
    error: str | UnsetType | None = UNSET


class PlanAnswer(Struct):
    """plan: as `ggufdeploy plan --json` prints it. actual, memory: null until the model is loaded."""

    plan: Any
    actual: EngineInfo | None
    memory: Any


class ErrorFields(Struct):
    """param: the field to blame, dotted. n_prompt_tokens, n_ctx: of a prompt that is longer than the context."""

    message: str
    type: str
    param: str | None
    code: str | None
    n_prompt_tokens: int | UnsetType = UNSET
    n_ctx: int | UnsetType = UNSET


class ErrorAnswer(Struct):
    """Every error, also as the data of an event when the stream has begun."""

    error: ErrorFields
