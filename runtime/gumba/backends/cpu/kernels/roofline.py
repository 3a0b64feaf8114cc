"""The machine's roofline: the rates of reading memory, and of dot products that never leave the registers.

Four operations without a result, run by the same threads and compiled by the same compiler as a model's, so that a model's
operations can be compared with them. Every thread does its own part; the sums are stored at the end, since otherwise the
compiler would drop them as unused.
"""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.record import Kernel, kernel
from gumba.simd.isa import Isa
from gumba.simd.value import F32, I8, I32, Simd, Value, Variable, simd_function

#: Bytes that one turn of the reading loop reads.
UNIT = 512
#: Bytes of a thread's own corner of ``out``.
CORNER = 64
#: Registers of sums, of activations and of weights in the dot-product tests: a 4-bit block's eight registers of weights, and
#: sums enough to hide how long one dot product takes. Where the processor has fewer registers, some are read from its cache,
#: as in the real kernels.
SUMS, WEIGHTS = 12, 8


def dot_ops(isa: Isa) -> int:
    """Multiplications and additions in one turn of ``dot_int8``."""
    return 2 * SUMS * WEIGHTS * 4 * isa.lanes


def fma_ops(isa: Isa) -> int:
    """Multiplications and additions in one turn of ``fma_float32``."""
    return 2 * SUMS * WEIGHTS * isa.lanes


def pair_ops(isa: Isa) -> int:
    """Multiplications and additions in one turn of ``pairs_bf16``."""
    return 2 * fma_ops(isa)


def _store_sum(s: Simd, out: Value, accs: list[Variable]) -> None:
    total = accs[0].get()
    for acc in accs[1:]:
        total = total + acc.get()
    s.store(out, total)


@functools.cache
def read_memory(isa: Isa) -> Kernel:
    """Plain vector loads, one after the other.

    ``x``: the bytes; of every ``stride`` bytes the first ``units * UNIT`` are read, ``turns`` times; thread t takes the t-th
    of ``n_threads`` equal runs of them where ``shared`` is 1, and all units of the t-th stride where it is 0.
    """
    lanes = isa.lanes

    @simd_function("void(i8, i8, i8)")
    def read(s: Simd, x: Value, units: Value, out: Value) -> None:
        accs = [s.variable(s.load(out, I32, lanes)) for _ in range(8)]
        with s.loop(units) as i:
            for j in range(UNIT // (4 * lanes)):
                acc = accs[j % len(accs)]
                acc.set(acc.get() + s.load(x + i * UNIT + j * 4 * lanes, I32, lanes))
        _store_sum(s, out, accs)

    @kernel(variant=isa.name)
    def read_memory(batch, thread, n_threads, x, units, turns, shared, stride, out):
        first, last = 0, units
        if shared == 1:
            first, last = units * thread // n_threads, units * (thread + 1) // n_threads
        else:
            x += thread * stride
        for _ in range(turns):
            read(x + first * UNIT, last - first, out + thread * CORNER)

    return read_memory


@functools.cache
def dot_int8(isa: Isa) -> Kernel:
    """The set's integer dot product, as with weights of 4 bits: ``turns`` times ``dot_ops`` operations on each thread.

    ``x``: (SUMS + WEIGHTS) registers of bytes. The weights change from turn to turn, lest their products leave the loop.
    """
    lanes = isa.lanes

    @simd_function("void(i8, i8, i8)")
    def dots(s: Simd, x: Value, turns: Value, out: Value) -> None:
        acts = [s.load(x + 4 * lanes * i, I8, 4 * lanes) for i in range(SUMS)]
        weights = [s.variable(s.load(x + 4 * lanes * (SUMS + i), I8, 4 * lanes) & 15) for i in range(WEIGHTS)]
        accs = [s.variable(s.zero(I32, lanes)) for _ in range(SUMS)]
        with s.loop(turns):
            ws = [w.get() for w in weights]
            for k, acc in enumerate(accs):
                meets = [acts[(k + j) % SUMS] for j in range(WEIGHTS)]
                acc.set(isa.dot_unsigned(s, acc.get(), ws, meets, 15))
            for w in weights:
                w.set((w.get() + 1) & 15)
        _store_sum(s, out, accs)

    @kernel(variant=isa.name)
    def dot_int8(batch, thread, n_threads, x, turns, out):
        dots(x, turns, out + thread * CORNER)

    return dot_int8


@functools.cache
def fma_float32(isa: Isa) -> Kernel:
    """Multiply-adds in float32: ``turns`` times ``fma_ops`` operations on each thread. The sums go to 2 and stay there."""
    lanes = isa.lanes

    @simd_function("void(i8, i8)")
    def chains(s: Simd, turns: Value, out: Value) -> None:
        accs = [s.variable(s.constant(1.0 + i, F32, lanes)) for i in range(SUMS)]
        half, one = s.constant(0.5, F32, lanes), s.constant(1.0, F32, lanes)
        with s.loop(turns):
            for _ in range(WEIGHTS):
                for acc in accs:
                    acc.set(isa.multiply_add(s, acc.get(), half, one))
        _store_sum(s, out, accs)

    @kernel(variant=isa.name)
    def fma_float32(batch, thread, n_threads, turns, out):
        chains(turns, out + thread * CORNER)

    return fma_float32


@functools.cache
def pairs_bf16(isa: Isa) -> Kernel:
    """Dot products of pairs of bfloat16: ``turns`` times ``pair_ops`` operations on each thread.

    ``x``: (SUMS + WEIGHTS) registers of pairs; each of the first meets each of the others.
    """
    lanes = isa.lanes

    @simd_function("void(i8, i8, i8)")
    def chains(s: Simd, x: Value, turns: Value, out: Value) -> None:
        accs = [s.variable(s.zero(F32, lanes)) for _ in range(SUMS)]
        with s.loop(turns):
            weights = [s.load(x + 4 * lanes * (SUMS + i), I32, lanes) for i in range(WEIGHTS)]
            for w in weights:
                for k, acc in enumerate(accs):
                    acc.set(isa.pair_dot(s, acc.get(), s.load(x + 4 * lanes * k, I32, lanes), w))
        _store_sum(s, out, accs)

    @kernel(variant=isa.name)
    def pairs_bf16(batch, thread, n_threads, x, turns, out):
        chains(x, turns, out + thread * CORNER)

    return pairs_bf16
