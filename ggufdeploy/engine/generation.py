"""One running request: what the scheduler does not need to know."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ggufdeploy.engine.backend import Logits
from ggufdeploy.engine.detokenize import TextStream
from ggufdeploy.engine.logprobs import LogprobLog
from ggufdeploy.engine.request import GenerateRequest, TokenLogprob
from ggufdeploy.engine.sampling import Sampler, checked_argmax
from ggufdeploy.engine.scheduler import Job
from ggufdeploy.errors import BadRequest


@dataclass(eq=False, slots=True)
class Generation:
    """Belongs to the engine's thread. Times are time.monotonic() seconds.

    end_tokens: those that end it, not before `min_tokens`. logprobs: None when nobody asked.
    """

    job: Job
    sampler: Sampler
    text: TextStream
    end_tokens: frozenset[int]
    min_tokens: int
    logprobs: LogprobLog | None
    n_unsent: int = 0
    queued: float = 0.0
    started: float | None = None
    first_token: float = 0.0

    @property
    def is_plain_argmax(self) -> bool:
        """Whether all that is wanted of the logits is the best token."""
        return self.sampler.is_plain_argmax and self.job.n_generated >= self.min_tokens and self.logprobs is None

    def choose(self, row: Logits) -> int:
        """Return the next token; changes `row`. Raises EngineError when the logits are not numbers."""
        if self.logprobs is None:
            return self._choose(row)
        raw = row.copy()
        token = self._choose(row)
        self.logprobs.note(raw, token, self.text.n_chars)
        return token

    def _choose(self, row: Logits) -> int:
        if self.job.n_generated < self.min_tokens:
            row[list(self.end_tokens)] = -math.inf
        if self.sampler.is_plain_argmax:
            return checked_argmax(row)
        return self.sampler.sample(row, self.job.tokens)

    def take_logprobs(self, shown: str, *, ended: bool, finished: bool) -> tuple[TokenLogprob, ...]:
        """Return the logprobs that go with `shown`. ended: by its last token, which is no part of the text."""
        if self.logprobs is None:
            return ()
        if ended:
            self.logprobs.forget_last()
        # What comes after the beginning of a stop string is never shown.
        return self.logprobs.take_all() if finished and not self.text.stopped else self.logprobs.take(len(shown))


def check_limits(request: GenerateRequest, n_vocab: int) -> None:
    """Raise BadRequest for limits and stops that cannot be kept."""
    limit = request.max_tokens
    if limit is not None and limit < 1:
        raise BadRequest(f"max_tokens is {limit}, it must be at least 1", param="max_tokens")
    if limit is not None and request.min_tokens > limit:
        message = f"min_tokens is {request.min_tokens}, more than the limit of {limit} tokens"
        raise BadRequest(message, param="min_tokens")
    if not all(request.stop):
        raise BadRequest("stop strings must not be empty", param="stop")
    for token in request.stop_token_ids:
        if not 0 <= token < n_vocab:
            message = f"stop_token_ids names token {token}, the model has {n_vocab:,} tokens"
            raise BadRequest(message, param="stop_token_ids")
