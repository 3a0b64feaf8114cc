"""The matrix product: ``out[t, r] = sum over columns of x[t, c] * w[r, c]`` (+ a residual), for weights of every format.

Tiling: threads split the groups of ``lanes`` weight rows. A thread takes TOKEN_BLOCK tokens at a time, so that their
activations stay in its cache; under them it walks its groups, and for each group the tokens in tiles of 8, 4, 2, 1. A tile
keeps one accumulator register per token; the group's weights are unpacked to registers once per tile and used for all its
tokens. So one token reads every weight byte once (memory-bound), and many tokens run from cache (bound by arithmetic).

The order of summation of an output element is the same for all of that: block after block, exact integers within a block,
one float32 multiply-add per block, or two for its halves with scales of their own, and one for each minimum; for float formats
even and odd columns by themselves, then both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from gumba.backends.cpu.kernels import activations_q8
from gumba.backends.cpu.kernels.expanded import EXPANDED_BLOCKS, ExpandedLayout, expand_blocks, expanded_layout
from gumba.backends.cpu.kernels.matrix_tile import matrix_tile
from gumba.backends.cpu.kernels.record import Kernel, kernel, share
from gumba.jit.jit import Inline, Intrinsic, inline
from gumba.quants import BlockFormat, DotFormat, FloatFormat
from gumba.quants._compiled import scratch
from gumba.quants._format import DOT_COLUMNS
from gumba.quants._registers import BlockRegisters
from gumba.simd.isa import Isa, MatrixUnit
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, I8, I32, Simd, Value, Variable, simd_function

#: Tokens that a thread multiplies with all its rows before it goes on to the next ones.
TOKEN_BLOCK = 128
#: Numbers of tokens, as ``Isa.tiles``, of a set with a matrix unit where products are its vector registers'.
VECTOR_TILES = (8, 4, 2, 1)
#: Bytes of weights ahead that are prefetched to the second-level and to the first-level cache. (Measured on Emerald Rapids, one
#: thread, q4_0 from memory: one token 17.3 GB/s, plain reads 17.4, without 9.9; two tokens 12.8, with the next group's lines
#: prefetched instead 10.4; from 16 tokens on all are alike.)
FAR, NEAR = 16384, 4096


def _prefetch(s: Simd, w: Value, lines: range) -> None:
    """Prefetch ``lines`` (offsets from ``w``) of what comes later."""
    for line in lines:
        s.prefetch(w + (FAR + line), level=2)
        s.prefetch(w + (NEAR + line))


def _finish(s: Simd, accs: list[Variable], out: Value, out_stride: Value, residual: Value) -> None:
    with s.when(residual.compare("!=", 0)):
        for t, acc in enumerate(accs):
            acc.set(acc.get() + s.load(residual + out_stride * t, F32, acc.get().lanes))
    for t, acc in enumerate(accs):
        s.store(out + out_stride * t, acc.get())


def _dots(s: Simd, isa: Isa, w: BlockRegisters, tokens: Sequence[Value]) -> list[tuple[Value, ...]]:
    """The integer dot products of a packed weight block with the activation blocks at ``tokens``: for each scale one."""
    dot = isa.dot_signed if w.signed and isa.dot_signed is not None else isa.dot_unsigned

    def part(half: int | None, first: int, last: int) -> list[Value]:
        """The products of weight registers ``first`` up to ``last``: one half of the block, or all of it."""
        weights = w.weights[first:last]
        if w.offset == 0:
            starts = [s.zero(I32, isa.lanes)] * len(tokens)
        else:
            starts = [s.splat(activations_q8.load_start(s, x, w.offset, half), isa.lanes) for x in tokens]
        if isa.dot_tile is not None and len(tokens) > 1:
            return isa.dot_tile(s, starts, weights, [x + 4 * first for x in tokens], w.w_max, w.signed)
        words = [[s.load(x + 4 * j, I32) for j in range(first, last)] for x in tokens]
        acts = [[s.splat(word, isa.lanes).bits(I8, 4 * isa.lanes) for word in of_token] for of_token in words]
        return [dot(s, start, weights, a, w.w_max) for start, a in zip(starts, acts)]

    if len(w.scales) == 1:
        return [(total,) for total in part(None, 0, 8)]
    return list(zip(part(0, 0, 4), part(1, 4, 8)))


def _add_scaled(s: Simd, isa: Isa, w: BlockRegisters, x: Value, totals: Sequence[Value], acc: Value) -> Value:
    """``acc`` plus the product of a weight block with the activation block at ``x``, whose integers are ``totals``."""
    x_scale = s.splat(s.load(x + activations_q8.SCALE, F32), isa.lanes)
    if len(totals) == 1:
        acc = isa.multiply_add(s, totals[0].to(F32), w.scales[0] * x_scale, acc)
    else:
        low, high = (total.to(F32) for total in totals)
        acc = isa.multiply_add(s, isa.multiply_add(s, high, w.scales[1], low * w.scales[0]), x_scale, acc)
    sums_at = activations_q8.HALF_SUMS if len(w.minimums) == 2 else (activations_q8.SUM,)
    for minimum, at in zip(w.minimums, sums_at):
        acc = isa.multiply_add(s, minimum, s.splat(s.load(x + at, F32), isa.lanes), acc)
    return acc


def dot_blocks(s: Simd, isa: Isa, w: BlockRegisters, tokens: Sequence[Value], accs: Sequence[Value]) -> list[Value]:
    """Each of ``accs`` plus the product of a packed weight block with the activation block at one of ``tokens``."""
    totals = _dots(s, isa, w, tokens)
    return [_add_scaled(s, isa, w, x, total, acc) for x, total, acc in zip(tokens, totals, accs)]


def dot_block(s: Simd, isa: Isa, w: BlockRegisters, x: Value, acc: Value) -> Value:
    """``dot_blocks`` of one token."""
    return dot_blocks(s, isa, w, [x], [acc])[0]


def _float_tile(format: FloatFormat, isa: Isa, tokens: int) -> Intrinsic[None]:
    """A compiled function: one group of rows with ``tokens`` rows of float32."""
    column_bytes = format.packed_block_bytes * isa.lanes

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8)")
    def tile(
        s: Simd, w: Value, x: Value, x_stride: Value, out: Value, out_stride: Value, residual: Value, n_blocks: Value
    ) -> None:
        # Even and odd columns apart: a sum waits for its last addition, so two of them run twice as fast as one.
        even, odd = ([s.variable(s.zero(F32, isa.lanes)) for _ in range(tokens)] for _ in range(2))

        def column(sums: list[Variable], k: Value) -> None:
            weights = format.unpack(s, isa, w + k * column_bytes)
            at = [x + x_stride * t + k * 4 for t in range(tokens)]
            for t, acc in enumerate(sums):
                acc.set(isa.multiply_add(s, s.splat(s.load(at[t], F32), isa.lanes), weights, acc.get()))

        with s.loop(n_blocks & -2, step=2) as k:
            _prefetch(s, w + k * column_bytes, range(0, 2 * column_bytes, 64))
            column(even, k)
            column(odd, k + 1)
        with s.when((n_blocks & 1).compare("==", 1)):
            column(even, n_blocks - 1)
        for acc, other in zip(even, odd):
            acc.set(acc.get() + other.get())
        _finish(s, even, out, out_stride, residual)

    return tile


def _accumulate(s: Simd, isa: Isa, block: BlockRegisters, at: list[Value], accs: list[Variable]) -> None:
    """Add the products of a packed weight block with the activation blocks at ``at`` to ``accs``."""
    if isa.dot_tile is not None:
        for acc, value in zip(accs, dot_blocks(s, isa, block, at, [acc.get() for acc in accs])):
            acc.set(value)
    else:  # token after token, so that no more than one token's numbers are in registers
        for t, acc in enumerate(accs):
            acc.set(dot_block(s, isa, block, at[t], acc.get()))


def _dot_tile(format: DotFormat, isa: Isa, tokens: int) -> Intrinsic[None]:
    """A compiled function: one group of rows with ``tokens`` rows of int8 blocks."""
    block_bytes = format.packed_block_bytes * isa.lanes
    parts = format.packed_block_size // DOT_COLUMNS
    x_bytes = parts * activations_q8.BYTES  # of the activations that one block is multiplied by
    lines = range(0, block_bytes, 64)

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8)")
    def tile(
        s: Simd, w: Value, x: Value, x_stride: Value, out: Value, out_stride: Value, residual: Value, n_blocks: Value
    ) -> None:
        accs = [s.variable(s.zero(F32, isa.lanes)) for _ in range(tokens)]
        with s.loop(n_blocks) as k:
            w_at = w + k * block_bytes
            for part, block in enumerate(format.unpack(s, isa, w_at)):
                _prefetch(s, w_at, lines[part::parts])
                at = [x + x_stride * t + k * x_bytes + part * activations_q8.BYTES for t in range(tokens)]
                _accumulate(s, isa, block, at, accs)
        _finish(s, accs, out, out_stride, residual)

    return tile


def _expanded_tile(layout: ExpandedLayout, isa: Isa, tokens: int) -> Intrinsic[None]:
    """A compiled function: ``n_blocks`` expanded blocks of a group with ``tokens`` rows of int8 blocks.

    The sums begin with those in ``out`` where ``continued`` is not 0.
    """

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8, i8)")
    def tile(
        s: Simd, w: Value, x: Value, x_stride: Value, out: Value, out_stride: Value, residual: Value, n_blocks: Value,
        continued: Value,
    ) -> None:  # fmt: skip
        accs = [s.variable(s.zero(F32, isa.lanes)) for _ in range(tokens)]
        with s.when(continued.compare("!=", 0)):
            for t, acc in enumerate(accs):
                acc.set(s.load(out + out_stride * t, F32, isa.lanes))
        with s.loop(n_blocks) as k:
            at = [x + x_stride * t + k * activations_q8.BYTES for t in range(tokens)]
            _accumulate(s, isa, layout.load(s, w + k * layout.block_bytes), at, accs)
        _finish(s, accs, out, out_stride, residual)

    return tile


@functools.cache
def _tiles(format: BlockFormat, isa: Isa, tokens: int) -> Inline[int]:
    """A compiled loop that takes ``tokens`` tokens at a time, for one group of rows; returns the first remaining token.

    One function for each size: where an instruction set has tiles of one size twice, they share their code.
    """
    tile = _float_tile(format, isa, tokens) if isinstance(format, FloatFormat) else _dot_tile(format, isa, tokens)

    @inline
    def loop(t, last, w, x, x_stride, out, out_stride, residual, n_blocks):
        while t + tokens <= last:
            r = residual + t * out_stride if residual != 0 else 0
            tile(w, x + t * x_stride, x_stride, out + t * out_stride, out_stride, r, n_blocks)
            t += tokens
        return t

    return loop


@functools.cache
def _expanded_tiles(layout: ExpandedLayout, isa: Isa, tokens: int) -> Inline[int]:
    """As ``_tiles``, of expanded blocks."""
    unit = isa.matrix_unit
    if unit is not None and layout.centred and tokens == unit.tokens:
        return _matrix_tiles(layout, isa, unit)
    tile = _expanded_tile(layout, isa, tokens)

    @inline
    def loop(t, last, w, x, x_stride, out, out_stride, residual, n_blocks, continued):
        while t + tokens <= last:
            r = residual + t * out_stride if residual != 0 else 0
            tile(w, x + t * x_stride, x_stride, out + t * out_stride, out_stride, r, n_blocks, continued)
            t += tokens
        return t

    return loop


def _matrix_tiles(layout: ExpandedLayout, isa: Isa, unit: MatrixUnit) -> Inline[int]:
    """``_expanded_tiles`` by the matrix unit, set up once for all tiles: that takes as long as the products of four blocks."""
    tile, tokens = matrix_tile(layout, isa, unit, _add_scaled, _finish), unit.tokens

    @simd_function("void()")
    def begin(s: Simd) -> None:
        unit.begin(s)

    @simd_function("void()")
    def end(s: Simd) -> None:
        unit.end(s)

    @inline
    def loop(t, last, w, x, x_stride, out, out_stride, residual, n_blocks, continued):
        if t + tokens <= last:
            begin()
            while t + tokens <= last:
                r = residual + t * out_stride if residual != 0 else 0
                tile(w, x + t * x_stride, x_stride, out + t * out_stride, out_stride, r, n_blocks, continued)
                t += tokens
            end()
        return t

    return loop


def _expanded_groups(format: DotFormat, isa: Isa) -> Inline[None]:
    """``token_groups`` for a format whose blocks are expanded for many tokens.

    For a few tokens, blocks are unpacked to registers, as with other formats: writing and reading takes longer than one or two
    tiles gain from it. (Measured with AVX-512: 2 and 4 tokens of Q5_0, Q5_K and Q6_K are 1.3 to 1.5 times as fast.)
    """
    few = isa.tiles[1]
    few_middle, few_small, few_one = (_tiles(format, isa, size) for size in isa.tiles[1:])
    layout = expanded_layout(format, isa)
    expand = expand_blocks(format, isa, layout)
    parts = format.packed_block_size // DOT_COLUMNS
    step, block_bytes = EXPANDED_BLOCKS // parts, format.packed_block_bytes * isa.lanes
    x_bytes = parts * activations_q8.BYTES
    memory = scratch(EXPANDED_BLOCKS * layout.block_bytes)
    sizes = isa.tiles if layout.centred or isa.matrix_unit is None else VECTOR_TILES
    tiles_big, tiles_middle, tiles_small, tiles_one = (_expanded_tiles(layout, isa, size) for size in sizes)

    @inline
    def group(w, x, x_stride, out, out_stride, residual, n_blocks, t, last):
        if last - t <= few:
            t = few_middle(t, last, w, x, x_stride, out, out_stride, residual, n_blocks)
            t = few_small(t, last, w, x, x_stride, out, out_stride, residual, n_blocks)
            few_one(t, last, w, x, x_stride, out, out_stride, residual, n_blocks)
        else:
            blocks = memory()
            for b in range(0, n_blocks, step):
                count = min(step, n_blocks - b)
                expand(w + b * block_bytes, count, n_blocks * block_bytes, blocks)
                r, at, n = residual if b + count == n_blocks else 0, x + b * x_bytes, count * parts
                i = tiles_big(t, last, blocks, at, x_stride, out, out_stride, r, n, b)
                i = tiles_middle(i, last, blocks, at, x_stride, out, out_stride, r, n, b)
                i = tiles_small(i, last, blocks, at, x_stride, out, out_stride, r, n, b)
                tiles_one(i, last, blocks, at, x_stride, out, out_stride, r, n, b)

    return group


def _vector_groups(format: BlockFormat, isa: Isa) -> Inline[None]:
    """``token_groups`` by vector registers alone, unpacked for every tile."""
    sizes = isa.tiles if isa.matrix_unit is None else VECTOR_TILES
    if isinstance(format, FloatFormat) and isa.registers < 32:  # two sums per token: 16 registers hold no more
        sizes = (4, 4, 2, 1)
    tiles_big, tiles_middle, tiles_small, tiles_one = (_tiles(format, isa, size) for size in sizes)

    @inline
    def group(w, x, x_stride, out, out_stride, residual, n_blocks, t, last):
        t = tiles_big(t, last, w, x, x_stride, out, out_stride, residual, n_blocks)
        t = tiles_middle(t, last, w, x, x_stride, out, out_stride, residual, n_blocks)
        t = tiles_small(t, last, w, x, x_stride, out, out_stride, residual, n_blocks)
        tiles_one(t, last, w, x, x_stride, out, out_stride, residual, n_blocks)

    return group


def _matrix_groups(format: DotFormat, isa: Isa, layout: ExpandedLayout, unit: MatrixUnit) -> Inline[None]:
    """``token_groups`` with a matrix unit: blocks are expanded for its tiles, and unpacked for the remaining tokens.

    Expanding pays from two tiles on (24 tokens: 0.93 of the speed without).
    """
    rest, tiles = _vector_groups(format, isa), _expanded_tiles(layout, isa, unit.tokens)
    expand = expand_blocks(format, isa, layout)
    parts, tokens = format.packed_block_size // DOT_COLUMNS, unit.tokens
    step, block_bytes = EXPANDED_BLOCKS // parts, format.packed_block_bytes * isa.lanes
    x_bytes = parts * activations_q8.BYTES
    memory = scratch(EXPANDED_BLOCKS * layout.block_bytes)

    @inline
    def group(w, x, x_stride, out, out_stride, residual, n_blocks, t, last):
        whole = t
        if last - t >= 2 * tokens:
            whole = t + (last - t) // tokens * tokens
            blocks = memory()
            for b in range(0, n_blocks, step):
                count = min(step, n_blocks - b)
                expand(w + b * block_bytes, count, n_blocks * block_bytes, blocks)
                r, at = residual if b + count == n_blocks else 0, x + b * x_bytes
                tiles(t, whole, blocks, at, x_stride, out, out_stride, r, count * parts, b)
        rest(w, x, x_stride, out, out_stride, residual, n_blocks, whole, last)

    return group


def token_groups(format: BlockFormat, isa: Isa) -> Inline[None]:
    """A compiled function: tokens ``t`` up to ``last`` with one group of weight rows, in tiles."""
    if isinstance(format, DotFormat):
        if format.expand:
            return _expanded_groups(format, isa)
        if isa.matrix_unit is not None:
            layout = expanded_layout(format, isa)
            if layout.centred:
                return _matrix_groups(format, isa, layout, isa.matrix_unit)
    return _vector_groups(format, isa)


@functools.cache
def matmul(format: BlockFormat, isa: Isa) -> Kernel:
    """The kernel for one weight format on one instruction set.

    ``count``: offset of the number of tokens in the batch record; ``x``: float32 rows, or int8 blocks (``activations_q8``)
    where the format pairs with those, ``x_stride`` bytes apart; ``out``: float32 rows of ``out_stride`` bytes, with room for
    whole groups; ``residual``: 0, or float32 rows like ``out``, which must not overlap it, to be added.
    """
    group = token_groups(format, isa)
    group_floats = 4 * isa.lanes

    @kernel(variant=f"{format.name},{isa.name}", stealable=True)
    def matmul(
        batch, thread, n_threads, count, x, x_stride, w, group_bytes, n_blocks, n_groups, out, out_stride, residual
    ):
        n = load_i64(batch + count)
        first = share(n_groups, thread, n_threads)
        last = share(n_groups, thread + 1, n_threads)
        for block in range(0, n, TOKEN_BLOCK):
            end = min(block + TOKEN_BLOCK, n)
            for g in range(first, last):
                r = residual + g * group_floats if residual != 0 else 0
                group(w + g * group_bytes, x, x_stride, out + g * group_floats, out_stride, r, n_blocks, block, end)

    return matmul


@functools.cache
def head_matmul(format: BlockFormat, isa: Isa) -> Kernel:
    """The product of each head with a matrix of its own.

    ``weights``: int64 [n_heads], addresses of matrices of one shape; ``x_head``: bytes from one head of ``x`` to the next; in
    ``out`` each head has ``n_groups`` whole groups; the rest is as of ``matmul``.
    """
    group, group_floats = token_groups(format, isa), 4 * isa.lanes

    @kernel(variant=f"{format.name},{isa.name}", stealable=True)
    def head_matmul(
        batch, thread, n_threads, count, x, x_stride, x_head, weights, n_heads, group_bytes, n_blocks, n_groups, out,
        out_stride,
    ):  # fmt: skip
        n, units = load_i64(batch + count), n_heads * n_groups
        for block in range(0, n, TOKEN_BLOCK):
            end = min(block + TOKEN_BLOCK, n)
            for unit in range(share(units, thread, n_threads), share(units, thread + 1, n_threads)):
                head = unit // n_groups
                w = load_i64(weights + 8 * head) + unit % n_groups * group_bytes
                group(w, x + head * x_head, x_stride, out + unit * group_floats, out_stride, 0, n_blocks, block, end)

    return head_matmul
