"""Which tokens go into the next batch: waiting -> prefill -> decode -> finished.

Pure: it knows tokens, cells and slots, and never sees llama.cpp, text or clocks. One thread owns it.

- A running stream gets its next token in every batch; prompts are cut into what is left of it.
- A request is admitted, in order of arrival, when a slot is free and its prompt and some of its answer probably fit.
- When the cells run out, cached prefixes go first, then the newest request goes back to the queue with the tokens it
  has generated. The oldest request is never sent back, so every request that fits alone finishes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ggufdeploy.engine.backend import Chunk
from ggufdeploy.engine.slots import Slot, SlotTable

# An answer longer than this is not reserved for: admitting early and sending back the rare loser is faster on average.
EXPECTED_ANSWER_TOKENS = 256


@dataclass(eq=False, slots=True)
class Job:
    """One request as the scheduler sees it.

    tokens: prompt, then what was generated. n_decoded: how many of them are in the cache. max_new_tokens: the most it
    may still generate, counted from the prompt. n_cached: prompt tokens that needed no prefill when it first ran.
    """

    id: str
    tokens: list[int]
    max_new_tokens: int
    n_prompt: int = field(init=False)
    n_decoded: int = 0
    n_cached: int | None = None
    slot: Slot | None = None

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_pending(self) -> int:
        """Tokens that are not in the cache yet: 1 while it decodes, more while it prefills."""
        return len(self.tokens) - self.n_decoded


@dataclass(frozen=True, slots=True)
class Part:
    """What one job contributes to a batch. samples: its last pending token is in, so a new one can be sampled."""

    job: Job
    n_tokens: int
    samples: bool


class Scheduler:
    """n_batch: tokens per batch at most. n_prefill: prompt tokens per batch while streams are running.

    `n_sent_back` counts how often a running job went back to the queue.
    """

    def __init__(self, slots: SlotTable, *, n_batch: int, n_prefill: int) -> None:
        self.slots = slots
        self._n_batch = n_batch
        self._n_prefill = n_prefill
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self.n_sent_back = 0

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def add(self, job: Job) -> None:
        """Queue a job. It must fit alone: its prompt and max_new_tokens together are at most the number of cells."""
        self._waiting.append(job)

    def finish(self, job: Job) -> None:
        """Take a job out, wherever it is: done, failed or cancelled. Its tokens stay cached."""
        if job.slot is None:
            self._waiting.remove(job)
        else:
            self._leave_slot(job)

    def drop(self, job: Job) -> None:
        """Take out a running job whose sequence cannot be trusted any more, and clear the sequence."""
        assert job.slot is not None
        self.slots.clear(job.slot)
        self._leave_slot(job)

    def plan(self) -> list[Part]:
        """Choose the next batch; admits, evicts and sends back as needed. Empty only when there is no job."""
        self._admit()
        parts = self._fill()
        while not parts and self._running:
            self._make_room()
            parts = self._fill()
        return parts

    def chunks(self, parts: Sequence[Part]) -> list[Chunk]:
        """Spell the plan out for the backend."""
        out = []
        for part in parts:
            job, start = part.job, part.job.n_decoded
            assert job.slot is not None
            tokens = job.tokens[-1:] if job.n_pending == 1 else job.tokens[start : start + part.n_tokens]
            out.append(Chunk(job.slot.index, start, tokens, part.samples))
        return out

    def commit(self, parts: Sequence[Part], chunks: Sequence[Chunk]) -> None:
        """Record that the batch was decoded."""
        for part, chunk in zip(parts, chunks, strict=True):
            assert part.job.slot is not None
            self.slots.extend(part.job.slot, chunk.tokens)
            part.job.n_decoded += part.n_tokens

    def no_room(self) -> bool:
        """React to a cache that refused a batch although cells were free; return False when nothing can be given up.

        The free cells may not suit the batch: a sliding-window cache is smaller than the ledger.
        """
        if self.slots.evict():
            return True
        if len(self._running) <= 1:
            return False
        self._send_back(self._running[-1])
        return True

    def _admit(self) -> None:
        while self._waiting and self.slots.has_free_slot and self._probably_fits(self._waiting[0]):
            job = self._waiting.popleft()
            job.slot, job.n_decoded = self.slots.claim(job.tokens)
            if job.n_cached is None:
                job.n_cached = job.n_decoded
            self._running.append(job)

    def _probably_fits(self, job: Job) -> bool:
        """Count cached prefixes as free, the prompts that are still being prefilled as used."""
        if not self._running:
            return True
        owed = sum(other.n_pending + self._expected_more(other) for other in self._running)
        room = self.slots.cells_free + self.slots.cells_cached - owed
        return len(job.tokens) + self._expected_more(job) <= room

    @staticmethod
    def _expected_more(job: Job) -> int:
        """Return how many cells to keep for the answer; less as it grows, so that it is not counted twice."""
        expected = min(job.max_new_tokens, EXPECTED_ANSWER_TOKENS)
        return max(expected - job.n_generated, 0)

    def _fill(self) -> list[Part]:
        """Return what fits into the batch and the cells: every stream's token, then prompts. [] when streams do not."""
        decoding = [job for job in self._running if job.n_pending == 1]
        prefilling = [job for job in self._running if job.n_pending > 1]
        budget = self._n_batch if not decoding else min(self._n_batch, len(decoding) + self._n_prefill)
        wanted = min(len(decoding) + sum(job.n_pending for job in prefilling), budget)
        while self.slots.cells_free < wanted and self.slots.evict():
            pass
        left = min(budget, self.slots.cells_free) - len(decoding)
        if left < 0:
            return []
        parts = [Part(job, 1, True) for job in decoding]
        for job, n_tokens in _share(prefilling, left):
            parts.append(Part(job, n_tokens, n_tokens == job.n_pending))
        return parts

    def _make_room(self) -> None:
        """Send the newest running job back to the queue."""
        assert len(self._running) > 1, "a job that does not fit alone was admitted"
        self._send_back(self._running[-1])

    def _send_back(self, job: Job) -> None:
        self._leave_slot(job)
        job.n_decoded = 0
        self.n_sent_back += 1
        self._waiting.appendleft(job)

    def _leave_slot(self, job: Job) -> None:
        assert job.slot is not None
        self.slots.release(job.slot)
        job.slot = None
        self._running.remove(job)


def _share(jobs: Sequence[Job], budget: int) -> list[tuple[Job, int]]:
    """Split the prompt budget: half for the oldest job, so that none starves; the rest shortest first.

    Short prompts do not wait behind a long one. `jobs` is in order of arrival.
    """
    if not jobs or budget <= 0:
        return []
    granted = dict.fromkeys(jobs, 0)
    granted[jobs[0]] = min(jobs[0].n_pending, (budget + 1) // 2)
    left = budget - granted[jobs[0]]
    for job in sorted(jobs, key=lambda job: job.n_pending - granted[job]):
        more = min(job.n_pending - granted[job], left)
        granted[job] += more
        left -= more
    return [(job, n_tokens) for job, n_tokens in granted.items() if n_tokens]
