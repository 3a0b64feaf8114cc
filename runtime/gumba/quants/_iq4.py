"""What IQ4_NL and IQ4_XS share: 16 values, denser around 0 as weights are, each weight a nibble that names one.

The search for scales is compiled for GROUPS groups of 32 weights at once. A group's scale is the one of least squared error,
large weights counting more (by their square). For fixed codes that scale is known exactly (weighted least squares), so some
codes are tried: those that put the group's largest weight at the lowest value, at the highest, and a bit outside of them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from gumba.jit.jit import inline
from gumba.quants._compiled import f32_at, scratch
from gumba.simd.value import F32, I32, I64, Simd, Value, simd_function

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The values, by code.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
#: Groups of 32 weights worked on at a time.
GROUPS = 64
_ROW_BYTES = 4 * GROUPS
#: What a group's largest weight is scaled to: each of these is tried.
_TARGETS = (-141.0, -136.0, -131.0, -127.0, -123.0, -119.0, 108.0, 113.0, 118.0, 123.0, 129.0)
#: A group whose largest weight is below this is stored as zeros.
_TINY = np.float32(1e-30)

#: Functions ``()`` giving memory for 32 rows of one number for each group, and for one row.
_across_rows = scratch(32 * _ROW_BYTES)
_group_row = scratch(_ROW_BYTES)


@simd_function("f4(f4)")
def nearest_value(s: Simd, x: Value) -> Value:
    """The nearest of the 16 values, as a float32; ties go to the lower one."""
    result = s.constant(float(IQ4_VALUES[0]), F32)
    for below, value in itertools.pairwise(IQ4_VALUES):
        result = s.select(x.compare(">", (below + value) / 2), s.constant(float(value), F32), result)
    return result


@simd_function("i8(f4)")
def nearest_code(s: Simd, x: Value) -> Value:
    """Which of the 16 values ``nearest_value`` gives."""
    code = s.zero(I32)
    for below, value in itertools.pairwise(IQ4_VALUES):
        code = code + s.select(x.compare(">", (below + value) / 2), s.constant(1, I32), s.zero(I32))
    return code.unsigned_to(I64)


@simd_function("f4(i8)")
def value_of(s: Simd, code: Value) -> Value:
    """The value that a nibble names."""
    result = s.constant(float(IQ4_VALUES[0]), F32)
    for k, value in enumerate(IQ4_VALUES):
        result = s.select(code.compare("==", k), s.constant(float(value), F32), result)
    return result


@inline
def _try_target(
    across_address: int, n: int, target: float, scale: NDArray[np.float32], best: NDArray[np.float32]
) -> None:
    """Keep the scale of each of ``n`` groups whose largest weight stands at ``target``, where it explains more than the best."""
    product, square = f32_at(_group_row(), GROUPS), f32_at(_group_row(), GROUPS)
    for g in range(n):
        product[g] = np.float32(0)
        square[g] = np.float32(0)
    for i in range(32):
        row = f32_at(across_address + i * _ROW_BYTES, GROUPS)
        for g in range(n):
            x = row[g]
            value = nearest_value(x * target)
            product[g] += x * x * x * value
            square[g] += x * x * value * value
    for g in range(n):
        fit = product[g] / square[g] if square[g] > np.float32(0) else np.float32(0)
        gain = fit * product[g]  # how much of the weighted sum of squares it explains
        scale[g] = fit if gain > best[g] else scale[g]
        best[g] = gain if gain > best[g] else best[g]


@inline
def best_scales(x_address: int, n: int, scale_address: int) -> None:
    """The best scales, float32 [n], of ``n`` (at most GROUPS) groups of 32 weights at ``x_address``."""
    across, scale = _across_rows(), f32_at(scale_address, GROUPS)
    largest, best = f32_at(_group_row(), GROUPS), f32_at(_group_row(), GROUPS)
    for g in range(n):
        group = f32_at(x_address + g * 128, 32)
        most = np.float32(0)
        for i in range(32):
            most = group[i] if abs(group[i]) > abs(most) else most
        largest[g] = most
        over_most = np.float32(1) / most if abs(most) > _TINY else np.float32(0)
        for i in range(32):
            f32_at(across + i * _ROW_BYTES, GROUPS)[g] = group[i] * over_most
        scale[g] = np.float32(0)
        best[g] = np.float32(-1)
    for target in _TARGETS:
        _try_target(across, n, np.float32(target), scale, best)
    for g in range(n):
        scale[g] = scale[g] * largest[g]


@inline
def write_codes(x: NDArray[np.float32], over_scale: float, out: NDArray[np.uint8], at: int, n: int) -> None:
    """The nibbles of 32 weights to bytes ``at`` on: weights i and i + 16 in byte i (n is 16)."""
    for i in range(n):
        low, high = nearest_code(x[i] * over_scale), nearest_code(x[i + 16] * over_scale)
        out[at + i] = np.uint8(low | high << 4)
