"""A tile of a matrix product through the set's matrix unit (``gumba.simd.isa.MatrixUnit``).

For expanded blocks (``kernels.expanded``) with one scale, and int8 activations. The unit leaves a block's integers in memory,
from where the vector registers scale and add them. A block's products take longer than that, so the next block's are issued
before: two blocks are in flight at any time. (What bounds it: for some 70 cycles after any instruction for tiles, Emerald Rapids
starts 512-bit arithmetic on one port in place of two. A block's scaling, 3 instructions for each of 16 tokens, then takes 48
cycles, and the whole 60 to 75. With two scales per block it takes 80: tried with tiles of 16 columns, such formats had 0.9 to 1.2
of the time that VNNI takes.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gumba.backends.cpu.kernels import activations_q8
from gumba.backends.cpu.kernels.expanded import ExpandedLayout
from gumba.jit.jit import Intrinsic
from gumba.quants._registers import BlockRegisters
from gumba.simd.isa import Isa, MatrixUnit
from gumba.simd.value import F32, I32, I64, Simd, Value, Variable, simd_function

#: add(s, isa, block, x, totals, acc): ``acc`` plus the product of a block, whose integers are ``totals``, with the one at ``x``.
AddScaled = Callable[[Simd, Isa, BlockRegisters, Value, Sequence[Value], Value], Value]
#: finish(s, accs, out, out_stride, residual): store the sums.
Finish = Callable[[Simd, list[Variable], Value, Value, Value], None]


def matrix_tile(
    layout: ExpandedLayout, isa: Isa, unit: MatrixUnit, add_scaled: AddScaled, finish: Finish
) -> Intrinsic[None]:
    """A compiled function: ``n_blocks`` expanded blocks of a group with ``unit.tokens`` rows of int8 blocks.

    The sums begin with those in ``out`` where ``continued`` is not 0. Called between the unit's ``begin`` and ``end``.
    """
    lanes, tokens = isa.lanes, unit.tokens

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8, i8)")
    def tile(
        s: Simd, w: Value, x: Value, x_stride: Value, out: Value, out_stride: Value, residual: Value, n_blocks: Value,
        continued: Value,
    ) -> None:  # fmt: skip
        accs = [s.variable(s.zero(F32, lanes)) for _ in range(tokens)]
        with s.when(continued.compare("!=", 0)):
            for t, acc in enumerate(accs):
                acc.set(s.load(out + out_stride * t, F32, lanes))
        memory = [s.memory(4 * lanes * tokens) for _ in range(2)]

        def begin(k: Value, turn: int) -> None:
            """Multiply block k, or the last one where there are fewer."""
            k = s.minimum(k, n_blocks - 1)
            unit.dot(s, w + k * layout.block_bytes, x + k * activations_q8.BYTES, x_stride, memory[turn], turn)

        def add(k: Value, turn: int) -> None:
            """Accumulate the result of ``begin``."""
            block = layout.load(s, w + k * layout.block_bytes)
            for t, acc in enumerate(accs):
                total = s.load(memory[turn] + 4 * lanes * t, I32, lanes)
                at = x + x_stride * t + k * activations_q8.BYTES
                acc.set(add_scaled(s, isa, block, at, [total], acc.get()))

        begin(s.constant(0, I64), 0)
        with s.loop(n_blocks & -2, step=2) as k:
            begin(k + 1, 1)
            add(k, 0)
            begin(k + 2, 0)
            add(k + 1, 1)
        with s.when((n_blocks & 1).compare("==", 1)):
            add(n_blocks - 1, 0)
        finish(s, accs, out, out_stride, residual)

    return tile
