from __future__ import annotations

import numpy as np
import pytest

from ggufdeploy.engine.dry import BreakerIndex, Dry
from ggufdeploy.engine.request import SamplingParams
from tests.fakes import FakeBackend


class Words(FakeBackend):
    """Tokens 0.. are these texts; `tokenize` gives the longest token each time."""

    texts = (b"a", b"b", b"ab", b"xa", b"bc", b"c", b"\xc3", b"\xa9")

    def token_bytes(self, token: int) -> bytes:
        return self.texts[token]

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        data, tokens = text.encode(), []
        while data:
            token = max(range(len(self.texts)), key=lambda t: len(self.texts[t]) * data.startswith(self.texts[t]))
            tokens.append(token)
            data = data[len(self.texts[token]) :]
        return tokens


def penalties(history: str, breakers: tuple[str, ...] = (), **changes: object) -> dict[str, float]:
    params = SamplingParams(**{"dry_multiplier": 1.0, "dry_base": 2.0, **changes})  # type: ignore[arg-type]
    row = np.zeros(128, np.float32)
    Dry(params, BreakerIndex(FakeBackend(), 128).find(breakers)).penalise(row, list(history.encode()))
    return {chr(token): -float(row[token]) for token in np.flatnonzero(row)}


def test_the_penalty_doubles_with_every_repeated_token_beyond_the_allowed_ones():
    assert penalties("abcdX cd") == {"X": 1.0}
    assert penalties("abcdX bcd") == {"X": 2.0}
    assert penalties("abcdX abcd") == {"X": 4.0}
    assert penalties("abcdX d") == {}


def test_the_longest_of_several_repetitions_counts_and_each_continuation_has_its_own():
    assert penalties("bcX abcY abc") == {"X": 1.0, "Y": 4.0}
    assert penalties("bcX abcX bc") == {"X": 1.0}


def test_only_the_last_tokens_are_looked_at():
    assert penalties("abcX----abc", dry_last_tokens=11) == {"X": 2.0}
    assert penalties("abcX----abc", dry_last_tokens=10) == {"X": 1.0}
    assert penalties("abcX----abc", dry_last_tokens=7) == {}


def test_a_repetition_ends_at_a_breaker_which_itself_is_free():
    assert penalties("a:bcX a:bc", (":",)) == {"X": 1.0}
    assert penalties("abc:X abc", (":",)) == {}


def test_an_endless_repetition_has_a_finite_penalty():
    assert penalties("a" * 1000, dry_base=3.0, dry_last_tokens=10**6) == {"a": pytest.approx(1e6)}
    assert penalties("a" * 1000, dry_base=1.05, dry_last_tokens=200) == {"a": pytest.approx(1.05**197, rel=1e-6)}


def test_a_breaker_is_found_within_tokens_and_across_them():
    assert BreakerIndex(Words(), 8).find(["ab"]) == {0: frozenset([(1,)]), 2: frozenset([()]), 3: frozenset([(1,)])}
    assert BreakerIndex(Words(), 8).find(["abc"]) == {
        0: frozenset([(4,)]),
        2: frozenset([(5,)]),
        3: frozenset([(4,)]),
    }
    assert BreakerIndex(Words(), 8).find(["é"]) == {}, "half a character cannot be tokenized"
    assert BreakerIndex(Words(), 8).find(["a", "ab"])[0] == {(), (1,)}


def test_the_vocabulary_is_read_once_per_text_and_what_is_remembered_is_bounded():
    class Counting(Words):
        n_read = 0

        def token_bytes(self, token: int) -> bytes:
            self.n_read += 1
            return super().token_bytes(token)

    words = Counting()
    index = BreakerIndex(words, 8)
    for _ in range(3):
        index.find(["a", "b"])
    assert words.n_read == 16
    for number in range(200):
        index.find([f"a{number}"])
    assert len(index._found) <= 64
