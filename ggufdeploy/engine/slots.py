"""Who holds which part of the KV cache.

A slot is one llama.cpp sequence. A finished request leaves its tokens resident in its slot, as a cached prefix; a new
request takes over the slot whose tokens it shares longest. `claim`, `release` and `evict` are all the scheduler
knows, so that a tree of shared prefixes (seq_cp) can replace the table without changing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ggufdeploy.engine.backend import KvMemory


@dataclass(slots=True)
class Slot:
    """resident: the tokens in the cache, in order. in_use: a running request owns it. last_used: a logical clock."""

    index: int
    resident: list[int] = field(default_factory=list)
    in_use: bool = False
    last_used: int = 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # halving, because comparing slices is far quicker than comparing tokens one by one
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class SlotTable:
    """Slots and cells of one unified KV cache. Owner thread only."""

    def __init__(self, memory: KvMemory, n_slots: int, n_cells: int) -> None:
        self._memory = memory
        self._slots = [Slot(index) for index in range(n_slots)]
        self._clock = 0
        self._n_used = 0
        self.n_cells = n_cells

    @property
    def n_slots(self) -> int:
        return len(self._slots)

    @property
    def cells_used(self) -> int:
        """Cells held by running requests and by cached prefixes."""
        return self._n_used

    @property
    def cells_free(self) -> int:
        return self.n_cells - self._n_used

    @property
    def cells_cached(self) -> int:
        """Cells that `evict` could free."""
        return sum(len(slot.resident) for slot in self._slots if not slot.in_use)

    @property
    def has_free_slot(self) -> bool:
        return any(not slot.in_use for slot in self._slots)

    def claim(self, tokens: Sequence[int]) -> tuple[Slot, int]:
        """Take a free slot; return it and how many leading tokens of `tokens` are already in the cache.

        At least the last token is left to decode, because its logits are needed. Requires `has_free_slot`.
        """
        slot, n_shared = self._best(tokens)
        if not self._memory.seq_rm(slot.index, n_shared):
            n_shared = 0
        self._n_used -= len(slot.resident) - n_shared
        del slot.resident[n_shared:]
        slot.in_use = True
        self._touch(slot)
        return slot, n_shared

    def extend(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Record tokens that were decoded into the slot's sequence."""
        slot.resident.extend(tokens)
        self._n_used += len(tokens)

    def release(self, slot: Slot) -> None:
        """Give the slot back; its tokens stay as a cached prefix."""
        slot.in_use = False
        self._touch(slot)

    def clear(self, slot: Slot) -> None:
        """Forget the slot's tokens, in the cache too."""
        self._memory.seq_rm(slot.index, 0)
        self._n_used -= len(slot.resident)
        slot.resident.clear()

    def evict(self) -> bool:
        """Forget the cached prefix that was used longest ago; return False when there is none."""
        cached = [slot for slot in self._slots if not slot.in_use and slot.resident]
        if not cached:
            return False
        self.clear(min(cached, key=lambda slot: slot.last_used))
        return True

    def _best(self, tokens: Sequence[int]) -> tuple[Slot, int]:
        """Return the slot to take over, and the shared prefix.

        Reuse wins when it saves at least as many tokens as it discards; otherwise an empty slot, or the one used
        longest ago, keeps the other conversations resident.
        """
        free = [slot for slot in self._slots if not slot.in_use]
        limit = max(len(tokens) - 1, 0)
        shared = {slot.index: min(common_prefix(slot.resident, tokens), limit) for slot in free}
        best = max(free, key=lambda slot: (2 * shared[slot.index] - len(slot.resident), slot.last_used))
        if 2 * shared[best.index] < max(len(best.resident), 1):
            best = min(free, key=lambda slot: (bool(slot.resident), slot.last_used))
        return best, shared[best.index]

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock
