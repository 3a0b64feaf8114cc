"""The memory of recurrent states: the bytes of a slot are contiguous, so that it is copied at once.

The layout of a part of a layer's state is in ``kernels.delta_net``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.backends.cache_shapes import ConvState, StateShape
from gumba.backends.cpu.cache_pages import aligned_zeros
from gumba.backends.cpu.kernels.recurrent_state import COLUMNS
from gumba.errors import EngineError

#: Alignment of a part of a layer's state: a cache line.
_ALIGN = 64


def part_bytes(shape: StateShape) -> int:
    """Size of one part of a layer's state."""
    if isinstance(shape, ConvState):
        n_floats = -(-shape.width // COLUMNS) * COLUMNS * (shape.n_taps - 1)
    else:
        n_floats = shape.n_heads * shape.dim * shape.dim
    return -(-4 * n_floats // _ALIGN) * _ALIGN


def slot_bytes(parts: Sequence[Sequence[StateShape]]) -> int:
    """Size of a slot, for all layers."""
    return sum(part_bytes(shape) for layer in parts for shape in layer)


class CPUStateSlots:
    """The CPU's ``gumba.backends.base.StateSlots``.

    ``layouts``: for each layer, the addresses of its parts in slot 0; the next slot is ``slot_bytes`` further.
    """

    def __init__(self, parts: Sequence[Sequence[StateShape]], n_slots: int) -> None:
        self.slot_bytes = slot_bytes(parts)
        self.n_bytes = n_slots * self.slot_bytes
        memory = aligned_zeros(self.n_bytes)
        self._memory: np.ndarray | None = memory
        self.layouts: list[tuple[int, ...]] = []
        at = int(memory.ctypes.data)
        for layer in parts:
            addresses = []
            for shape in layer:
                addresses.append(at)
                at += part_bytes(shape)
            self.layouts.append(tuple(addresses))

    def copy(self, source: int, target: int) -> None:
        """Copy the state in one slot to another."""
        self._view(target)[...] = self._view(source)

    def read(self, slot: int) -> bytes:
        """The state in a slot, ``slot_bytes`` bytes."""
        return self._view(slot).tobytes()

    def write(self, slot: int, data: bytes) -> None:
        """Fill a slot with what ``read`` returned."""
        self._view(slot)[...] = np.frombuffer(data, np.uint8)

    def close(self) -> None:
        """Free the memory. The other methods raise EngineError from then on."""
        self._memory = None

    def _view(self, slot: int) -> np.ndarray:
        if self._memory is None:
            raise EngineError("the model is closed")
        return self._memory[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]
