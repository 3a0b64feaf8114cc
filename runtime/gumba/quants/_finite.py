"""Finds NaN and infinity in the blocks of a file, before they are packed.

A format says where its scales are (``finite``); only these are read.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from gumba.jit.jit import Intrinsic, entry, inline
from gumba.quants._format import BlockFormat
from gumba.simd.memory import load_i8, load_i16, load_i32, load_i64
from gumba.simd.value import I16, I32, I64, Simd, Value, simd_function

#: Numbers after which a branch asks whether one was not finite: within a run there is none.
_RUN = 1 << 12


def _adjacent(element: ir.IntType) -> Intrinsic[int]:
    """A function ``(address, mask)``: 1 if one of _RUN adjacent numbers has all bits of ``mask``, else 0."""
    lanes = 512 // element.width

    @simd_function("i8(i8, i8)")
    def any_adjacent(s: Simd, address: Value, mask: Value) -> Value:
        bits, largest = s.splat(mask.to(element), lanes), s.variable(s.zero(element, lanes))
        with s.loop(s.constant(_RUN // lanes, I64)) as i:
            largest.set(s.maximum(largest.get(), s.load(address + i * 64, element, lanes) & bits))
        found = s.reduce(largest.get(), s.maximum).to(I64).compare("==", mask)
        return s.select(found, s.constant(1, I64), s.constant(0, I64))

    return any_adjacent


_adjacent_16, _adjacent_32 = _adjacent(I16), _adjacent(I32)


@inline
def _apart(load: Intrinsic[int], address: int, stride: int, n: int, mask: int) -> int:
    """Whether one of ``n`` numbers, ``stride`` bytes apart, has all bits of ``mask``."""
    a = b = c = d = 0
    for _ in range(n // 4):  # four chains of comparisons: (measured) half the time of one
        a |= (load(address) & mask) == mask
        b |= (load(address + stride) & mask) == mask
        c |= (load(address + 2 * stride) & mask) == mask
        d |= (load(address + 3 * stride) & mask) == mask
        address += 4 * stride
    for _ in range(n % 4):
        a |= (load(address) & mask) == mask
        address += stride
    return a | b | c | d


@inline
def _any(address: int, stride: int, n: int, width: int, mask: int) -> int:
    """Whether one of ``n`` numbers of ``width`` bytes, ``stride`` bytes apart, has all bits of ``mask``."""
    if width == 2:
        return _adjacent_16(address, mask) if stride == 2 and n == _RUN else _apart(load_i16, address, stride, n, mask)
    if width == 4:
        return _adjacent_32(address, mask) if stride == 4 and n == _RUN else _apart(load_i32, address, stride, n, mask)
    return _apart(load_i8, address, stride, n, mask) if width == 1 else _apart(load_i64, address, stride, n, mask)


@entry("i8(i8, i8, i8, i8, i8)")
def first_not_finite(address: int, n_blocks: int, block_bytes: int, numbers: int, n_numbers: int) -> int:
    """The index of the first block with a number that has all bits of its mask; ``n_blocks``: there is none.

    ``numbers``: address of int64 [n_numbers, 3]: offset in the block, bytes, mask.
    """
    for start in range(0, n_blocks, _RUN):
        n = min(_RUN, n_blocks - start)
        first = n
        for k in range(n_numbers):
            offset, width = load_i64(numbers + 24 * k), load_i64(numbers + 24 * k + 8)
            mask = load_i64(numbers + 24 * k + 16)
            at = address + start * block_bytes + offset
            if _any(at, block_bytes, n, width, mask):
                i = 0
                while i < first and not _any(at + i * block_bytes, block_bytes, 1, width, mask):
                    i += 1
                first = i
        if first < n:
            return start + first
    return n_blocks


def find(format: BlockFormat, rows: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(row, block) of the first scale in ``rows``, uint8 [n, bytes], C-contiguous, that is not finite; None: all are."""
    numbers = np.array(format.finite, np.int64)
    n_blocks = rows.size // format.type_size
    first = first_not_finite(int(rows.ctypes.data), n_blocks, format.type_size, int(numbers.ctypes.data), len(numbers))
    return None if first == n_blocks else divmod(first, rows.shape[1] // format.type_size)
