"""The proof prompts, on the fake."""

from __future__ import annotations

import time

import pytest

from ggufdeploy.engine.backend import Decoded
from ggufdeploy.engine.ladder import climb
from ggufdeploy.errors import LoadFailed
from tests.fakes import FakeBackend


def rungs(cells: int, n_batch: int, n_ubatch: int, slots: int = 4) -> tuple[int, ...]:
    backend = FakeBackend(cells=cells, slots=slots, n_batch=n_batch)
    return climb(backend, n_batch=n_batch, n_ubatch=n_ubatch).rungs


def test_prompts_grow_to_the_largest_batch():
    assert rungs(4096, 2048, 2048) == (64, 512, 2048)
    assert rungs(4096, 512, 512) == (64, 512)


def test_prompts_are_cut_to_the_batch_and_to_the_context():
    assert rungs(4096, 100, 100) == (64, 100)
    assert rungs(256, 512, 512) == (64, 252)
    assert rungs(8, 16, 16, slots=7) == (1,)


def test_every_batch_size_is_computed_and_nothing_stays_in_the_cache():
    backend, said = FakeBackend(cells=1024, slots=3, n_batch=512), []
    ladder = climb(backend, n_batch=512, n_ubatch=512, on_rung=lambda: said.append(len(backend.batches)))
    sizes = [sum(len(chunk.tokens) for chunk in batch) for batch in backend.batches]
    assert sizes == [64, 512, 1, 3]
    assert [chunk.seq_id for chunk in backend.batches[-1]] == [0, 1, 2]
    assert backend.batches[-2][0].start == 512
    assert backend.cells_used == 0
    assert said == [1, 2]
    assert ladder.seconds >= ladder.slowest_s > 0


def test_a_fully_used_context_still_has_room_for_the_decode():
    backend = FakeBackend(cells=16, slots=4, n_batch=16)
    climb(backend, n_batch=16, n_ubatch=16)
    assert backend.cells_used == 0


@pytest.mark.parametrize(("outcome", "expected"), [(Decoded.OUT_OF_MEMORY, True), (Decoded.BROKEN, False)])
def test_a_prompt_that_cannot_be_computed_fails_the_load(outcome, expected):
    backend = FakeBackend(cells=1024, n_batch=512)
    backend.outcomes = [Decoded.OK, outcome]
    with pytest.raises(LoadFailed, match="a prompt of 512 tokens") as caught:
        climb(backend, n_batch=512, n_ubatch=512)
    assert caught.value.out_of_memory is expected


def test_without_a_gpu_a_prompt_that_would_take_too_long_is_left_out_but_reckoned_with(monkeypatch):
    backend = FakeBackend(cells=4096, slots=1, n_batch=2048)
    decode = backend.decode
    monkeypatch.setattr(backend, "decode", lambda chunks: time.sleep(0.02) or decode(chunks))
    ladder = climb(backend, n_batch=2048, n_ubatch=2048, limit_s=0.05)
    assert ladder.rungs == (64,)
    assert ladder.slowest_s >= 0.02 * 2048 / 64
    assert climb(backend, n_batch=2048, n_ubatch=2048, limit_s=60.0).rungs == (64, 512, 2048)
