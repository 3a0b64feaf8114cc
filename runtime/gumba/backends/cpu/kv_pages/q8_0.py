"""KV pages of q8_0: blocks of 32 elements of a token's head, int8 with one float16 scale, 8.5 bits per element.

    keys    [group of lanes tokens][block]: scales [lanes] float16, then 8 words of 4 bytes [word][lanes]
    values  [block]: [PAGE_TOKENS][32] int8, then scales [PAGE_TOKENS] float16

Keys are packed as a q8_0 weight matrix is, whose rows are tokens; a query row becomes int8 blocks like any activation, and
scores are the same integer dot products as the matrix product's. Values stay with their tokens: a token's scale goes into
its weight (P), and the product is summed in float32. head_dim and v_dim are padded with zeros to whole blocks.

A block's scale is (largest magnitude) / 127, rounded to float16 (ggml, ``quantize_row_q8_0``); the int8 numbers come from
the scale before rounding.
"""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels import activations_q8
from gumba.backends.cpu.kernels.matmul import dot_block
from gumba.backends.cpu.kernels.page_format import (
    PAGE_TOKENS,
    S_ROW,
    PageFormat,
    PageFunctions,
    block_rows,
    float_product,
    rank_update,
    scale_copy,
)
from gumba.jit.jit import Inline, Intrinsic, inline
from gumba.quants import q8_0
from gumba.simd.isa import Isa
from gumba.simd.memory import load_f32, load_i32, store_f32, store_i32
from gumba.simd.value import F16, F32, I8, Simd, Value, simd_function

BLOCK = 32
#: Of one block of values: int8 and scales of a page's tokens.
_VALUE_BLOCK = PAGE_TOKENS * (BLOCK + 2)
#: Bytes of a row of weights times scales.
_WEIGHTS_ROW = 4 * PAGE_TOKENS


def _blocks(head_dim: int) -> int:
    return -(-head_dim // BLOCK)


def _group_scores(isa: Isa, rows: int) -> Intrinsic[None]:
    """S[r, key] for one group of ``lanes`` keys: a q8_0 matrix product."""
    block_bytes = (2 + BLOCK) * isa.lanes

    @simd_function("void(i8, i8, i8, i8, i8)")
    def scores(s: Simd, q: Value, q_row: Value, keys: Value, out: Value, n_blocks: Value) -> None:
        accs = [s.variable(s.zero(F32, isa.lanes)) for _ in range(rows)]
        with s.loop(n_blocks) as k:
            [block] = q8_0.FORMAT.unpack(s, isa, keys + k * block_bytes)
            for r, acc in enumerate(accs):
                acc.set(dot_block(s, isa, block, q + q_row * r + k * activations_q8.BYTES, acc.get()))
        for r, acc in enumerate(accs):
            s.store(out + S_ROW * r, acc.get())

    return scores


@inline
def _quantize(x, n, row, out):
    """``n`` numbers, up to 32, to one block of int8; ``row``: memory for 32 floats."""
    for i in range(n):
        store_f32(row + 4 * i, load_f32(x + 4 * i))
    for i in range(n, BLOCK):
        store_f32(row + 4 * i, 0.0)
    activations_q8.quantize_block(row, out)


def _store(isa: Isa) -> Inline[None]:
    lanes = isa.lanes
    block_bytes = (2 + BLOCK) * lanes
    flip = 0 if isa.dot_signed is not None else q8_0.FORMAT.sign_flip

    @simd_function("void(i8, i8)")
    def store_half(s: Simd, x: Value, out: Value) -> None:
        s.store(out, isa.to_f16(s, s.load(x, F32)))

    @inline
    def store(k, v, keys, values, place, head_dim, v_dim, v_row, scratch):
        n_blocks = (head_dim + BLOCK - 1) // BLOCK
        block_of_x = scratch + 4 * BLOCK
        group = keys + place // lanes * (n_blocks * block_bytes)
        lane = place % lanes
        for b in range(n_blocks):
            _quantize(k + b * (4 * BLOCK), min(BLOCK, head_dim - b * BLOCK), scratch, block_of_x)
            packed = group + b * block_bytes
            store_half(block_of_x + activations_q8.SCALE, packed + 2 * lane)
            for j in range(8):
                store_i32(packed + 2 * lanes + j * (4 * lanes) + 4 * lane, load_i32(block_of_x + 4 * j) ^ flip)
        for b in range(v_row // BLOCK):
            _quantize(v + b * (4 * BLOCK), min(BLOCK, v_dim - b * BLOCK), scratch, block_of_x)
            block = values + b * _VALUE_BLOCK
            store_half(block_of_x + activations_q8.SCALE, block + PAGE_TOKENS * BLOCK + 2 * place)
            for j in range(8):
                store_i32(block + place * BLOCK + 4 * j, load_i32(block_of_x + 4 * j))

    return store


@inline
def _query(x, out, head_dim, scale):
    n_blocks = (head_dim + BLOCK - 1) // BLOCK
    row = out + n_blocks * activations_q8.BYTES
    for i in range(head_dim, n_blocks * BLOCK):
        store_f32(row + 4 * i, 0.0)
    scale_copy(x, row, head_dim, scale)
    for b in range(n_blocks):
        activations_q8.quantize_block(row + b * (4 * BLOCK), out + b * activations_q8.BYTES)


def _scores(isa: Isa) -> Inline[None]:
    lanes = isa.lanes
    block_bytes = (2 + BLOCK) * lanes
    scores_6, scores_3, scores_1 = (_group_scores(isa, rows) for rows in (6, 3, 1))

    @inline
    def scores(left, q, q_row, keys, out, n_columns, head_dim):
        n_blocks = (head_dim + BLOCK - 1) // BLOCK
        for g in range(n_columns // lanes):
            group = keys + g * (n_blocks * block_bytes)
            if left > 3:
                scores_6(q, q_row, group, out + g * (4 * lanes), n_blocks)
            elif left > 1:
                scores_3(q, q_row, group, out + g * (4 * lanes), n_blocks)
            else:
                scores_1(q, q_row, group, out + g * (4 * lanes), n_blocks)

    return scores


def _outputs(isa: Isa) -> Inline[None]:
    update = rank_update(isa, float_product(isa, 1, lambda s, address: s.load(address, I8, isa.lanes).to(F32)), 2)

    @simd_function("void(i8, i8, i8, i8)")
    def weigh(s: Simd, p: Value, scales: Value, out: Value, n: Value) -> None:
        """out = p * scales, n numbers."""
        with s.loop(n >> 4) as i:
            scale = isa.from_f16(s, s.load(scales + i * 32, F16, 16))
            s.store(out + i * 64, s.load(p + i * 64, F32, 16) * scale)
        done = n & -16
        with s.loop(n & 15) as i:
            scale = isa.from_f16(s, s.load(scales + (done + i) * 2, F16))
            s.store(out + (done + i) * 4, s.load(p + (done + i) * 4, F32) * scale)

    @inline
    def outputs(left, p, values, first_key, n_keys, o, o_row, v_row, scratch):
        for b in range(v_row // BLOCK):
            block = values + b * _VALUE_BLOCK
            for r in range(block_rows(left)):
                weigh(p + r * S_ROW, block + PAGE_TOKENS * BLOCK + 2 * first_key, scratch + r * _WEIGHTS_ROW, n_keys)
            update(left, scratch, _WEIGHTS_ROW, block + first_key * BLOCK, BLOCK, o + b * (4 * BLOCK), o_row, BLOCK,
                   n_keys, 0, 0)  # fmt: skip

    return outputs


def _functions(isa: Isa) -> PageFunctions:
    return PageFunctions(_store(isa), _query, _scores(isa), _outputs(isa))


Q8_0_PAGES = PageFormat(
    name="q8_0",
    v_align=BLOCK,
    key_bytes=lambda head_dim: _blocks(head_dim) * (BLOCK + 2) * PAGE_TOKENS,
    value_bytes=lambda v_dim: _blocks(v_dim) * _VALUE_BLOCK,
    query_bytes=lambda head_dim: _blocks(head_dim) * (activations_q8.BYTES + 4 * BLOCK),
    functions=functools.cache(_functions),
)
