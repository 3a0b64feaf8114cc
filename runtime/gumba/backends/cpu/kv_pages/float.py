"""KV pages of float16 or float32. Keys lie transposed and values plain:

    keys    [head_dim][PAGE_TOKENS]     a vector = the same element of neighbouring tokens
    values  [PAGE_TOKENS][v_row]        a vector = neighbouring elements of one token (v_row: v_dim padded to 16)

so that scores (Q times K) and outputs (P times V) are the same small product: each lane sums one result in float32.
"""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.page_format import (
    PAGE_TOKENS,
    S_ROW,
    PageFormat,
    PageFunctions,
    float_product,
    rank_update,
    scale_copy,
    wide_registers,
)
from gumba.jit.jit import inline
from gumba.simd.isa import Isa
from gumba.simd.value import F16, F32, Simd, Value, simd_function


def _functions(isa: Isa, size: int) -> PageFunctions:
    def load(s: Simd, address: Value) -> Value:
        if size == 4:
            return s.load(address, F32, isa.lanes)
        return isa.from_f16(s, s.load(address, F16, isa.lanes))

    @simd_function("void(i8, i8, i8, i8)")
    def scatter(s: Simd, x: Value, out: Value, out_stride: Value, n: Value) -> None:
        with s.loop(n) as i:
            value = s.load(x + i * 4, F32)
            s.store(out + i * out_stride, value if size == 4 else isa.to_f16(s, value))

    update = rank_update(isa, float_product(isa, size, load), wide_registers(isa))

    @inline
    def store(k, v, keys, values, place, head_dim, v_dim, v_row, scratch):
        scatter(k, keys + place * size, PAGE_TOKENS * size, head_dim)
        scatter(v, values + place * v_row * size, size, v_dim)

    @inline
    def query(x, out, head_dim, scale):
        scale_copy(x, out, head_dim, scale)

    @inline
    def scores(left, q, q_row, keys, out, n_columns, head_dim):
        update(left, q, q_row, keys, PAGE_TOKENS * size, out, S_ROW, n_columns, head_dim, 1, 0)

    @inline
    def outputs(left, p, values, first_key, n_keys, o, o_row, v_row, scratch):
        update(left, p, S_ROW, values + first_key * v_row * size, v_row * size, o, o_row, v_row, n_keys, 0, 0)

    return PageFunctions(store, query, scores, outputs)


def _format(name: str, size: int) -> PageFormat:
    return PageFormat(
        name=name,
        v_align=16,
        key_bytes=lambda head_dim: head_dim * PAGE_TOKENS * size,
        value_bytes=lambda v_dim: -(-v_dim // 16) * 16 * PAGE_TOKENS * size,
        query_bytes=lambda head_dim: 4 * head_dim,
        functions=functools.cache(lambda isa: _functions(isa, size)),
    )


F16_PAGES = _format("f16", 2)
F32_PAGES = _format("f32", 4)
