"""What a block format declares: one value in each format's file, a ``FloatFormat`` or a ``DotFormat``.

The two differ in what a matrix product does with them. A float format's block is one number: it becomes float32 in a register
and is multiplied by float32 activations. A dot format's block becomes bytes in registers, whose products with int8
activations are summed as integers before a scale is applied; so it says how bytes, scales and minimums lie in the block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gumba.quants._codec import Codec

if TYPE_CHECKING:  # reading and writing blocks needs none of these, which import llvmlite
    from gumba.quants._registers import BlockRegisters
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value

#: Columns that a dot product takes at a time, and one block of int8 activations holds.
DOT_COLUMNS = 32


class PackField(NamedTuple):
    """``elements`` of ``width`` bytes (1, 2 or 4) each, from byte ``offset`` of a packed block on.

    A packed matrix stores the same element of ``lanes`` rows side by side.
    """

    offset: int
    width: int
    elements: int


class Finite(NamedTuple):
    """A number of ``width`` bytes (1, 2, 4 or 8) at byte ``offset`` of a block that must be finite.

    It is NaN or infinite if it has all bits of ``mask``: those of the exponent in float16 and float32.
    """

    offset: int
    width: int
    mask: int


_EXPONENTS = {np.dtype("<f2"): 0x7C00, np.dtype("<f4"): 0x7F800000}


def _floats(dtype: np.dtype[np.generic]) -> tuple[Finite, ...]:
    """The float16 and float32 numbers of a block."""
    fields = dtype.fields or {"": (dtype, 0)}
    typed = [(offset, *(kind.subdtype or (kind, ()))) for kind, offset, *_ in fields.values()]
    return tuple(
        Finite(offset + i * kind.itemsize, kind.itemsize, _EXPONENTS[kind])
        for offset, kind, shape in typed
        if kind in _EXPONENTS
        for i in range(math.prod(shape))
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Format(Codec):
    """What both kinds declare: how blocks are written and read (``Codec``), and what a packed matrix keeps of them.

    ``ggml_type``: its id in GGUF files; ``dtype``: a block as a NumPy dtype; ``pack_fields``: the parts of a packed block, in the
    order in which a packed matrix keeps them (``gumba.backends.cpu.packing``); ``other_finite``: scales that the
    dtype does not show to be floats.
    """

    ggml_type: int
    dtype: np.dtype[np.generic]
    pack_fields: tuple[PackField, ...]
    other_finite: tuple[Finite, ...] = ()

    #: What a product's activations must be: float32, or int8 blocks (``gumba.backends.cpu.kernels.activations_q8``).
    activation: ClassVar[Literal["f32", "q8"]]

    @functools.cached_property
    def finite(self) -> tuple[Finite, ...]:
        """The numbers of a block that must be finite: its scales and minimums, or its one number."""
        return _floats(self.dtype) + self.other_finite

    @property
    def packed_block_size(self) -> int:
        """Weights in a packed block."""
        return self.block_size

    @property
    def packed_block_bytes(self) -> int:
        """Bytes of a packed block, for each row."""
        return sum(field.width * field.elements for field in self.pack_fields)


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatFormat(_Format):
    """Plain numbers, each a block of its own.

    ``unpack(s, isa, address)``: one column of ``isa.lanes`` rows, as float32.
    """

    unpack: Callable[[Simd, Isa, Value], Value]

    activation = "f32"


@dataclass(frozen=True, kw_only=True, eq=False)
class DotFormat(_Format):
    """Blocks of small integers with scales.

    ``unpack(s, isa, address)``: yields a packed block of ``isa.lanes`` rows, DOT_COLUMNS columns at a time, first columns first.
    For a block of 256 it yields eight times, so that only one part's weights are in registers at a time.

    ``to_packed``: turns rows as in the file, uint8 [n, bytes], into rows of the packed blocks that ``pack_fields`` describes, of
    ``packed_block_size`` weights each (a multiple of DOT_COLUMNS that divides ``block_size``); None: blocks stay as they are.
    ``sign_flip``: XORed into each 4-byte element where the instruction set multiplies only unsigned weights; 0: nothing.
    ``expand``: ``unpack`` takes so long that, for many tokens, its results are written to memory once and read from there
    for each tile (``gumba.backends.cpu.kernels.expanded``).
    """

    unpack: Callable[[Simd, Isa, Value], Iterator[BlockRegisters]]
    packed_block_size: int = DOT_COLUMNS
    to_packed: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    sign_flip: int = 0
    expand: bool = False

    activation = "q8"


#: A block format of either kind.
BlockFormat: TypeAlias = FloatFormat | DotFormat
