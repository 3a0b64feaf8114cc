"""Recurrent states: a pool of slots, each holding what all layers keep of one sequence, whatever its length.

Beside the pages of the KV cache, which grow with a sequence, a model with recurrent layers keeps a slot for it. Unlike a page, a
state cannot be cut: it stands for exactly the tokens that went into it, ``lengths[slot]`` of them, and to have that of fewer
somebody must have copied it there. A slot is one run of memory, so that a copy is one move. This module hands slots out and
takes them back; ``gumba.backends.cpu.kernels.recurrent_state`` says what lies in one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from gumba.errors import EngineError, RequestError, ResourceError
from gumba.memory import shortage
from gumba.runner.kv_cache import aligned_zeros

#: A part of a layer's state begins at a cache line.
_ALIGN = 64


class States:
    """A pool of ``n_slots`` slots, each with one owner.

    ``parts``: of each layer, how many float32 the parts of its state have; none: a layer without. ``layouts``: of each layer,
    where its parts lie in slot 0; other slots are ``slot_bytes`` further on each. Raises ResourceError when there is not enough
    memory.
    """

    def __init__(self, parts: Sequence[Sequence[int]], n_slots: int) -> None:
        self.n_slots = n_slots
        self.slot_bytes = self.bytes_per_slot(parts)
        self.n_bytes = n_slots * self.slot_bytes
        try:
            memory = aligned_zeros(self.n_bytes)
        except MemoryError:
            raise ResourceError(
                f"{shortage(f'the states of {n_slots} sequences need', self.n_bytes)}: choose fewer (n_states)"
            ) from None
        self._memory: np.ndarray | None = memory
        self.layouts: list[tuple[int, ...]] = []
        at = int(memory.ctypes.data)
        for sizes in parts:
            layer = []
            for size in sizes:
                layer.append(at)
                at += _padded(size)
            self.layouts.append(tuple(layer))
        self._lock = threading.Lock()
        self._free = list(range(n_slots - 1, -1, -1))
        self._taken = [False] * n_slots
        #: Tokens that a slot's state has taken in.
        self.lengths = [0] * n_slots

    @staticmethod
    def bytes_per_slot(parts: Sequence[Sequence[int]]) -> int:
        """Memory of a slot, for all layers."""
        return sum(_padded(size) for sizes in parts for size in sizes)

    @property
    def n_free(self) -> int:
        """Slots that nobody owns."""
        return len(self._free)

    def allocate(self) -> int:
        """Take a slot, of a sequence without tokens. Raises ResourceError when none is free."""
        with self._lock:
            if self._memory is None:
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
            self._view(target)[...] = self._view(source)
            self.lengths[target] = self.lengths[source]

    def read(self, slot: int) -> bytes:
        """All that a taken slot holds, ``slot_bytes`` of it."""
        with self._lock:
            return self._view(slot).tobytes()

    def write(self, slot: int, data: bytes, length: int) -> None:
        """Fill a taken slot with what ``read`` gave, of ``length`` tokens. Raises RequestError for data of another length."""
        if len(data) != self.slot_bytes:
            raise RequestError(f"a state of {len(data)} bytes: expected {self.slot_bytes}")
        with self._lock:
            self._view(slot)[...] = np.frombuffer(data, np.uint8)
            self.lengths[slot] = length

    def close(self) -> None:
        """Let go of the memory; nothing can be allocated any more."""
        with self._lock:
            self._memory = None

    def owns(self, slot: int) -> bool:
        """Whether a slot is in range and taken."""
        return 0 <= slot < self.n_slots and self._taken[slot]

    def _check(self, slot: int) -> None:
        if not self.owns(slot):
            raise EngineError(f"slot {slot} for states is used or released but was not taken")

    def _view(self, slot: int) -> np.ndarray:
        self._check(slot)
        if self._memory is None:
            raise EngineError("the model is closed")
        return self._memory[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]


def _padded(size: int) -> int:
    """Bytes of a part of ``size`` float32."""
    return -(-4 * size // _ALIGN) * _ALIGN
