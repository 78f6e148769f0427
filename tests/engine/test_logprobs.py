from __future__ import annotations

import numpy as np
import pytest

from ggufdeploy.engine.logprobs import IMPOSSIBLE, LogprobLog


def text_of(token: int) -> bytes:
    return f"<{token}>".encode()


def test_logprobs_are_the_log_of_the_softmax_and_the_best_come_first():
    row = np.random.default_rng(1).standard_normal(500).astype(np.float32) * 5
    expected = row - np.log(np.exp(row.astype(np.float64)).sum())
    order = np.argsort(-row)
    log = LogprobLog(3, text_of)
    log.note(row, int(order[10]), 0)
    (entry,) = log.take(1)
    assert (entry.data, entry.logprob) == (text_of(order[10]), pytest.approx(expected[order[10]], abs=1e-5))
    assert [each.data for each in entry.top] == [text_of(token) for token in order[:3]]
    assert [each.logprob for each in entry.top] == pytest.approx(expected[order[:3]].tolist(), abs=1e-5)


def test_more_alternatives_than_tokens_are_all_tokens():
    log = LogprobLog(20, text_of)
    log.note(np.zeros(3, np.float32), 0, 0)
    (entry,) = log.take_all()
    assert [each.logprob for each in entry.top] == pytest.approx([-np.log(3)] * 3)


def test_an_impossible_token_has_a_number_that_json_can_hold():
    log = LogprobLog(0, text_of)
    log.note(np.array([0, -np.inf], np.float32), 1, 0)
    assert log.take_all()[0].logprob == IMPOSSIBLE


def test_a_token_leaves_with_the_first_character_of_its_text():
    log = LogprobLog(0, text_of)
    for token, start_chars in enumerate([0, 2, 2, 5]):
        log.note(np.zeros(4, np.float32), token, start_chars)
    taken = [log.take(2), log.take(0), log.take(1), log.take(2), log.take(1)]
    assert [[entry.data for entry in part] for part in taken] == [
        [text_of(0)],
        [],
        [text_of(1), text_of(2)],
        [],
        [text_of(3)],
    ]
