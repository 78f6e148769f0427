"""What one request's neighbours say must not reach it, down to the last bit of its logits."""

from __future__ import annotations

import numpy as np
import pytest

from ggufdeploy.engine.backend import Chunk, Decoded
from ggufdeploy.engine.llamacpp import LlamaCppBackend

pytestmark = pytest.mark.engine


def test_a_neighbours_text_does_not_change_a_single_bit_of_the_logits(demo_config):
    """The batches have the same shape, so the arithmetic is the same; only a leak could make a difference."""
    backend = LlamaCppBackend(demo_config)
    try:
        ours = backend.tokenize("The capital of France is", add_special=True)
        seen = []
        for neighbour in ("one two three four five six", "Gravity bends light near stars"):
            theirs = backend.tokenize(neighbour, add_special=True)[: len(ours)]
            assert len(theirs) == len(ours)
            chunks = [Chunk(0, 0, ours, True), Chunk(1, 0, theirs, True)]
            assert backend.decode(chunks) is Decoded.OK
            first = np.array(backend.logits())
            step = [Chunk(0, len(ours), ours[:1], True), Chunk(1, len(theirs), theirs[:1], True)]
            assert backend.decode(step) is Decoded.OK
            seen.append((first, np.array(backend.logits())))
            for slot in (0, 1):
                assert backend.seq_rm(slot, 0)
        (first_a, step_a), (first_b, step_b) = seen
        assert np.array_equal(first_a[0], first_b[0])
        assert np.array_equal(step_a[0], step_b[0])
        assert not np.array_equal(first_a[1], first_b[1]), "the neighbours must differ, or this shows nothing"
    finally:
        backend.close()
