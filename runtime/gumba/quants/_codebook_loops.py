"""Shared by the compiled decoders of IQ1, IQ2 and IQ3. Imported only when something is first dequantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gumba.jit.jit import inline
from gumba.quants._codebooks import Codebook
from gumba.quants._compiled import u32_at
from gumba.simd.value import F32, Simd, Value, simd_function

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gumba.jit.jit import Inline


def entry_writer(codebook: Codebook) -> Inline[None]:
    """A function that writes the weights of one entry."""
    n_entries, width = len(codebook.words), codebook.width

    @simd_function("i8()")
    def words(s: Simd) -> Value:
        return codebook.address(s)

    @simd_function("f4(i8)")
    def level(s: Simd, place: Value) -> Value:
        result = s.zero(F32)
        for i, number in enumerate(codebook.levels):
            result = s.select(place.compare("==", i), s.constant(float(number), F32), result)
        return result

    @inline
    def write_entry(index: int, signs: int, delta: float, scale: float, out: NDArray[np.float32], at: int) -> None:
        """out[at + i] = scale * (number i of entry ``index``, negated where bit i of ``signs`` is set, + ``delta``)."""
        word = u32_at(words(), n_entries)[index]
        for i in range(width):
            number = level(word >> (i % 4 * 8 + i // 4 * 4) & 7)
            out[at + i] = scale * ((-number if signs >> i & 1 else number) + delta)

    return write_entry


@inline
def with_parity(signs: int) -> int:
    """7 signs and the one that makes the number of set bits even."""
    odd = signs ^ signs >> 4
    odd ^= odd >> 2
    odd ^= odd >> 1
    return signs | (odd & 1) << 7


@inline
def word_at(data: NDArray[np.uint8], at: int) -> np.int64:
    """The little-endian 32-bit word at byte ``at``, as an int64."""
    low = np.int64(data[at]) | np.int64(data[at + 1]) << 8
    return low | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24
