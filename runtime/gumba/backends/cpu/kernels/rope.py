"""Rotary position embedding (Su et al. 2021), in place, from a table of cosines and sines.

The table holds two rows per position, each ``rope_dim`` floats: cosines, and signed sines, laid out as the elements of a head
are: element i of the result is ``x[i] * cos[i] + x[partner of i] * sin[i]``. For neighbouring pairs ("normal", GGUF's llama)
the partner of 2 i is 2 i + 1; for halves ("NEOX") it is i + rope_dim / 2.
"""

from __future__ import annotations

import numpy as np

from gumba.backends.cpu.kernels.record import N_TOKENS, POSITIONS, first_unit, kernel, next_unit
from gumba.elementary import cos_sin
from gumba.jit.jit import inline
from gumba.simd.memory import load_f32, load_i32, load_i64, store_f32
from gumba.simd.value import F32, Simd, Value, simd_function

#: Positions whose cosines and sines are computed from those of the first of them.
_RUN = 256


def cos_sin_table(inverse_frequencies: np.ndarray, n_positions: int, scale: float, neox: bool) -> np.ndarray:
    """float32 [n_positions, 2, rope_dim], the same bits on every machine.

    ``inverse_frequencies``: float64 [rope_dim / 2], radians per position; ``scale``: factor of both (YaRN's magnitude).

    A position's angle is the sum of two: of the first position of its run of _RUN, and of its place in the run. So few cosines
    and sines are computed, and of the others every one takes two products (faster than NumPy's ``cos`` and ``sin``).
    """
    half = len(inverse_frequencies)
    rows = np.arange(min(_RUN, n_positions), dtype=np.float64)
    starts = np.arange(0, n_positions, _RUN, dtype=np.float64)
    cos_in, sin_in = cos_sin(rows[:, None] * inverse_frequencies[None, :].astype(np.float64))
    cos_of, sin_of = cos_sin(starts[:, None] * inverse_frequencies[None, :].astype(np.float64))
    table = np.empty((n_positions, 2, 2 * half), np.float32)
    first, second = (slice(0, half), slice(half, None)) if neox else (slice(0, None, 2), slice(1, None, 2))
    for run, start in enumerate(range(0, n_positions, _RUN)):
        part = table[start : start + _RUN]
        n = len(part)
        cos = (cos_in[:n] * cos_of[run] - sin_in[:n] * sin_of[run]) * scale
        sin = (sin_in[:n] * cos_of[run] + cos_in[:n] * sin_of[run]) * scale
        part[:, 0, first] = part[:, 0, second] = cos
        part[:, 1, first], part[:, 1, second] = -sin, sin
    return table


@simd_function("void(i8, i8, i8, i8)")
def _rotate_pairs(s: Simd, x: Value, cos: Value, sin: Value, n_vectors: Value) -> None:
    swap = [i ^ 1 for i in range(8)]
    with s.loop(n_vectors) as i:
        v = s.load(x + i * 32, F32, 8)
        rotated = v * s.load(cos + i * 32, F32, 8) + s.shuffle(v, swap) * s.load(sin + i * 32, F32, 8)
        s.store(x + i * 32, rotated)


@simd_function("void(i8, i8, i8, i8, i8)")
def _rotate_halves(s: Simd, x: Value, cos: Value, sin: Value, half_bytes: Value, n_vectors: Value) -> None:
    with s.loop(n_vectors) as i:
        at = i * 32
        a, b = s.load(x + at, F32, 8), s.load(x + half_bytes + at, F32, 8)
        c, n = s.load(cos + at, F32, 8), s.load(sin + half_bytes + at, F32, 8)
        s.store(x + at, a * c + b * (s.zero(F32, 8) - n))
        s.store(x + half_bytes + at, b * c + a * n)


@inline
def _rotate_one(x, i, j, cos, sin):
    a = load_f32(x + 4 * i)
    b = load_f32(x + 4 * j)
    store_f32(x + 4 * i, a * load_f32(cos + 4 * i) + b * load_f32(sin + 4 * i))
    store_f32(x + 4 * j, b * load_f32(cos + 4 * j) + a * load_f32(sin + 4 * j))


@kernel(stealable=True)
def rope(batch, thread, n_threads, view, x, stride, n_heads, head_dim, rope_dim, table, neox):
    """x: float32 [n_tokens, n_heads, head_dim] in place; the first ``rope_dim`` elements of each head are rotated.

    ``view``: 0, or OUTPUTS_VIEW for rows of only the tokens whose logits are needed.
    """
    batch += view
    n = load_i64(batch + N_TOKENS)
    positions = load_i64(batch + POSITIONS)
    half = rope_dim // 2
    t, h, n_units = first_unit(n, n_heads, thread, n_threads)
    for _ in range(n_units):
        cos = table + load_i32(positions + 4 * t) * (8 * rope_dim)
        sin = cos + 4 * rope_dim
        head = x + t * stride + h * head_dim * 4
        if neox != 0:
            vectors = half // 8
            _rotate_halves(head, cos, sin, 4 * half, vectors)
            for i in range(8 * vectors, half):
                _rotate_one(head, i, half + i, cos, sin)
        else:
            vectors = rope_dim // 8
            _rotate_pairs(head, cos, sin, vectors)
            for i in range(4 * vectors, half):
                _rotate_one(head, 2 * i, 2 * i + 1, cos, sin)
        t, h = next_unit(t, h, n_heads)
