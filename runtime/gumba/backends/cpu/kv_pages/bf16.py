"""KV pages of bfloat16, for dot products of pairs (``vdpbf16ps``: twice float32's multiply-adds in an instruction).

    keys    [pair of elements][PAGE_TOKENS][2]     a lane = two neighbouring elements of a token
    values  [pair of tokens][v_row][2]             a lane = the same element of two neighbouring tokens

Queries and weights (P) are rounded to bfloat16 too; sums are float32. What most checkpoints were trained in: the 8 bits of
bfloat16 are also what transformers and vLLM store of keys and values by default. Sets without such instructions multiply the
same numbers in float32.
"""

from __future__ import annotations

import functools

import numpy as np

from gumba.backends.cpu.kernels.page_format import (
    PAGE_TOKENS,
    S_ROW,
    PageFormat,
    PageFunctions,
    Product,
    block_rows,
    rank_update,
    wide_registers,
)
from gumba.jit.jit import inline
from gumba.simd.isa import Isa
from gumba.simd.memory import load_i16, load_i32, store_i16, store_i32
from gumba.simd.value import F32, I32, Simd, Value, simd_function

#: Bytes of a row of weights as bfloat16.
_WEIGHTS_ROW = 2 * PAGE_TOKENS


def _functions(isa: Isa) -> PageFunctions:
    lanes = isa.lanes

    @simd_function("void(i8, i8, i8, f4)")
    def convert(s: Simd, x: Value, out: Value, n: Value, factor: Value) -> None:
        """``n`` float32 times ``factor`` to bfloat16."""
        whole = n & -lanes
        with s.loop(whole, step=lanes) as i:
            s.store(out + i * 2, isa.to_bf16(s, s.load(x + i * 4, F32, lanes) * s.splat(factor, lanes)))
        with s.loop(n - whole) as i:
            s.store(out + (whole + i) * 2, isa.to_bf16(s, s.load(x + (whole + i) * 4, F32) * factor))

    @simd_function("void(i8, i8, i8)")
    def convert_vectors(s: Simd, x: Value, out: Value, n: Value) -> None:
        """``n`` float32 (and some more, up to a whole vector) to bfloat16."""
        with s.loop(n, step=lanes) as i:
            s.store(out + i * 2, isa.to_bf16(s, s.load(x + i * 4, F32, lanes)))

    product = Product(
        element=I32,
        size=4,
        load=lambda s, address: s.load(address, I32, lanes),
        multiply_add=lambda s, a, b, acc: isa.pair_dot(s, acc, a, b),
        last=lambda s, b: b & 0xFFFF,  # the second token of the pair may be NaN
    )
    update = rank_update(isa, product, wide_registers(isa))

    @inline
    def query(x, out, head_dim, scale):
        convert(x, out, head_dim, scale)
        if head_dim % 2 == 1:
            store_i16(out + 2 * head_dim, 0)

    @inline
    def store(k, v, keys, values, place, head_dim, v_dim, v_row, scratch):
        query(k, scratch, head_dim, np.float32(1))
        for i in range((head_dim + 1) // 2):
            store_i32(keys + i * (4 * PAGE_TOKENS) + 4 * place, load_i32(scratch + 4 * i))
        convert(v, scratch, v_dim, np.float32(1))
        row = values + place // 2 * (4 * v_row) + place % 2 * 2
        for i in range(v_dim):
            store_i16(row + 4 * i, load_i16(scratch + 2 * i))

    @inline
    def scores(left, q, q_row, keys, out, n_columns, head_dim):
        update(left, q, q_row, keys, 4 * PAGE_TOKENS, out, S_ROW, n_columns, (head_dim + 1) // 2, 1, 0)

    @inline
    def outputs(left, p, values, first_key, n_keys, o, o_row, v_row, scratch):
        for r in range(block_rows(left)):
            convert_vectors(p + r * S_ROW, scratch + r * _WEIGHTS_ROW, n_keys)
        update(left, scratch, _WEIGHTS_ROW, values + first_key // 2 * (4 * v_row), 4 * v_row, o, o_row, v_row,
               n_keys // 2, 0, n_keys % 2)  # fmt: skip

    return PageFunctions(store, query, scores, outputs)


BF16_PAGES = PageFormat(
    name="bf16",
    v_align=16,
    key_bytes=lambda head_dim: -(-head_dim // 2) * 4 * PAGE_TOKENS,
    value_bytes=lambda v_dim: -(-v_dim // 16) * 16 * 2 * PAGE_TOKENS,
    query_bytes=lambda head_dim: -(-head_dim // 2) * 4,
    functions=functools.cache(_functions),
    together=2,
)
