"""The engine's loop: one thread owns the model and takes every request one token further, again and again."""

from __future__ import annotations

import functools
import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from ggufdeploy.engine.backend import Backend, Decoded
from ggufdeploy.engine.detokenize import TextStream
from ggufdeploy.engine.dry import BreakerIndex
from ggufdeploy.engine.generation import Generation, check_limits
from ggufdeploy.engine.logprobs import LogprobLog
from ggufdeploy.engine.preparation import DeepThreads, PromptReader
from ggufdeploy.engine.request import (
    Accepted,
    ChatPrompt,
    Delta,
    EngineConfig,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    Question,
    Render,
    Started,
    Stats,
)
from ggufdeploy.engine.sampling import Sampler
from ggufdeploy.engine.scheduler import Job, Part, Scheduler
from ggufdeploy.engine.slots import SlotTable
from ggufdeploy.errors import BadRequest, ContextOverflow, EngineCrashed, EngineError, RequestError

# Far more than anybody waits for; the server refuses earlier. Bounds the memory of the queue.
MAX_WAITING = 4096
_PROMPT_END_TOKENS = 16  # enough for the assistant's header and a tag, also where a tag is spelled with several tokens

logger = logging.getLogger(__name__)


class Engine:
    """Serves requests with a backend. `submit`, `cancel`, `ask` and `stop` may be called from any thread.

    emit: called on the owner thread, once per step that changed anything, with the events and the statistics.
    """

    def __init__(
        self, backend: Backend, config: EngineConfig, emit: Callable[[tuple[Event, ...], Stats], None]
    ) -> None:
        info = backend.info
        self._backend = backend
        self._n_vocab = info.n_vocab
        self._context_tokens = info.context_tokens
        self._emit = emit
        self._end_tokens = backend.end_tokens
        slots = SlotTable(backend, info.slots, info.context_tokens)
        self._scheduler = Scheduler(slots, n_batch=config.n_batch, n_prefill=config.n_ubatch)
        self._reader = PromptReader(
            backend, context_tokens=info.context_tokens, n_vocab=info.n_vocab, template=config.chat_template
        )
        self._breakers = BreakerIndex(backend, info.n_vocab)
        self._threads = DeepThreads("prepare")
        self._chat_threads = DeepThreads("chat")  # a template may take seconds; plain prompts do not wait behind it
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._preparing: set[str] = set()
        self._wanted: set[str] = set()  # submitted and not cancelled until prepared; touched from any thread
        self._generations: dict[str, Generation] = {}
        self._events: list[Event] = []
        self._stopping = False
        self._n_prompt_tokens = self._n_completion_tokens = self._n_requests = self._n_steps = 0

    # From any thread

    def submit(self, request: GenerateRequest) -> None:
        """Run a request; Accepted or Failed follows. Its id must not be in flight."""
        self._wanted.add(request.id)
        self._calls.put(functools.partial(self._preparing.add, request.id))
        threads = self._chat_threads if isinstance(request.prompt, ChatPrompt) else self._threads
        threads.call(functools.partial(self._prepare, request))

    def cancel(self, id: str) -> None:
        """Forget a request within one step; no event follows. Unknown ids are ignored."""
        self._wanted.discard(id)
        self._calls.put(functools.partial(self._cancel, id))

    def ask(self, question: Question, reply: Callable[[tuple[int, ...] | str | RequestError], None]) -> None:
        """Call `reply` on another thread with the answer, or with why there is none."""

        def call() -> None:
            try:
                reply(self._reader.answer(question))
            except RequestError as error:
                reply(error)

        (self._chat_threads if isinstance(question, Render) else self._threads).call(call)

    def stop(self) -> None:
        """Let `run` return after the current step."""
        self._calls.put(self._stop)

    # On the owner thread

    def run(self) -> None:
        """Serve until `stop`; then fail what is left. The calling thread is the owner.

        Raises EngineCrashed when a device has no memory for a batch: the backend is of no use any more.
        """
        self._chat_threads.call(self._reader.start)
        while not self._stopping:
            self.turn(wait=True)
        for id in [*self._preparing, *self._generations]:
            self._events.append(Failed(id, "engine_error", "The engine was stopped."))
        self._flush()
        self._threads.close()
        self._chat_threads.close()
        self._reader.close()

    def turn(self, *, wait: bool) -> None:
        """Take the calls that came in and make one step. wait: sleep until there is something to do."""
        for call in self._incoming(wait and self._scheduler.is_idle):
            call()
        if not self._scheduler.is_idle and not self._stopping:
            self._step()
        self._flush()

    def stats(self) -> Stats:
        """Count what there is now."""
        slots = self._scheduler.slots
        return Stats(
            running=self._scheduler.n_running,
            waiting=self._scheduler.n_waiting + len(self._preparing),
            slots=slots.n_slots,
            kv_cells=slots.n_cells,
            kv_cells_used=slots.cells_used,
            prompt_tokens_total=self._n_prompt_tokens,
            completion_tokens_total=self._n_completion_tokens,
            requests_total=self._n_requests,
            steps_total=self._n_steps,
            preemptions_total=self._scheduler.n_sent_back,
        )

    def _incoming(self, wait: bool) -> Iterator[Callable[[], None]]:
        try:
            while True:
                yield self._calls.get(block=wait)
                wait = False
        except queue.Empty:
            return

    def _flush(self) -> None:
        events, self._events = tuple(self._events), []
        self._emit(events, self.stats())

    def _stop(self) -> None:
        self._stopping = True

    def _cancel(self, id: str) -> None:
        self._preparing.discard(id)
        generation = self._generations.pop(id, None)
        if generation is not None:
            self._scheduler.finish(generation.job)

    # Starting a request

    def _prepare(self, request: GenerateRequest) -> None:
        """Render and tokenize, on a preparation thread."""
        if request.id not in self._wanted:
            return  # cancelled while it waited for the thread
        self._wanted.discard(request.id)
        try:
            generation = self._generation(request)
        except RequestError as error:
            self._calls.put(functools.partial(self._refuse, _failed(request.id, error)))
        except Exception:  # a bug: it costs this request, its traceback goes to the log
            logger.exception("request %s could not be prepared", request.id)
            failed = Failed(request.id, "engine_error", "The request could not be prepared: internal error.")
            self._calls.put(functools.partial(self._refuse, failed))
        else:
            self._calls.put(functools.partial(self._start, generation))

    def _generation(self, request: GenerateRequest) -> Generation:
        check_limits(request, self._n_vocab)
        banned = self._end_tokens if request.ignore_eos else frozenset[int]()
        params = request.sampling
        breakers = self._breakers.find(params.dry_sequence_breakers) if params.dry_multiplier else {}
        sampler = Sampler(params, n_vocab=self._n_vocab, banned=banned, breakers=breakers)
        tokens = self._reader.read(request.prompt)
        room = self._context_tokens - len(tokens)
        limit = room if request.max_tokens is None else min(request.max_tokens, room)
        wanted = request.logprobs
        return Generation(
            Job(request.id, tokens, limit),
            sampler,
            TextStream(request.stop, spelled=request.spelled),
            end_tokens=self._end_tokens.union(request.stop_token_ids),
            min_tokens=request.min_tokens,
            logprobs=None if wanted is None else LogprobLog(wanted, self._backend.token_bytes),
        )

    def _start(self, generation: Generation) -> None:
        job = generation.job
        if job.id not in self._preparing:
            return  # cancelled meanwhile
        self._preparing.discard(job.id)
        if self._scheduler.n_waiting >= MAX_WAITING:
            self._events.append(Failed(job.id, "overloaded", f"{MAX_WAITING:,} requests are waiting already."))
            return
        generation.queued = time.monotonic()
        self._generations[job.id] = generation
        self._scheduler.add(job)
        self._n_requests += 1
        self._n_prompt_tokens += job.n_prompt
        prompt_end = self._spelling(job.tokens[-_PROMPT_END_TOKENS:]) if generation.text.spelled else ""
        self._events.append(Accepted(job.id, job.n_prompt, prompt_end))

    def _spelling(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._backend.token_spelling, tokens)).decode("utf-8", errors="replace")

    def _refuse(self, failed: Failed) -> None:
        if failed.id in self._preparing:
            self._preparing.discard(failed.id)
            self._events.append(failed)

    # One step

    def _step(self) -> None:
        parts = self._scheduler.plan()
        chunks = self._scheduler.chunks(parts)
        self._note_started(parts)
        outcome = self._backend.decode(chunks)
        self._n_steps += 1
        if outcome is Decoded.OK:
            self._scheduler.commit(parts, chunks)
            self._sample([part for part in parts if part.samples])
        elif outcome is Decoded.OUT_OF_MEMORY:
            message = f"A device ran out of memory while {len(parts)} requests were running."
            raise EngineCrashed(message, exit_code=None, out_of_memory=True)
        elif outcome is Decoded.BROKEN:
            self._fail(parts, "llama.cpp could not compute this request's batch.")
        elif not self._scheduler.no_room():
            self._fail(parts, "The KV cache has no room for this request although it runs alone.")

    def _note_started(self, parts: Sequence[Part]) -> None:
        """Say which requests begin, before a batch that may end the process."""
        fresh = [g for g in (self._generations[part.job.id] for part in parts) if g.started is None]
        for generation in fresh:
            generation.started = time.monotonic()
            self._events.append(Started(generation.job.id))
        if fresh:
            self._flush()

    def _sample(self, parts: Sequence[Part]) -> None:
        if not parts:
            return
        generations = [self._generations[part.job.id] for part in parts]
        logits = self._backend.logits()
        if all(generation.is_plain_argmax for generation in generations):
            best = logits.argmax(axis=1)
            if np.isfinite(logits[np.arange(len(best)), best]).all():
                for generation, token in zip(generations, best.tolist(), strict=True):
                    self._advance(generation, token)
                return
        for part, generation, row in zip(parts, generations, logits, strict=True):
            try:
                token = generation.choose(row)
            except EngineError as error:
                self._fail([part], error.message)
            else:
                self._advance(generation, token)

    def _advance(self, generation: Generation, token: int) -> None:
        job, text = generation.job, generation.text
        job.tokens.append(token)
        self._n_completion_tokens += 1
        generation.n_unsent += 1
        if job.n_generated == 1:
            generation.first_token = time.monotonic()
        ended = token in generation.end_tokens
        spell = self._backend.token_spelling if text.spelled else self._backend.token_bytes
        shown = "" if ended else text.push(spell(token))
        reason: Literal["stop", "length"] | None = None
        if ended or text.stopped:
            reason = "stop"
        elif job.n_generated >= job.max_new_tokens:
            reason = "length"
        if reason is not None:
            shown += text.flush()
        logprobs = generation.take_logprobs(shown, ended=ended, finished=reason is not None)
        if shown or logprobs:
            self._events.append(Delta(job.id, shown, generation.n_unsent, logprobs))
            generation.n_unsent = 0
        if reason is not None:
            self._finish(generation, reason)

    def _finish(self, generation: Generation, reason: Literal["stop", "length"]) -> None:
        job = generation.job
        self._scheduler.finish(job)
        del self._generations[job.id]
        started = generation.started
        assert started is not None
        self._events.append(
            Finished(
                id=job.id,
                reason=reason,
                prompt_tokens=job.n_prompt,
                completion_tokens=job.n_generated,
                cached_tokens=job.n_cached or 0,
                prefill_s=generation.first_token - started,
                decode_s=time.monotonic() - generation.first_token,
                queue_s=started - generation.queued,
            )
        )

    def _fail(self, parts: Sequence[Part], message: str) -> None:
        for part in parts:
            self._scheduler.drop(part.job)
            del self._generations[part.job.id]
            self._events.append(Failed(part.job.id, "engine_error", message))


def _failed(id: str, error: RequestError) -> Failed:
    if isinstance(error, ContextOverflow):
        return Failed(
            id,
            "context_overflow",
            error.message,
            prompt_tokens=error.prompt_tokens,
            context_tokens=error.context_tokens,
        )
    return Failed(id, "bad_request", error.message, error.param if isinstance(error, BadRequest) else None)
