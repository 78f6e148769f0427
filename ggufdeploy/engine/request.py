"""The engine's vocabulary: what it is told to load, what it is asked to generate, what it answers.

All types cross the process boundary between the API process and the worker as msgpack (msgspec).
"""

from __future__ import annotations

from typing import Literal

import msgspec

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


class TensorOverride(msgspec.Struct, frozen=True):
    """Tensors whose name matches the regular expression live on `device` ("CPU", "CUDA0", "RPC0[...]")."""

    pattern: str
    device: str


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every parameter given to llama.cpp; nothing is left to a default of the library.

    model_path: first shard. context_tokens: KV cells of the unified cache, shared by all slots, and the longest single
    request. n_gpu_layers: the output layer plus the last n-1 blocks.
    tensor_split: one share per device, empty for llama.cpp's own (free memory). load_mode: "mmap" or "none".
    threads: for decode and for prefill. rpc_endpoints: host:port of RPC devices to register first, in order.
    kv_unified: False gives each slot its own part of the cells. n_outputs_max: rows of logits one pass can give; None:
    one per slot.
    """

    model_path: str
    context_tokens: int
    slots: int
    n_gpu_layers: int
    n_batch: int
    n_ubatch: int
    key_type: KvType
    value_type: KvType
    flash_attention: bool
    split_mode: Literal["none", "layer", "row"]
    tensor_split: tuple[float, ...]
    overrides: tuple[TensorOverride, ...]
    load_mode: Literal["mmap", "none"]
    threads: int
    chat_template: str | None = None
    rpc_endpoints: tuple[str, ...] = ()
    kv_unified: bool = True
    n_outputs_max: int | None = None


class DeviceBuffers(msgspec.Struct, frozen=True):
    """Bytes llama.cpp really allocated on one device ("CUDA0"), or on the host ("CPU", all host buffers summed).

    repacked_bytes: host weights kept a second time in another order, where the first copy is mapped from the file; not
    part of weights_bytes.
    """

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    repacked_bytes: int = 0


class Ladder(msgspec.Struct, frozen=True):
    """The proof prompts after a load. rungs: tokens of each. slowest_s: of the largest batch, measured or expected."""

    rungs: tuple[int, ...]
    seconds: float
    slowest_s: float


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded. layer_devices: one device per block plus one for the output layer, as llama.cpp assigned them.

    buffers: actual allocation, to stand beside the plan. ladder: None before the proof prompts. chat_template: the one
    in force, a profile's or the file's.
    """

    description: str
    context_tokens: int
    slots: int
    n_vocab: int
    context_train_tokens: int
    buffers: tuple[DeviceBuffers, ...]
    layer_devices: tuple[str, ...]
    has_chat_template: bool
    load_s: float
    ladder: Ladder | None = None
    chat_template: str | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalties 0 (repeat 1) switch it off; seed None is random.

    penalty_last_tokens: how far back penalties look. typical_p 1, top_n_sigma 0, xtc_probability 0 (or a threshold
    above 0.5), dynatemp_range 0 and dry_multiplier 0 switch it off. mirostat: the version, 0 for none; with it only
    temperature and logit_bias count besides. Defaults of what is switched off: common/common.h.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_tokens: int = 64
    logit_bias: tuple[tuple[int, float], ...] = ()
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_tokens: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1


class ToolCall(msgspec.Struct, frozen=True):
    """A call the assistant made. arguments_json: the text of a JSON object."""

    id: str
    name: str
    arguments_json: str


class ToolSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function the model may call. parameters_json: the text of a JSON schema."""

    name: str
    description: str | None = None
    parameters_json: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message for the chat template, as plain text parts joined.

    tool_call_id: the call a message with role "tool" answers. reasoning: what an assistant thought aloud.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat"):
    """Rendered with the model's template in the worker. continue_last: the last (assistant) message is continued."""

    messages: tuple[ChatMessage, ...]
    continue_last: bool = False
    tools: tuple[ToolSpec, ...] = ()


class TextPrompt(msgspec.Struct, frozen=True, tag="text"):
    """Tokenized with the model's begin-of-sequence rule; special tokens in the text are recognised."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens"):
    """Token ids, used as they are."""

    tokens: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """Answered with token ids. add_special: with what the model puts around a text, such as begin-of-sequence."""

    text: str
    add_special: bool = False


class Decode(msgspec.Struct, frozen=True, tag="decode"):
    """Answered with the text, control tokens spelled out."""

    tokens: tuple[int, ...]


class Render(msgspec.Struct, frozen=True, tag="render"):
    """Answered with the text that the model's template makes of the messages."""

    prompt: ChatPrompt


Question = Encode | Decode | Render
"""What can be asked of the model's vocabulary and template, without computing anything."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. id: unique among requests in flight. max_tokens None: up to the context's edge.

    stop_token_ids: end the generation like the model's own end tokens, without being shown. min_tokens: neither kind
    is chosen before so many tokens; stop strings still end it. logprobs: how many alternatives to each token are told;
    None: no logprobs at all. spelled: control tokens appear in the text by their names, and Accepted tells the prompt's
    end.
    """

    id: str
    prompt: Prompt
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    spelled: bool = False


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """First event of every request that will run: the prompt is tokenized and fits. Not yet prefilled.

    prompt_end: the text of its last tokens for a request with `spelled`, else "".
    """

    id: str
    prompt_tokens: int
    prompt_end: str = ""


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The request is in the batch computed next. For the client alone, which drops it: it tells what a crash cost."""

    id: str


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    """A token that could have been chosen. data: what it stands for, b"" for control tokens; logprob: natural."""

    data: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A generated token. top: the most likely ones, the best first. start_chars: characters of text before it."""

    data: bytes
    logprob: float
    top: tuple[Alternative, ...]
    start_chars: int


class Delta(msgspec.Struct, frozen=True, tag="delta", omit_defaults=True):
    """Text produced by one step: whole UTF-8 characters, stop strings already held back. n_tokens: tokens behind it.

    logprobs: of the tokens whose text begins here, if asked for. Then the text may be empty.
    """

    id: str
    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """Last event of a request that succeeded. cached_tokens: prompt tokens that needed no prefill.

    queue_s: from the prompt's tokens being ready to the first batch; prefill_s and decode_s follow it.
    """

    id: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefill_s: float
    decode_s: float
    queue_s: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Last event of a request that failed. kind names the class in errors.py that the client raises."""

    id: str
    kind: Literal["bad_request", "context_overflow", "overloaded", "engine_error"]
    message: str
    param: str | None = None
    prompt_tokens: int | None = None
    context_tokens: int | None = None


Event = Accepted | Started | Delta | Finished | Failed


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. kv_cells_used: cells held by running requests and by cached prefixes. preemptions_total: how often
    a running request went back to the queue.

    The totals are those of one worker and begin again with the next; restarts_total counts these.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    kv_cells: int = 0
    kv_cells_used: int = 0
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0
    requests_total: int = 0
    steps_total: int = 0
    preemptions_total: int = 0
    restarts_total: int = 0
