from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.engine.slots import SlotTable, common_prefix
from tests.fakes import FakeBackend


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_prefix_is_the_longest_equal_beginning(a, b):
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


@pytest.fixture
def table() -> SlotTable:
    return SlotTable(FakeBackend(slots=3, cells=100), 3, 100)


def fill(table: SlotTable, tokens: list[int]) -> None:
    """Run a request through the table, so that its tokens stay cached."""
    slot, n_shared = table.claim(tokens)
    table._memory.resident[slot.index].extend(tokens[n_shared:])  # type: ignore[attr-defined]
    table.extend(slot, tokens[n_shared:])
    table.release(slot)


def test_the_slot_with_the_longest_shared_prefix_is_taken_over(table):
    fill(table, [1, 2, 3, 4, 5, 6])
    fill(table, [9, 8, 7, 6])
    slot, n_shared = table.claim([1, 2, 3, 4, 5, 99])
    assert (n_shared, slot.resident) == (5, [1, 2, 3, 4, 5])


def test_a_short_match_does_not_destroy_a_long_conversation_while_a_slot_is_empty(table):
    fill(table, [1, *range(50, 80)])
    slot, n_shared = table.claim([1, 2, 3, 4])
    assert (n_shared, slot.resident) == (0, [])
    assert table.cells_cached == 31


def test_without_an_empty_slot_the_one_used_longest_ago_goes(table):
    for first in (10, 20, 30):
        fill(table, [first, first + 1, first + 2])
    slot, _ = table.claim([99, 98])
    assert slot.resident == []
    assert table.cells_cached == 6
    assert table.claim([20, 21, 22, 23])[1] == 3


def test_evict_frees_the_oldest_cached_prefix_and_says_when_there_is_none(table):
    fill(table, [1, 2, 3])
    fill(table, [4, 5])
    assert table.evict()
    assert (table.cells_cached, table.cells_used) == (2, 2)
    assert table.evict()
    assert not table.evict()


def test_a_slot_in_use_is_neither_offered_nor_evicted(table):
    slot, _ = table.claim([1, 2, 3])
    table._memory.resident[slot.index].extend([1, 2, 3])  # type: ignore[attr-defined]
    table.extend(slot, [1, 2, 3])
    assert not table.evict()
    assert table.claim([1, 2, 3, 4])[1] == 0
