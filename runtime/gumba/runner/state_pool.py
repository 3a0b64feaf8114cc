"""Recurrent states: a pool of slots of a fixed size, each for the states of all layers of one sequence.

A sequence of a model with recurrent layers has one slot, besides its pages of the KV cache, which grow with it. Unlike pages, a
state cannot be truncated to fewer tokens: it summarizes exactly the ``lengths[slot]`` tokens that went into it. To go back to
fewer tokens, a copy made at that point is needed. This module allocates and frees slots; their memory belongs to the backend
(``gumba.backends.base.StateSlots``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gumba.backends.base import Backend, Chunk
from gumba.backends.cache_shapes import StateShape
from gumba.errors import EngineError, RequestError, ResourceError
from gumba.memory import shortage


class StatePool:
    """A pool of ``n_slots`` slots, each with at most one owner.

    Args:
        backend: Allocates the memory.
        parts: For each layer, the shapes of the parts of its state; empty for a layer that is not recurrent.
        n_slots: Number of slots.

    Raises ResourceError if there is not enough memory.
    """

    def __init__(self, backend: Backend, parts: Sequence[Sequence[StateShape]], n_slots: int) -> None:
        self.n_slots = n_slots
        self.slot_bytes = backend.state_slot_bytes(parts)
        self.n_bytes = n_slots * self.slot_bytes
        try:
            self.memory = backend.state_slots(parts, n_slots)
        except MemoryError:
            raise ResourceError(
                f"{shortage(f'the states of {n_slots} sequences need', self.n_bytes)}: choose fewer (n_states)"
            ) from None
        self._closed = False
        self._lock = threading.Lock()
        self._free = list(range(n_slots - 1, -1, -1))
        self._taken = [False] * n_slots
        #: Number of tokens that went into the state, by slot.
        self.lengths = [0] * n_slots

    @property
    def n_free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def allocate(self) -> int:
        """Allocate a slot for a sequence without tokens. Raises ResourceError if none is free."""
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed")
            if not self._free:
                raise ResourceError(f"all {self.n_slots} slots for recurrent states are in use")
            slot = self._free.pop()
            self._taken[slot], self.lengths[slot] = True, 0
            return slot

    def release(self, slot: int) -> None:
        """Free a slot. Raises EngineError for one that is not allocated."""
        with self._lock:
            self._check(slot)
            self._taken[slot] = False
            self._free.append(slot)

    def copy(self, source: int, target: int) -> None:
        """Copy the state of one allocated slot to another."""
        with self._lock:
            self._check(target)
            self._check(source)
            self.memory.copy(source, target)
            self.lengths[target] = self.lengths[source]

    def read(self, slot: int) -> bytes:
        """The state in an allocated slot, ``slot_bytes`` bytes."""
        with self._lock:
            self._check(slot)
            return self.memory.read(slot)

    def write(self, slot: int, data: bytes, length: int) -> None:
        """Fill an allocated slot with what ``read`` returned: the state after ``length`` tokens.

        Raises RequestError if ``data`` is not ``slot_bytes`` bytes.
        """
        if len(data) != self.slot_bytes:
            raise RequestError(f"a state of {len(data)} bytes: expected {self.slot_bytes}")
        with self._lock:
            self._check(slot)
            self.memory.write(slot, data)
            self.lengths[slot] = length

    def close(self) -> None:
        """Free the memory. ``allocate`` raises EngineError from then on."""
        with self._lock:
            self._closed = True
            self.memory.close()

    def owns(self, slot: int) -> bool:
        """Whether a slot is in range and allocated."""
        return 0 <= slot < self.n_slots and self._taken[slot]

    def _check(self, slot: int) -> None:
        if not self.owns(slot):
            raise EngineError(f"slot {slot} for recurrent states is not allocated")

    def runs(self, chunks: Sequence[Chunk]) -> list[tuple[int, int, int, int]]:
        """For each chunk with tokens: index of its first token in the step, number of tokens, position, slot's byte offset.

        Also adds the tokens to ``lengths``. The rest of the chunks must have been checked already. Raises RequestError for a
        slot that is not allocated or occurs twice, or whose state is not the one after ``position`` tokens.
        """
        runs: list[tuple[int, int, int, int]] = []
        after: dict[int, int] = {}
        first = 0
        for tokens, position, _, _, slot, *_ in chunks:
            if type(slot) is not int or not self.owns(slot) or slot in after:
                raise RequestError(
                    f"slot {slot!r} for recurrent states: expected one that this model has allocated, "
                    "another one for each sequence"
                )
            if position and self.lengths[slot] != position:
                raise RequestError(
                    f"position {position}: the state in slot {slot} is that of {self.lengths[slot]} tokens"
                )
            if len(tokens):
                runs.append((first, len(tokens), position, slot * self.slot_bytes))
                after[slot] = position + len(tokens)
                first += len(tokens)
        for slot, length in after.items():
            self.lengths[slot] = length
        return runs
