"""Scales and minimums of 32 weights each, as Q4_K and Q5_K store them: 8 of both, 6 bits each, in 12 bytes.

    byte  0 ..  3   hhssssss    s the scale of group 0..3, h the high 2 bits of that of group 4..7
    byte  4 ..  7   hhmmmmmm    the same of the minimums
    byte  8 .. 11   mmmmssss    s the low 4 bits of the scale of group 4..7, m of the minimum

Both are multiples: the scale of a group is d * s, its minimum -(dmin * m), with float16 d and dmin of the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gumba.jit.jit import Inline
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


def write_scales() -> Inline[None]:
    """A compiled function: the 12 bytes of 8 scales and 8 minimums, whole numbers 0..63 as float32."""
    from gumba.jit.jit import inline

    @inline
    def write(out: NDArray[np.uint8], scales: NDArray[np.float32], minimums: NDArray[np.float32]) -> None:
        for i in range(4):
            s, m = np.int32(scales[i]), np.int32(minimums[i])
            t, n = np.int32(scales[i + 4]), np.int32(minimums[i + 4])
            out[i] = np.uint8(s | t >> 4 << 6)
            out[i + 4] = np.uint8(m | n >> 4 << 6)
            out[i + 8] = np.uint8(t & 15 | (n & 15) << 4)

    return write


def scale_and_minimum() -> Inline[tuple[np.float32, np.float32]]:
    """A compiled function: the two 6-bit numbers of group ``part``, as float32."""
    from gumba.jit.jit import inline

    @inline
    def read(scales: NDArray[np.uint8], part: int) -> tuple[np.float32, np.float32]:
        """``scales``: the 12 bytes."""
        i = part % 4
        a, b, c = np.int32(scales[i]), np.int32(scales[4 + i]), np.int32(scales[8 + i])
        if part < 4:
            return np.float32(np.int32(a & 63)), np.float32(np.int32(b & 63))
        s, m = np.int32((c & 15) | ((a >> 6) << 4)), np.int32((c >> 4) | ((b >> 6) << 4))
        return np.float32(s), np.float32(m)

    return read


def load_scales(s: Simd, isa: Isa, d: Value, dmin: Value, address: Value) -> Iterator[tuple[Value, Value]]:
    """(scale, minimum) of the 8 groups of a packed block, one float32 per lane; at ``address`` its 12 bytes in 3 words."""
    from gumba.simd.value import F32, I32

    low_scales, low_minimums, high = (s.load(address + 4 * isa.lanes * i, I32, isa.lanes) for i in range(3))
    high_scales = high & 0x0F0F0F0F | (low_scales >> 2) & 0x30303030
    high_minimums = (high >> 4) & 0x0F0F0F0F | (low_minimums >> 2) & 0x30303030
    minus_dmin = dmin * -1.0
    for scales, minimums in ((low_scales, low_minimums), (high_scales, high_minimums)):
        for i in range(4):
            scale, minimum = ((word >> 8 * i) & 63 for word in (scales, minimums))
            yield d * scale.to(F32), minus_dmin * minimum.to(F32)
