"""The limit tests do the work that is counted: each sum that they leave behind is the one that NumPy finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gumba.backends.cpu.kernels import roofline
from gumba.backends.cpu.kernels.record import Kernel
from gumba.backends.cpu.packing import aligned_empty
from gumba.simd.isa import Isa
from support.kernel_harness import ISAS, Batch, Setup, isa_id

THREADS = 3


def run(kernel: Kernel, isa: Isa, **arguments: int) -> np.ndarray:
    """What each of THREADS threads leaves in its corner, int32 [THREADS, lanes]."""
    out = aligned_empty(THREADS * roofline.CORNER)
    out[:] = 0
    setup = Setup(
        kernel, arguments | {"out": int(out.ctypes.data)}, Batch(0), out, lambda a: a.view(np.int32), np.empty(0)
    )
    return setup.run(THREADS).reshape(THREADS, -1)[:, : isa.lanes]


@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
@pytest.mark.parametrize("shared", [1, 0])
def test_every_byte_is_read(isa: Isa, shared: int) -> None:
    units, turns, stride = 7, 3, 8 * roofline.UNIT
    memory = aligned_empty(THREADS * stride).view(np.int32)
    memory[:] = np.random.default_rng(0).integers(-(2**31), 2**31, len(memory))
    got = run(
        roofline.read_memory(isa),
        isa,
        x=int(memory.ctypes.data),
        units=units,
        turns=turns,
        shared=shared,
        stride=stride,
    )
    if shared:
        bounds = [units * t // THREADS * roofline.UNIT // 4 for t in range(THREADS + 1)]
        parts = [memory[first:last] for first, last in itertools.pairwise(bounds)]
    else:
        parts = list(memory.reshape(THREADS, -1)[:, : units * roofline.UNIT // 4])
    sums = np.array([part.reshape(-1, isa.lanes).sum(0, dtype=np.int64) for part in parts])
    # A turn starts its eight sums from what the turn before left in the corner: 1 + 8 + 64 times the sum of one.
    assert np.array_equal(got, (73 * sums).astype(np.int32))


@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
def test_every_dot_product_is_taken(isa: Isa) -> None:
    turns, n = 5, 4 * isa.lanes
    x = aligned_empty((roofline.SUMS + roofline.WEIGHTS) * n)
    x[:] = np.random.default_rng(1).integers(0, 256, len(x))
    registers = x.reshape(-1, n)
    acts, weights = registers[: roofline.SUMS].view(np.int8).astype(np.int64), registers[roofline.SUMS :] & 15
    total = np.zeros(n, np.int64)
    counted = 0
    for turn in range(turns):
        for k in range(roofline.SUMS):
            for j in range(roofline.WEIGHTS):
                total += acts[(k + j) % roofline.SUMS] * ((weights[j] + turn) & 15)
                counted += 2 * n
    got = run(roofline.dot_int8(isa), isa, x=int(x.ctypes.data), turns=turns)
    assert np.array_equal(got, np.tile(total.reshape(isa.lanes, 4).sum(1), (THREADS, 1)))
    assert counted == turns * roofline.dot_ops(isa)


@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
@pytest.mark.parametrize("turns", [0, 1, 50])
def test_every_multiply_add_is_done(isa: Isa, turns: int) -> None:
    """From 1 + i to 2 + (i - 1) / 2^n after n multiply-adds, exactly."""
    n = turns * roofline.WEIGHTS
    got = run(roofline.fma_float32(isa), isa, turns=turns).view(np.float32)
    expected = sum(np.float32(2 + (i - 1) / 2.0**n) for i in range(roofline.SUMS))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert roofline.fma_ops(isa) == 2 * roofline.SUMS * roofline.WEIGHTS * isa.lanes


@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
@pytest.mark.parametrize("turns", [0, 1, 50])
def test_every_pair_is_multiplied(isa: Isa, turns: int) -> None:
    """Small integers, so that sums are exact: each of the sums' registers meets each of the weights' registers."""
    values = np.random.default_rng(2).integers(-4, 5, (roofline.SUMS + roofline.WEIGHTS, isa.lanes, 2))
    x = aligned_empty(values.size * 2).view(np.uint16)
    x[:] = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).ravel()
    got = run(roofline.pairs_bf16(isa), isa, x=int(x.ctypes.data), turns=turns).view(np.float32)
    expected = turns * (values[: roofline.SUMS].sum(0) * values[roofline.SUMS :].sum(0)).sum(1)
    assert np.array_equal(got, np.tile(expected.astype(np.float32), (THREADS, 1)))
    assert roofline.pair_ops(isa) == 4 * roofline.SUMS * roofline.WEIGHTS * isa.lanes
