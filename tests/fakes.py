"""Stand-ins that behave like the real thing: FakeEngine for the server, FakeBackend for the engine's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ggufdeploy.engine.backend import Chunk, Decoded, Logits
from ggufdeploy.engine.request import (
    Accepted,
    Alternative,
    ChatPrompt,
    Delta,
    EngineInfo,
    Event,
    Finished,
    GenerateRequest,
    Stats,
    TokenLogprob,
)
from ggufdeploy.engine.service import EngineStatus, Phase
from ggufdeploy.errors import BadRequest, EngineError, GgufdeployError, Overloaded

FAKE_INFO = EngineInfo(
    description="fake 1B Q4_0",
    context_tokens=4096,
    slots=4,
    n_vocab=256,
    context_train_tokens=8192,
    buffers=(),
    layer_devices=("CPU",),
    has_chat_template=True,
    load_s=0.1,
)


@dataclass(frozen=True)
class Script:
    """What the fake answers to one request. Every delta counts as one token.

    rejected: raised before Accepted. broken: raised after the deltas, instead of Finished.
    """

    deltas: tuple[str, ...] = ("Hello", " world", "!")
    reason: Literal["stop", "length"] = "stop"
    prompt_tokens: int = 5
    cached_tokens: int = 0
    prompt_end: str = ""
    rejected: GgufdeployError | None = None
    broken: GgufdeployError | None = None


@dataclass
class FakeEngine:
    """An EngineService without a model.

    script: one Script for all, or a function of the request. requests: all that were accepted or rejected, in order.
    cancelled: ids of the requests whose iterator was closed early. gate: while it is cleared, no delta leaves;
    `hold()` clears it, `release()` sets it. `max_tokens` is honoured, stop strings and sampling are not.
    """

    script: Script | Callable[[GenerateRequest], Script] = field(default_factory=Script)
    info: EngineInfo = FAKE_INFO
    phase: Phase = "ready"
    progress: float | None = None
    error: str | None = None
    requests: list[GenerateRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    stopped_with_grace_s: float | None = None
    _gate: asyncio.Event | None = None
    _started: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self) -> None:
        """Let no delta leave until `release()`; requests are still accepted."""
        self._gate = asyncio.Event()

    def release(self) -> None:
        """Let the deltas go."""
        if self._gate is not None:
            self._gate.set()

    async def wait_started(self) -> None:
        """Return once any request has been accepted."""
        await self._started.wait()

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(self.phase, self.progress, self.error, self.info if self.phase == "ready" else None)

    @property
    def stats(self) -> Stats:
        return Stats(
            running=len(self.running),
            slots=self.info.slots,
            kv_cells=self.info.context_tokens,
            requests_total=len(self.requests),
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self._refuse_unless_ready()
        self.requests.append(request)
        script = self.script(request) if callable(self.script) else self.script
        if script.rejected is not None:
            raise script.rejected
        self.running.add(request.id)
        finished = False
        try:
            async for event in self._play(request, script):
                yield event
            finished = True
        except GgufdeployError:
            finished = True
            raise
        finally:
            self.running.discard(request.id)
            if not finished:
                self.cancelled.append(request.id)

    async def _play(self, request: GenerateRequest, script: Script) -> AsyncGenerator[Event, None]:
        self._started.set()
        id = request.id
        yield Accepted(id, script.prompt_tokens, script.prompt_end)
        deltas = script.deltas[: request.max_tokens]
        for at, text in enumerate(deltas):
            await asyncio.sleep(0)
            if self._gate is not None:
                await self._gate.wait()
            yield Delta(id, text, 1, _logprobs(request, text, len("".join(deltas[:at]))))
        if script.broken is not None:
            raise script.broken
        yield Finished(
            id=id,
            reason="length" if len(deltas) < len(script.deltas) else script.reason,
            prompt_tokens=script.prompt_tokens,
            completion_tokens=len(deltas),
            cached_tokens=script.cached_tokens,
            prefill_s=0.01,
            decode_s=0.02,
            queue_s=0.005,
        )

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return one id per UTF-8 byte."""
        self._refuse_unless_ready()
        return [BOS] * add_special + list(text.encode())

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Undo `tokenize`."""
        self._refuse_unless_ready()
        if any(token >= self.info.n_vocab for token in tokens):
            raise BadRequest("There is no such token.", param="tokens")
        return bytes(tokens).decode(errors="replace")

    async def render(self, prompt: ChatPrompt) -> str:
        """Return role:content lines."""
        self._refuse_unless_ready()
        return "\n".join(f"{message.role}:{message.content}" for message in prompt.messages)

    async def stop(self, grace_s: float) -> None:
        self.phase = "stopped"
        self.stopped_with_grace_s = grace_s
        self.release()

    def _refuse_unless_ready(self) -> None:
        if self.phase in ("loading", "restarting"):
            raise Overloaded(f"The model is {self.phase}.", retry_after_s=1.0)
        if self.phase != "ready":
            raise EngineError(self.error or f"The engine is {self.phase}.")


def _logprobs(request: GenerateRequest, text: str, start_chars: int) -> tuple[TokenLogprob, ...]:
    """Return one entry for `text` as one token, as likely as the other one there is."""
    if request.logprobs is None:
        return ()
    top = (Alternative(text.encode(), -0.75), Alternative(b"other", -0.75))[: request.logprobs]
    return (TokenLogprob(text.encode(), -0.75, top, start_chars=start_chars),)


END, BOS = 256, 257


def next_letter(tokens: Sequence[int]) -> int:
    """Return a letter that depends on every token and its position: a mix-up in the cache changes the text."""
    return ord("a") + sum((position + 1) * token for position, token in enumerate(tokens)) % 26


def expected_text(prompt: Sequence[int], n_tokens: int) -> str:
    """Return what FakeBackend makes of a prompt, greedily."""
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(next_letter(tokens))
    return bytes(tokens[len(prompt) :]).decode()


class FakeBackend:
    """A Backend whose tokens are bytes, with a bounded cache and `answer` for a model.

    answer: the tokens resident in a sequence -> the most likely next one. It checks the contract: positions continue
    the sequence, batches fit, one chunk per sequence. rolls_back: False behaves like a recurrent model. outcomes: what
    the next calls of `decode` return instead of computing. batches: every batch that was decoded.
    """

    end_tokens = frozenset({END})
    bos_text = "<s>"
    eos_text = "</s>"
    adds_bos = False

    def __init__(
        self,
        *,
        cells: int = 64,
        slots: int = 4,
        n_batch: int = 16,
        answer: Callable[[Sequence[int]], int] = next_letter,
        rolls_back: bool = True,
        chat_template: str | None = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}",
    ) -> None:
        self.info = EngineInfo(
            description="fake",
            context_tokens=cells,
            slots=slots,
            n_vocab=258,
            context_train_tokens=cells,
            buffers=(),
            layer_devices=("CPU",),
            has_chat_template=chat_template is not None,
            load_s=0.0,
        )
        self.chat_template = chat_template
        self.resident: dict[int, list[int]] = {seq_id: [] for seq_id in range(slots)}
        self.batches: list[list[Chunk]] = []
        self.outcomes: list[Decoded] = []
        self._answer = answer
        self._rolls_back = rolls_back
        self._n_batch = n_batch
        self._logits: Logits = np.zeros((0, 258), np.float32)

    @property
    def cells_used(self) -> int:
        return sum(len(tokens) for tokens in self.resident.values())

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return [BOS] * (add_special and self.adds_bos) + list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def token_spelling(self, token: int) -> bytes:
        return {END: b"</s>", BOS: b"<s>"}.get(token) or self.token_bytes(token)

    def decode(self, chunks: Sequence[Chunk]) -> Decoded:
        assert chunks, "an empty batch"
        assert len({chunk.seq_id for chunk in chunks}) == len(chunks)
        n_tokens = sum(len(chunk.tokens) for chunk in chunks)
        assert 0 < n_tokens <= self._n_batch
        if self.outcomes and (outcome := self.outcomes.pop(0)) is not Decoded.OK:
            return outcome
        if self.cells_used + n_tokens > self.info.context_tokens:
            return Decoded.NO_ROOM
        rows = []
        for chunk in chunks:
            resident = self.resident[chunk.seq_id]
            assert chunk.tokens
            assert chunk.start == len(resident), f"position {chunk.start} after {len(resident)} tokens"
            resident.extend(chunk.tokens)
            if chunk.output:
                rows.append(np.zeros(258, np.float32))
                rows[-1][self._answer(resident)] = 10.0
        self._logits = np.array(rows, np.float32).reshape(len(rows), 258)
        self.batches.append([Chunk(c.seq_id, c.start, list(c.tokens), c.output) for c in chunks])
        return Decoded.OK

    def logits(self) -> Logits:
        assert len(self._logits), "no chunk asked for logits"
        return self._logits

    def seq_rm(self, seq_id: int, from_pos: int) -> bool:
        resident = self.resident[seq_id]
        if not self._rolls_back and 0 < from_pos < len(resident):
            resident.clear()
            return False
        del resident[from_pos:]
        return True

    def seq_cp(self, source: int, target: int, n_tokens: int) -> None:
        assert not self.resident[target]
        self.resident[target] = self.resident[source][:n_tokens]

    def pos_max(self, seq_id: int) -> int:
        return len(self.resident[seq_id]) - 1

    def close(self) -> None:
        self.resident.clear()
