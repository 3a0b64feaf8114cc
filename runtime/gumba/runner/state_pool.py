"""Recurrent states: a pool of slots, each holding what all layers keep of one sequence, whatever its length.

Beside the pages of the KV cache, which grow with a sequence, a model with recurrent layers keeps a slot for it. Unlike a page, a
state cannot be cut: it stands for exactly the tokens that went into it, ``lengths[slot]`` of them; the state of fewer tokens
exists only where it was copied in time. This module hands slots out and takes them back; their memory is the backend's
(``gumba.backends.base.StateSlots``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gumba.backends.base import Backend, Chunk
from gumba.backends.cache_shapes import StateShape
from gumba.errors import EngineError, RequestError, ResourceError
from gumba.memory import shortage


class States:
    """A pool of ``n_slots`` slots, each with one owner.

    ``parts``: of each layer, the shapes that its state consists of; none: a layer without. ``memory``: what the slots hold.
    Raises ResourceError when there is not enough memory.
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
        #: Tokens that a slot's state has taken in.
        self.lengths = [0] * n_slots

    @property
    def n_free(self) -> int:
        """Slots without an owner."""
        return len(self._free)

    def allocate(self) -> int:
        """Take a slot, of a sequence without tokens. Raises ResourceError when none is free."""
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed")
            if not self._free:
                raise ResourceError(f"all {self.n_slots} slots for states are taken")
            slot = self._free.pop()
            self._taken[slot], self.lengths[slot] = True, 0
            return slot

    def release(self, slot: int) -> None:
        """Give a slot back. Raises EngineError for one that is not taken."""
        with self._lock:
            self._check(slot)
            self._taken[slot] = False
            self._free.append(slot)

    def copy(self, source: int, target: int) -> None:
        """Make one taken slot hold what another one holds."""
        with self._lock:
            self._check(target)
            self._check(source)
            self.memory.copy(source, target)
            self.lengths[target] = self.lengths[source]

    def read(self, slot: int) -> bytes:
        """All that a taken slot holds, ``slot_bytes`` of it."""
        with self._lock:
            self._check(slot)
            return self.memory.read(slot)

    def write(self, slot: int, data: bytes, length: int) -> None:
        """Fill a taken slot with what ``read`` gave, of ``length`` tokens. Raises RequestError for data of another length."""
        if len(data) != self.slot_bytes:
            raise RequestError(f"a state of {len(data)} bytes: expected {self.slot_bytes}")
        with self._lock:
            self._check(slot)
            self.memory.write(slot, data)
            self.lengths[slot] = length

    def close(self) -> None:
        """Let go of the memory; nothing can be allocated any more."""
        with self._lock:
            self._closed = True
            self.memory.close()

    def owns(self, slot: int) -> bool:
        """Whether a slot is in range and taken."""
        return 0 <= slot < self.n_slots and self._taken[slot]

    def _check(self, slot: int) -> None:
        if not self.owns(slot):
            raise EngineError(f"slot {slot} for states is used or released but was not taken")

    def runs(self, chunks: Sequence[Chunk]) -> list[tuple[int, int, int, int]]:
        """Of each chunk with tokens: first token in the step, tokens, position of the first, byte offset of the slot.

        The tokens count as taken in. All else of the chunks is checked already. Raises RequestError for a slot that is not
        the sequence's own, or holds the state after another number of tokens.
        """
        runs: list[tuple[int, int, int, int]] = []
        after: dict[int, int] = {}
        first = 0
        for tokens, position, _, _, slot, *_ in chunks:
            if type(slot) is not int or not self.owns(slot) or slot in after:
                raise RequestError(
                    f"slot {slot!r} for states: expected one taken from this model, for each sequence its own"
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
