"""What the server measures of the requests it runs: times as a client sees them, and how each ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import TracebackType

from ggufdeploy.engine.request import Delta, Event, Finished
from ggufdeploy.errors import RequestError
from ggufdeploy.server.exposition import Histogram, header, sample

OUTCOMES = ("stop", "length", "cancelled", "refused", "failed")
"""stop, length: as the answer's finish_reason. cancelled: the client went away, or the server stopped. refused: bad,
too long, or too many. failed: an error of the engine."""

_WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_DURATIONS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class Meters:
    """Counts since the server started, over all engines it had. Used from the event loop alone."""

    def __init__(self) -> None:
        self.first_token = Histogram(
            "ggufdeploy_time_to_first_token_seconds",
            "From handing a request to the engine to its first text: queue, template, tokenizing and prefill.",
            _WAITS_S,
        )
        self.inter_token = Histogram(
            "ggufdeploy_inter_token_seconds",
            "Between two tokens of one text; a gap before several tokens is divided among them.",
            _TOKENS_S,
        )
        self.queue_wait = Histogram(
            "ggufdeploy_queue_wait_seconds",
            "Of finished requests: from the prompt's tokens being ready to its first batch.",
            _WAITS_S,
        )
        self.duration = Histogram(
            "ggufdeploy_request_duration_seconds",
            "Of finished requests: from handing it to the engine to the end of the text.",
            _DURATIONS_S,
        )
        self.cached_tokens = 0
        self.ended = dict.fromkeys(OUTCOMES, 0)

    def time_request(self) -> RequestTimer:
        """Return a context to run one engine request in; begin it when the request is handed over."""
        return RequestTimer(self)

    def lines(self) -> Iterator[str]:
        """Yield all of it in Prometheus' text format."""
        for histogram in (self.first_token, self.inter_token, self.queue_wait, self.duration):
            yield from histogram.lines()
        name = "ggufdeploy_requests_ended_total"
        yield from header(name, "counter", "Requests that ended, by how.")
        for outcome, count in self.ended.items():
            yield sample(name, count, {"outcome": outcome})
        name = "ggufdeploy_cached_prompt_tokens_total"
        yield from header(name, "counter", "Prompt tokens of finished requests that needed no prefill.")
        yield sample(name, self.cached_tokens)


class RequestTimer:
    """The clock of one engine request. A request behind `n` or several prompts counts as that many."""

    __slots__ = ("_began", "_finished", "_last", "_meters")

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._last: float | None = None
        self._finished: Finished | None = None

    def __enter__(self) -> RequestTimer:
        self._began = time.perf_counter()
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._meters.ended[self._outcome(error)] += 1

    def note(self, event: Event) -> None:
        """Take an event at the moment it came."""
        if isinstance(event, Delta):
            now = time.perf_counter()
            if self._last is None:
                self._meters.first_token.observe(now - self._began)
            else:
                n_tokens = max(event.n_tokens, 1)
                self._meters.inter_token.observe((now - self._last) / n_tokens, n_tokens)
            self._last = now
        elif isinstance(event, Finished):
            self._finished = event
            self._meters.queue_wait.observe(event.queue_s)
            self._meters.duration.observe(time.perf_counter() - self._began)
            self._meters.cached_tokens += event.cached_tokens

    def _outcome(self, error: BaseException | None) -> str:
        if self._finished is not None:
            return self._finished.reason
        if isinstance(error, asyncio.CancelledError):
            return "cancelled"
        return "refused" if isinstance(error, RequestError) else "failed"
