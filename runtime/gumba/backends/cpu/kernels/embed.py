"""Embedding rows, read from the packed matrix: tied embeddings are stored once, for the output product and for lookup."""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.record import N_TOKENS, TOKENS, Kernel, kernel, share
from gumba.jit.jit import Inline, inline
from gumba.quants import BlockFormat, DotFormat, FloatFormat
from gumba.quants._format import DOT_COLUMNS
from gumba.quants._registers import BlockRegisters
from gumba.simd.isa import Isa
from gumba.simd.memory import load_f32, load_i8, load_i32, load_i64, store_f32
from gumba.simd.value import F32, Simd, Value, simd_function

#: Bytes of scratch per thread: 32 columns of a packed block of the widest instruction set.
SCRATCH = 1024


@functools.cache
def embed(format: BlockFormat, isa: Isa) -> Kernel:
    """out[t] = w[tokens[t] mod n_rows] (in models with token types, ids above n_rows encode the type).

    ``scratch``: 64-byte aligned memory, SCRATCH bytes for each thread.
    """
    lanes = isa.lanes
    read_row = _float_row(format, isa) if isinstance(format, FloatFormat) else _dot_row(format, isa)

    @kernel(variant=f"{format.name},{isa.name}")
    def embed(batch, thread, n_threads, w, n_rows, group_bytes, n_blocks, scratch, out, out_stride):
        n = load_i64(batch + N_TOKENS)
        tokens = load_i64(batch + TOKENS)
        for t in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
            row = load_i32(tokens + 4 * t) % n_rows
            group = w + row // lanes * group_bytes
            read_row(group, row % lanes, n_blocks, scratch + thread * SCRATCH, out + t * out_stride)

    return embed


def _float_row(format: FloatFormat, isa: Isa) -> Inline[None]:
    """A function that writes one lane of a packed group of floats to ``out``."""
    block_bytes = format.packed_block_bytes * isa.lanes

    @simd_function("void(i8, i8)")
    def column(s: Simd, w: Value, scratch: Value) -> None:
        s.store(scratch, format.unpack(s, isa, w))

    @inline
    def read_row(group, lane, n_blocks, scratch, out):
        for b in range(n_blocks):
            column(group + b * block_bytes, scratch)
            store_f32(out + 4 * b, load_f32(scratch + lane * 4))

    return read_row


def _dot_row(format: DotFormat, isa: Isa) -> Inline[None]:
    """A function that writes one lane of a packed group of blocks to ``out``."""
    lanes, block_bytes = isa.lanes, format.packed_block_bytes * isa.lanes
    n_parts = format.packed_block_size // DOT_COLUMNS
    # Scratch for a part: 32 x lanes weights as bytes, then for each lane scale and minimum of each half, then the bias.
    SCALE, MINIMUM, BIAS = 32 * lanes, 40 * lanes, 48 * lanes

    def spill_part(s: Simd, block: BlockRegisters, scratch: Value) -> None:
        for j, register in enumerate(block.weights):
            stored = register if block.signed else register ^ -128  # as signed bytes, 128 less
            s.store(scratch + 4 * lanes * j, stored)
        bias = 0.0 if block.signed else 128.0 - block.offset
        for half in range(2):
            s.store(scratch + SCALE + 4 * lanes * half, block.scales[-1 if half else 0])
            minimum = block.minimums[-1 if half else 0] if block.minimums else s.zero(F32, lanes)
            s.store(scratch + MINIMUM + 4 * lanes * half, minimum)
        s.store(scratch + BIAS, s.constant(bias, F32))

    @simd_function("void(i8, i8, i8)")
    def spill(s: Simd, w: Value, part: Value, scratch: Value) -> None:
        for i, block in enumerate(format.unpack(s, isa, w)):
            if n_parts == 1:
                spill_part(s, block, scratch)
                continue
            with s.when(part.compare("==", i)):
                spill_part(s, block, scratch)

    @inline
    def read_row(group, lane, n_blocks, scratch, out):
        for b in range(n_blocks):
            for part in range(n_parts):
                spill(group + b * block_bytes, part, scratch)
                bias = load_f32(scratch + BIAS)
                for c in range(32):
                    at = scratch + c // 16 * 4 * lanes + 4 * lane
                    value = load_i8(scratch + (c // 4) * 4 * lanes + 4 * lane + c % 4) + bias
                    number = load_f32(at + SCALE) * value + load_f32(at + MINIMUM)
                    store_f32(out + ((b * n_parts + part) * 32 + c) * 4, number)

    return read_row
