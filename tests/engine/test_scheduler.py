"""The scheduler against the fake backend: no threads, no text, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufdeploy.engine.backend import Decoded
from ggufdeploy.engine.scheduler import Job, Part, Scheduler
from ggufdeploy.engine.slots import SlotTable
from tests.fakes import FakeBackend, expected_text


@dataclass
class Rig:
    """A scheduler, its fake model, and what came out."""

    backend: FakeBackend
    scheduler: Scheduler
    finished: dict[str, str] = field(default_factory=dict)

    def step(self) -> list[Part]:
        parts = self.scheduler.plan()
        chunks = self.scheduler.chunks(parts)
        outcome = self.backend.decode(chunks)
        assert outcome is Decoded.OK, "the ledger promised cells that are not there"
        self.scheduler.commit(parts, chunks)
        sampled = [part.job for part in parts if part.samples]
        for job, row in zip(sampled, self.backend.logits() if sampled else [], strict=True):
            job.tokens.append(int(row.argmax()))
            if job.n_generated == job.max_new_tokens:
                self.finished[job.id] = bytes(job.tokens[job.n_prompt :]).decode()
                self.scheduler.finish(job)
        assert self.scheduler.slots.cells_used == self.backend.cells_used
        return parts

    def run(self, *jobs: Job) -> None:
        for job in jobs:
            self.scheduler.add(job)
        while not self.scheduler.is_idle:
            self.step()


@pytest.fixture
def make_rig() -> Callable[..., Rig]:
    def make(*, n_batch: int = 16, n_prefill: int = 8, **kwargs: object) -> Rig:
        backend = FakeBackend(n_batch=n_batch, **kwargs)  # type: ignore[arg-type]
        slots = SlotTable(backend, backend.info.slots, backend.info.context_tokens)
        return Rig(backend, Scheduler(slots, n_batch=n_batch, n_prefill=n_prefill))

    return make


def job(id: str, n_prompt: int, n_new: int, first: int = 1) -> Job:
    return Job(id, [(first + i) % 200 for i in range(n_prompt)], n_new)


def described(parts: list[Part]) -> dict[str, int]:
    return {part.job.id: part.n_tokens for part in parts}


def test_a_prompt_is_cut_into_batches_and_only_its_last_piece_samples(make_rig):
    rig = make_rig()
    rig.scheduler.add(job("a", 40, 2))
    steps = [rig.step() for _ in range(4)]
    assert [part.n_tokens for (part,) in steps] == [16, 16, 8, 1]
    assert [part.samples for (part,) in steps] == [False, False, True, True]


def test_running_streams_get_their_token_in_every_batch_while_a_long_prompt_is_read(make_rig):
    rig = make_rig()
    rig.scheduler.add(job("stream", 4, 20))
    rig.step()
    rig.scheduler.add(job("long", 30, 1, first=50))
    assert [described(rig.step()) for _ in range(3)] == [{"stream": 1, "long": 8}] * 3
    assert described(rig.step()) == {"stream": 1, "long": 6}


def test_a_short_prompt_does_not_wait_behind_a_long_one(make_rig):
    rig = make_rig()
    rig.scheduler.add(job("long", 40, 1))
    rig.scheduler.add(job("short", 5, 2, first=100))
    assert described(rig.step()) == {"long": 11, "short": 5}


def test_the_oldest_prompt_keeps_half_of_the_budget_however_many_short_ones_come(make_rig):
    rig = make_rig(slots=4, cells=200)
    rig.scheduler.add(job("long", 40, 1))
    for index in range(6):
        rig.scheduler.add(job(f"short{index}", 7, 1, first=10 * index))
    granted = [described(rig.step()).get("long", 0) for _ in range(4)]
    assert all(n_tokens >= 8 for n_tokens in granted)


def test_requests_together_get_the_text_they_get_alone(make_rig):
    jobs = [job(str(i), 3 + 5 * i, 6, first=7 * i) for i in range(4)]
    prompts = {j.id: list(j.tokens) for j in jobs}
    rig = make_rig(cells=128)
    rig.run(*jobs)
    assert rig.finished == {id: expected_text(prompt, 6) for id, prompt in prompts.items()}


def test_a_full_cache_sends_the_newest_request_back_and_both_finish(make_rig):
    rig = make_rig(cells=40, slots=2)
    jobs = [job("old", 10, 28), job("new", 8, 20, first=90)]
    prompts = {j.id: list(j.tokens) for j in jobs}
    for j in jobs:
        rig.scheduler.add(j)
    rig.scheduler._probably_fits = lambda _: True  # type: ignore[method-assign]  # force the over-commitment
    sent_back = False
    while not rig.scheduler.is_idle:
        rig.step()
        sent_back |= jobs[1].slot is None and 0 < jobs[1].n_generated < 20
        assert jobs[0].slot is not None or jobs[0].id in rig.finished, "the oldest is never sent back"
    assert sent_back
    assert rig.finished == {"old": expected_text(prompts["old"], 28), "new": expected_text(prompts["new"], 20)}


def test_two_half_read_prompts_that_fill_the_cache_do_not_block_each_other(make_rig):
    rig = make_rig(cells=40, slots=2)
    rig.scheduler._probably_fits = lambda _: True  # type: ignore[method-assign]
    rig.run(job("a", 36, 2), job("b", 36, 2, first=90))
    assert set(rig.finished) == {"a", "b"}


def test_a_request_that_probably_does_not_fit_waits_and_keeps_its_turn(make_rig):
    rig = make_rig(cells=64, slots=4)
    rig.scheduler.add(job("big", 40, 10))
    rig.scheduler.add(job("bigger", 45, 5, first=90))
    rig.scheduler.add(job("small", 2, 2, first=150))
    rig.step()
    assert (rig.scheduler.n_running, rig.scheduler.n_waiting) == (1, 2)
    rig.run()
    assert next(iter(rig.finished)) == "big"
    assert set(rig.finished) == {"big", "bigger", "small"}


def test_cached_prefixes_make_way_before_any_request_is_sent_back(make_rig):
    rig = make_rig(cells=64, slots=4)
    rig.run(job("first", 30, 2))
    assert rig.scheduler.slots.cells_cached == 31
    second = job("second", 50, 4, first=100)
    rig.run(second)
    assert rig.finished["second"] == expected_text([(100 + i) % 200 for i in range(50)], 4)


def test_a_continued_conversation_reads_only_what_is_new(make_rig):
    rig = make_rig()
    first = job("first", 20, 5)
    rig.run(first)
    again = Job("again", [*first.tokens, 3, 4, 5], 2)
    rig.run(again)
    assert again.n_cached == 24  # the last token of the first answer was never decoded
    assert rig.finished["again"] == expected_text([*first.tokens, 3, 4, 5], 2)


def test_the_same_prompt_again_reads_one_token(make_rig):
    rig = make_rig()
    rig.run(job("first", 20, 2))
    again = job("again", 20, 2)
    rig.run(again)
    assert again.n_cached == 19


def test_a_model_that_cannot_roll_back_reads_the_prompt_again(make_rig):
    rig = make_rig(rolls_back=False)
    rig.run(job("first", 20, 5))
    again = job("again", 20, 2)
    rig.run(again)
    assert again.n_cached == 0
    assert rig.finished["again"] == expected_text(list(range(1, 21)), 2)


def test_a_cancelled_request_frees_its_slot_at_once(make_rig):
    rig = make_rig(slots=1)
    running, waiting = job("running", 4, 30), job("waiting", 4, 2, first=60)
    rig.scheduler.add(running)
    rig.scheduler.add(waiting)
    rig.step()
    rig.scheduler.finish(running)
    assert "waiting" in described(rig.step())


def test_a_waiting_request_can_be_cancelled(make_rig):
    rig = make_rig(slots=1)
    waiting = job("waiting", 4, 2)
    rig.scheduler.add(job("running", 4, 3, first=60))
    rig.scheduler.add(waiting)
    rig.step()
    rig.scheduler.finish(waiting)
    rig.run()
    assert set(rig.finished) == {"running"}


def test_no_room_gives_up_cached_prefixes_then_the_newest_then_nothing(make_rig):
    rig = make_rig(slots=4)
    rig.run(job("cached", 5, 1, first=150))
    rig.scheduler.add(job("a", 4, 5))
    rig.scheduler.add(job("b", 4, 5, first=60))
    rig.step()
    assert rig.scheduler.no_room()
    assert rig.scheduler.slots.cells_cached == 0
    assert rig.scheduler.no_room()
    assert (rig.scheduler.n_running, rig.scheduler.n_waiting, rig.scheduler.n_sent_back) == (1, 1, 1)
    rig.scheduler.slots.evict()
    assert not rig.scheduler.no_room()


# One event of a random history: a new request (prompt length, answer length, shared prefix), a cancel, or a step.
_arrivals = st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 20), st.integers(0, 3))
_events = st.lists(
    st.one_of(_arrivals, st.tuples(st.just("cancel"), st.integers(0, 20)), st.just(("step",))), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(
    events=_events,
    cells=st.integers(50, 120),
    slots=st.integers(1, 5),
    n_batch=st.integers(5, 24),
    rolls_back=st.booleans(),
    optimistic=st.booleans(),
)
def test_whatever_comes_cells_hold_and_every_request_finishes_with_its_own_text(
    events, cells, slots, n_batch, rolls_back, optimistic
):
    backend = FakeBackend(cells=cells, slots=slots, n_batch=n_batch, rolls_back=rolls_back)
    rig = Rig(backend, Scheduler(SlotTable(backend, slots, cells), n_batch=n_batch, n_prefill=max(n_batch // 2, 1)))
    if optimistic:
        rig.scheduler._probably_fits = lambda _: True  # type: ignore[method-assign]
    expected: dict[str, str] = {}
    alive: list[Job] = []
    for number, event in enumerate(events):
        if event[0] == "add":
            _, n_prompt, n_new, family = event
            prompt = [10 * family + i % 7 for i in range(n_prompt - 1)] + [number % 50]
            new = Job(str(number), prompt, n_new)
            expected[new.id] = expected_text(prompt, n_new)
            alive.append(new)
            rig.scheduler.add(new)
        elif event[0] == "cancel" and alive:
            gone = alive.pop(event[1] % len(alive))
            if gone.id not in rig.finished:
                rig.scheduler.finish(gone)
                del expected[gone.id]
        elif event[0] == "step" and not rig.scheduler.is_idle:
            rig.step()
    steps_left = 20 * sum(len(j.tokens) + j.max_new_tokens for j in alive) + 10
    while not rig.scheduler.is_idle:
        rig.step()
        steps_left -= 1
        assert steps_left > 0, "the scheduler does not come to an end"
    assert rig.finished == expected
    assert rig.scheduler.slots.cells_used == rig.scheduler.slots.cells_cached
