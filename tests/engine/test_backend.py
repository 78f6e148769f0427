"""The contract of backend.py, kept by the fake and by llama.cpp alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ggufdeploy.engine.backend import Backend, Chunk, Decoded
from tests.engine.conftest import with_changes
from tests.fakes import FakeBackend

CELLS, SLOTS, N_BATCH = 256, 4, 128


@pytest.fixture(scope="module")
def llamacpp(demo_config) -> Iterator[Backend]:
    from ggufdeploy.engine.llamacpp import LlamaCppBackend

    backend = LlamaCppBackend(
        with_changes(demo_config, context_tokens=CELLS, slots=SLOTS, n_batch=N_BATCH, n_ubatch=64)
    )
    yield backend
    backend.close()


@pytest.fixture(params=["fake", pytest.param("llamacpp", marks=pytest.mark.engine)])
def backend(request) -> Backend:
    if request.param == "fake":
        return FakeBackend(cells=CELLS, slots=SLOTS, n_batch=N_BATCH)
    backend = request.getfixturevalue("llamacpp")
    for seq_id in range(SLOTS):
        backend.seq_rm(seq_id, 0)
    return backend


@pytest.fixture
def tokens(backend) -> list[int]:
    return backend.tokenize("The quick brown fox jumps over the lazy dog and runs", add_special=True)


def best(backend: Backend) -> list[int]:
    return np.argmax(backend.logits(), axis=1).tolist()


def fresh(backend: Backend, tokens: list[int]) -> int:
    """Return the best next token, computed in one batch in an empty sequence."""
    backend.seq_rm(SLOTS - 1, 0)
    assert backend.decode([Chunk(SLOTS - 1, 0, tokens, True)]) is Decoded.OK
    (token,) = best(backend)
    backend.seq_rm(SLOTS - 1, 0)
    return token


def test_text_becomes_tokens_and_their_bytes_the_text(backend):
    text = "Hello, wörld! 🙂"
    tokens = backend.tokenize(text, add_special=False)
    assert b"".join(backend.token_bytes(token) for token in tokens).decode() == text


def test_end_tokens_are_tokens_without_text(backend):
    assert backend.end_tokens
    assert all(0 <= token < backend.info.n_vocab for token in backend.end_tokens)
    assert b"" in {backend.token_bytes(token) for token in backend.end_tokens}


def test_control_tokens_are_spelled_where_asked_for_and_all_others_read_the_same(backend):
    assert all(backend.token_spelling(token) for token in backend.end_tokens)
    tokens = backend.tokenize("Hello, wörld! 🙂", add_special=False)
    assert [backend.token_spelling(token) for token in tokens] == [backend.token_bytes(token) for token in tokens]


def test_logits_have_one_row_for_each_output_in_the_order_of_the_chunks(backend, tokens):
    alone = [fresh(backend, tokens), fresh(backend, tokens[:5])]
    outcome = backend.decode([Chunk(2, 0, tokens, True), Chunk(0, 0, tokens[:3], False), Chunk(1, 0, tokens[:5], True)])
    assert outcome is Decoded.OK
    assert backend.logits().shape == (2, backend.info.n_vocab)
    assert backend.logits().dtype == np.float32
    assert best(backend) == alone


def test_a_prompt_in_pieces_gives_what_it_gives_whole(backend, tokens):
    for start in range(0, len(tokens), 4):
        piece = tokens[start : start + 4]
        assert backend.decode([Chunk(0, start, piece, True)]) is Decoded.OK
    assert backend.pos_max(0) == len(tokens) - 1
    assert best(backend) == [fresh(backend, tokens)]


def test_seq_rm_forgets_the_tail_and_the_rest_can_be_continued(backend, tokens):
    other = [*tokens[:4], *tokens[6:2:-1]]
    backend.decode([Chunk(0, 0, tokens, True)])
    assert backend.seq_rm(0, 4)
    assert backend.pos_max(0) == 3
    backend.decode([Chunk(0, 4, other[4:], True)])
    assert best(backend) == [fresh(backend, other)]


def test_seq_rm_from_zero_empties_the_sequence(backend, tokens):
    backend.decode([Chunk(0, 0, tokens, True)])
    assert backend.seq_rm(0, 0)
    assert backend.pos_max(0) == -1
    assert backend.seq_rm(0, 0), "an empty sequence can be emptied"


def test_seq_cp_shares_a_prefix_that_either_sequence_continues(backend, tokens):
    backend.decode([Chunk(0, 0, tokens, True)])
    expected = [fresh(backend, [*tokens[:5], tokens[7]]), fresh(backend, [*tokens, tokens[2]])]
    backend.seq_cp(0, 1, 5)
    assert backend.pos_max(1) == 4
    backend.decode([Chunk(1, 5, [tokens[7]], True), Chunk(0, len(tokens), [tokens[2]], True)])
    assert best(backend) == expected


def test_a_full_cache_refuses_the_batch_and_changes_nothing(backend, tokens):
    filler = (tokens * 40)[: N_BATCH - 1]
    for seq_id in (0, 1):
        assert backend.decode([Chunk(seq_id, 0, filler, True)]) is Decoded.OK
    assert backend.decode([Chunk(2, 0, tokens, True)]) is Decoded.NO_ROOM
    assert [backend.pos_max(seq_id) for seq_id in range(3)] == [N_BATCH - 2, N_BATCH - 2, -1]
    assert backend.seq_rm(0, 0)
    assert backend.decode([Chunk(2, 0, tokens, True)]) is Decoded.OK
    assert best(backend) == [fresh(backend, tokens)]
