"""The search for scales that K-quants' encoders share: compiled, for GROUPS groups of 16 weights at once.

Each group looks for the scale of least squared error, large weights counting more (by their square). For a fixed rounding to
integers that scale is known exactly (weighted least squares), so a few roundings are tried: the ones that put the group's
largest weight near the end of the range. This is the idea of ggml's reference quantizer, not its bits: its 19 places 0.1 apart
cost three times as much and leave 0.6 % more error on normal weights than 7 places 0.5 apart.

Weights lie transposed, ``across`` [16 weights, GROUPS groups], so that a vector's lanes are groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gumba.jit.jit import inline
from gumba.quants._compiled import f32_at, scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Groups worked on at a time.
GROUPS = 256
#: Bytes of one number for each group.
ROW_BYTES = 4 * GROUPS
#: What a group's largest weight is scaled to: the end of the range and values around it, _TRIES in all, _SPACING apart.
_TRIES = 7
_SPACING = np.float32(0.5)
#: A group whose largest weight is below this is stored as zeros.
_TINY = np.float32(1e-30)
#: Beside this number, floats have no bits for a fraction.
_TO_INTEGER = np.float32(3 << 22)

#: Functions ``()`` giving memory for ``across``, and for one number for each group.
across_rows = scratch(16 * ROW_BYTES)
group_row = scratch(ROW_BYTES)


@inline
def rounded(x: float, low: float, high: float) -> np.float32:
    """x to the nearest integer, ties to even, within low..high; NaN gives low."""
    x = x if x > low else low
    x = x if x < high else high
    return (x + _TO_INTEGER) - _TO_INTEGER


@inline
def normalize(x_address: int, n: int, across_address: int, largest: NDArray[np.float32]) -> None:
    """n groups of 16 weights -> ``across``, each group divided by its weight of largest magnitude, ``largest``."""
    for g in range(n):
        group = f32_at(x_address + g * 64, 16)
        most = np.float32(0)
        for i in range(16):
            most = group[i] if abs(group[i]) > abs(most) else most
        largest[g] = most
        over_most = np.float32(1) / most if abs(most) > _TINY else np.float32(0)
        for i in range(16):
            f32_at(across_address + i * ROW_BYTES, GROUPS)[g] = group[i] * over_most


@inline
def best_scales(across_address: int, n: int, low: float, high: float, scale: NDArray[np.float32]) -> None:
    """scale[g] = what makes scale * integers (``low`` to ``high``) closest to group g."""
    product, square, best = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    for g in range(n):
        best[g] = np.float32(-1)
        scale[g] = np.float32(0)
    for t in range(_TRIES):
        steps = low + _SPACING * np.float32(t - _TRIES // 2)
        for g in range(n):
            product[g] = np.float32(0)
            square[g] = np.float32(0)
        for i in range(16):
            row = f32_at(across_address + i * ROW_BYTES, GROUPS)
            for g in range(n):
                x = row[g]
                q = rounded(x * steps, low, high)
                product[g] += x * x * x * q
                square[g] += x * x * q * q
        for g in range(n):
            fit = product[g] / square[g] if square[g] > np.float32(0) else np.float32(0)
            gain = fit * product[g]  # how much of the weighted sum of squares it explains
            scale[g] = fit if gain > best[g] else scale[g]
            best[g] = gain if gain > best[g] else best[g]
