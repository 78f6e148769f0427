"""The loop with the fake backend: requests in, events out."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from ggufdeploy.engine.backend import Decoded
from ggufdeploy.engine.engine import Engine
from ggufdeploy.engine.request import (
    Accepted,
    ChatMessage,
    ChatPrompt,
    Delta,
    EngineConfig,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    Prompt,
    SamplingParams,
    Started,
    Stats,
    TextPrompt,
    TokenPrompt,
)
from ggufdeploy.errors import EngineCrashed
from tests.fakes import BOS, END, FakeBackend, expected_text

GREEDY = SamplingParams(temperature=0.0)


class Harness:
    """An engine driven by hand: `until` takes steps until as many requests ended."""

    def __init__(self, backend: FakeBackend, config: EngineConfig) -> None:
        self.backend = backend
        self.steps: list[tuple[Event, ...]] = []
        self.stats = Stats()
        self.engine = Engine(backend, config, self._emit)

    def _emit(self, events: tuple[Event, ...], stats: Stats) -> None:
        if events:
            self.steps.append(events)
        self.stats = stats

    @property
    def events(self) -> list[Event]:
        return [event for step in self.steps for event in step]

    def of(self, id: str) -> list[Event]:
        return [event for event in self.events if event.id == id]

    def text(self, id: str) -> str:
        return "".join(event.text for event in self.of(id) if isinstance(event, Delta))

    def submit(self, id: str, prompt: str | Prompt = "hello", max_tokens: int | None = 8, **kwargs: object) -> None:
        fields = {"sampling": GREEDY, "prompt": TextPrompt(prompt) if isinstance(prompt, str) else prompt, **kwargs}
        self.engine.submit(GenerateRequest(id=id, max_tokens=max_tokens, **fields))  # type: ignore[arg-type]

    def accept(self, *ids: str) -> None:
        """Submit nothing and step nothing: only wait until these requests are prepared and queued."""
        while not self.engine._generations.keys() >= set(ids):
            for call in self.engine._incoming(wait=True):
                call()

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(1000):
            if done():
                return
            self.engine.turn(wait=True)
        raise AssertionError(f"never came true; events: {self.events}")

    def until_ended(self, n: int = 1) -> None:
        self.until(lambda: sum(isinstance(event, (Finished, Failed)) for event in self.events) >= n)


@pytest.fixture
def harness(fake_config) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def make(**kwargs: object) -> Harness:
        made.append(Harness(FakeBackend(**kwargs), fake_config))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.engine.stop()
        each.engine.run()


def test_a_request_is_accepted_streamed_and_finished(harness):
    h = harness()
    h.submit("a")
    h.until_ended()
    first, started, *deltas, last = h.of("a")
    assert (first, started) == (Accepted("a", 5), Started("a"))
    assert h.text("a") == expected_text(b"hello", 8)
    assert sum(delta.n_tokens for delta in deltas) == 8
    assert (last.reason, last.prompt_tokens, last.completion_tokens, last.cached_tokens) == ("length", 5, 8, 0)


def test_streams_run_side_by_side(harness):
    h = harness()
    for id in "abc":
        h.submit(id, prompt=id * 4)
    h.accept("a", "b", "c")
    h.until_ended(3)
    together = [step for step in h.steps if {e.id for e in step if isinstance(e, Delta)} == {"a", "b", "c"}]
    assert len(together) >= 5
    assert {id: h.text(id) for id in "abc"} == {id: expected_text((id * 4).encode(), 8) for id in "abc"}


def test_a_queued_request_starts_when_a_slot_is_free(harness):
    h = harness(slots=1)
    for id in "ab":
        h.submit(id, prompt=id)
        h.accept(id)
    h.until_ended(2)
    ids = [e.id for e in h.events if isinstance(e, Delta)]
    assert ids == sorted(ids)


def test_an_end_token_stops_without_being_shown(harness):
    h = harness(answer=lambda tokens: END if len(tokens) >= 7 else ord("x"))
    h.submit("a", max_tokens=None)
    h.until_ended()
    assert h.text("a") == "xx"
    assert (h.events[-1].reason, h.events[-1].completion_tokens) == ("stop", 3)


def test_a_stop_token_of_the_request_stops_without_being_shown(harness):
    h = harness(answer=lambda tokens: ord("y") if len(tokens) >= 7 else ord("x"))
    h.submit("a", max_tokens=None, stop_token_ids=(ord("y"),))
    h.until_ended()
    assert h.text("a") == "xx"
    assert (h.events[-1].reason, h.events[-1].completion_tokens) == ("stop", 3)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=0.1, seed=1)])
def test_nothing_ends_a_generation_before_min_tokens(harness, sampling):
    h = harness(answer=lambda tokens: END if len(tokens) % 2 else ord("y"))
    h.submit("a", max_tokens=None, min_tokens=4, stop_token_ids=(ord("y"),), sampling=sampling)
    h.until_ended()
    assert (h.events[-1].reason, h.events[-1].completion_tokens) == ("stop", 5)
    assert "y" not in h.text("a")


def spelling(text: bytes) -> Callable[..., int]:
    """Return an answer that follows the 5 tokens of "hello" with `text`."""
    return lambda tokens: text[len(tokens) - 5] if len(tokens) - 5 < len(text) else END


@pytest.mark.parametrize(
    ("said", "fields", "text", "told"),
    [
        (b"abc", {}, "abc", b"abc"),
        ("é!".encode(), {}, "é!", "é!".encode()),
        ("é".encode(), {"max_tokens": 1}, "", "é".encode()[:1]),
        (b"ab##c", {"stop": ("##",)}, "ab", b"ab"),
        (b"ab#c", {"stop": ("##",)}, "ab#c", b"ab#c"),
        (b"ab#", {"stop": ("##",)}, "ab#", b"ab#"),
    ],
)
def test_logprobs_cover_the_tokens_of_the_text_and_no_others(harness, said, fields, text, told):
    h = harness(answer=spelling(said))
    h.submit("a", logprobs=2, **fields)
    h.until_ended()
    entries = [entry for event in h.of("a") if isinstance(event, Delta) for entry in event.logprobs]
    assert h.text("a") == text
    assert b"".join(entry.data for entry in entries) == told
    assert all(entry.top[0].data == entry.data and len(entry.top) == 2 for entry in entries)


def test_logprobs_are_the_models_whatever_is_done_to_choose(harness):
    h = harness(answer=spelling(b"x"))
    h.submit(
        "a", max_tokens=2, min_tokens=2, logprobs=1, sampling=SamplingParams(temperature=0, logit_bias=((65, 50),))
    )
    h.until_ended()
    (first, second) = [entry for event in h.of("a") if isinstance(event, Delta) for entry in event.logprobs]
    total = math.log(math.exp(10) + 257)
    assert (first.data, first.logprob) == (b"A", pytest.approx(-total, rel=1e-5))
    assert first.top[0].data == b"x"
    assert (second.top[0].data, second.top[0].logprob) == (b"", pytest.approx(10 - total, abs=1e-5))


@pytest.mark.parametrize(("breakers", "text"), [((), "abcab"), (("b",), "abcabcabc")])
def test_dry_ends_a_repetition_unless_a_breaker_lies_within(harness, breakers, text):
    h = harness(answer=lambda tokens: b"abc"[(len(tokens) - 5) % 3])
    dry = SamplingParams(temperature=0, dry_multiplier=20.0, dry_base=1.0, dry_sequence_breakers=breakers)
    h.submit("a", max_tokens=9, sampling=dry)
    h.until_ended()
    assert h.text("a").startswith(text)
    assert breakers or not h.text("a").startswith("abcabc")


def test_ignore_eos_never_ends_by_itself(harness):
    h = harness(answer=lambda tokens: END)
    h.submit("a", max_tokens=4, ignore_eos=True)
    h.until_ended()
    assert (h.events[-1].reason, h.events[-1].completion_tokens) == ("length", 4)


def test_a_stop_string_ends_the_text_before_it(harness):
    whole = expected_text(b"hello", 8)
    h = harness()
    h.submit("a", stop=(whole[3:5],))
    h.until_ended()
    assert h.text("a") == whole[:3]
    assert (h.events[-1].reason, h.events[-1].completion_tokens) == ("stop", 5)


def test_text_held_back_for_a_stop_string_comes_at_the_end(harness):
    whole = expected_text(b"hello", 8)
    h = harness()
    h.submit("a", stop=(whole[-2:] + "never",))
    h.until_ended()
    assert h.text("a") == whole


def test_without_max_tokens_generation_ends_at_the_edge_of_the_context(harness):
    h = harness(cells=64)
    h.submit("a", prompt="p" * 50, max_tokens=None)
    h.until_ended()
    assert (h.events[-1].reason, h.events[-1].completion_tokens) == ("length", 14)


def test_a_prompt_as_long_as_the_context_is_refused_with_both_numbers(harness):
    h = harness(cells=64)
    h.submit("a", prompt="p" * 64)
    h.until_ended()
    (failed,) = h.events
    assert (failed.kind, failed.prompt_tokens, failed.context_tokens) == ("context_overflow", 64, 64)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": TextPrompt("")}, "prompt"),
        ({"prompt": TokenPrompt((1, 9999))}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ("a", "")}, "stop"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop_token_ids": (1, 258)}, "stop_token_ids"),
        ({"sampling": SamplingParams(top_p=2.0)}, "top_p"),
    ],
)
def test_a_bad_request_names_its_field_and_costs_nothing(harness, fields, param):
    h = harness()
    h.engine.submit(GenerateRequest(id="a", **{"prompt": TextPrompt("x"), **fields}))
    h.until_ended()
    assert [(e.kind, e.param) for e in h.events] == [("bad_request", param)]
    assert not h.backend.batches


def test_chat_is_rendered_with_the_models_template(harness):
    h = harness()
    h.submit("a", prompt=ChatPrompt((ChatMessage("user", "hi"),)))
    h.until_ended()
    assert h.backend.batches[0][0].tokens == list(b"user:hi;")


@pytest.mark.parametrize(("spelled", "text", "prompt_end"), [(True, "<s>a<s>", "78901234567890hi"), (False, "a", "")])
def test_control_tokens_and_the_prompts_end_are_told_where_asked_for(harness, spelled, text, prompt_end):
    h = harness(answer=lambda tokens: BOS if tokens[-1] != BOS else ord("a"))
    h.submit("a", prompt="1234567890" * 2 + "hi", max_tokens=3, spelled=spelled)
    h.until_ended()
    assert h.of("a")[0] == Accepted("a", 22, prompt_end)
    assert h.text("a") == text


def test_chat_without_a_template_says_what_to_do(harness):
    h = harness(chat_template=None)
    h.submit("a", prompt=ChatPrompt((ChatMessage("user", "hi"),)))
    h.until_ended()
    assert "profile" in h.events[0].message


def test_cancelling_frees_the_slot_within_one_step(harness):
    h = harness(slots=1)
    h.submit("a", max_tokens=40)
    h.until(lambda: h.text("a") != "")
    h.engine.cancel("a")
    h.engine.turn(wait=True)
    assert h.stats.running == 0
    assert not any(isinstance(e, (Finished, Failed)) for e in h.events)


def test_cancelling_before_the_start_and_after_the_end_is_harmless(harness):
    h = harness()
    h.submit("a")
    h.engine.cancel("a")
    h.submit("b")
    h.until_ended()
    h.engine.cancel("b")
    h.engine.cancel("unknown")
    h.engine.turn(wait=True)
    assert {e.id for e in h.events} <= {"a", "b"}
    assert not h.text("a")
    assert (h.stats.running, h.stats.waiting) == (0, 0)


def test_a_broken_batch_fails_its_requests_and_later_ones_work(harness):
    h = harness()
    h.backend.outcomes = [Decoded.OK, Decoded.BROKEN]
    h.submit("a")
    h.until_ended()
    assert h.events[-1].kind == "engine_error"
    h.submit("b", prompt="other")
    h.until_ended(2)
    assert h.text("b") == expected_text(b"other", 8)


def test_a_cache_that_refuses_although_cells_are_free_fails_only_who_runs_alone(harness):
    h = harness()
    h.backend.outcomes = [Decoded.NO_ROOM]
    h.submit("a")
    h.until_ended()
    assert "runs alone" in h.events[-1].message


def test_streams_survive_a_cache_that_refuses_a_shared_batch(harness):
    h = harness()
    for id in "ab":
        h.submit(id, prompt=id * 3, max_tokens=12)
    h.accept("a", "b")
    h.until(lambda: bool(h.text("a")) and bool(h.text("b")))
    h.backend.outcomes = [Decoded.NO_ROOM]
    h.until_ended(2)
    assert {id: h.text(id) for id in "ab"} == {id: expected_text((id * 3).encode(), 12) for id in "ab"}
    assert h.stats.preemptions_total == 1


def test_who_waits_for_a_slot_is_told_how_long(harness):
    h = harness(slots=1)
    for id in "ab":
        h.submit(id)
    h.accept("a", "b")
    h.until_ended(2)
    first, second = [event for event in h.events if isinstance(event, Finished)]
    assert 0 <= first.queue_s < second.queue_s
    assert second.queue_s >= first.prefill_s + first.decode_s


def test_stats_count_requests_tokens_and_cells(harness):
    h = harness()
    h.submit("a")
    h.until_ended()
    stats = h.stats
    assert (stats.requests_total, stats.prompt_tokens_total, stats.completion_tokens_total) == (1, 5, 8)
    assert (stats.running, stats.waiting, stats.slots, stats.kv_cells) == (0, 0, 4, 64)
    assert stats.kv_cells_used == 12  # the last token was never decoded


def test_stopping_fails_what_is_left(harness):
    h = harness()
    h.submit("a", max_tokens=40)
    h.until(lambda: h.text("a") != "")
    h.engine.stop()
    h.engine.run()
    assert h.events[-1] == Failed("a", "engine_error", "The engine was stopped.")


def test_a_chat_template_without_end_holds_up_no_plain_request_and_no_stop(fake_config):
    before = set(psutil.Process().children())
    ends = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    backend = FakeBackend(chat_template=ends + "{% endfor %}" * 3)
    harness = Harness(backend, fake_config)
    thread = threading.Thread(target=harness.engine.run)
    for number in range(4):  # more than there are threads
        harness.submit(f"chat{number}", ChatPrompt((ChatMessage("user", "hi"),)))
    thread.start()
    harness.submit("plain")
    deadline = time.monotonic() + 8  # less than a template's time limit
    while not any(isinstance(event, Finished) for event in harness.of("plain")):
        assert time.monotonic() < deadline
    harness.engine.cancel("chat3")
    harness.engine.stop()
    thread.join(5)

    assert not thread.is_alive()
    assert [harness.of(f"chat{number}")[0].kind for number in range(3)] == ["engine_error"] * 3
    assert not harness.of("chat3")
    assert set(psutil.Process().children()) <= before


def test_what_is_cancelled_before_its_turn_is_never_prepared(fake_config):
    harness = Harness(FakeBackend(), fake_config)
    held, release = threading.Event(), threading.Event()
    for _ in range(2):  # both threads
        harness.engine._threads.call(lambda: (held.set(), release.wait(10)))
    assert held.wait(10)
    read: list[Prompt] = []
    reader = harness.engine._reader
    original = reader.read
    reader.read = lambda prompt: (read.append(prompt), original(prompt))[1]
    harness.submit("gone", "gone")
    harness.engine.cancel("gone")
    harness.submit("kept", "kept")
    release.set()
    harness.until_ended()

    assert read == [TextPrompt("kept")]
    assert not harness.engine._wanted
    harness.engine._threads.close()
    harness.engine._chat_threads.close()


def test_a_device_without_memory_for_a_batch_ends_the_engine_which_has_said_what_it_began(harness):
    h = harness()
    h.submit("a")
    h.accept("a")
    h.backend.outcomes = [Decoded.OUT_OF_MEMORY]
    with pytest.raises(EngineCrashed, match="ran out of memory") as caught:
        h.engine.turn(wait=False)
    assert caught.value.out_of_memory
    assert h.of("a") == [Accepted("a", 5), Started("a")]
