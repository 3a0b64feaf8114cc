"""Blocks expanded to memory: what ``unpack`` gives for some blocks of a group of rows, written once for many tokens.

Codebooks, ternary digits and bits in several fields take longer to unpack than to multiply. Where many tokens are multiplied by
a group of rows, its blocks are unpacked once, ``EXPANDED_BLOCKS`` at a time, and the tiles of tokens load the registers from
memory: for each 32 columns 8 registers of bytes, then scales and minimums. The numbers are the same, so the products have the
same bits. A matrix unit (``gumba.simd.isa.MatrixUnit``) reads weights from memory only: with one, blocks of every format with
one scale are expanded.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from gumba.jit.jit import Intrinsic
from gumba.quants import DotFormat
from gumba.quants._format import DOT_COLUMNS
from gumba.quants._registers import BlockRegisters
from gumba.simd.isa import Isa
from gumba.simd.value import F32, I8, I64, Simd, Value, simd_function

#: Blocks of 32 columns that are expanded at a time: with 16 lanes 18 to 24 KB, which stay in the first-level cache.
EXPANDED_BLOCKS = 32


@dataclass(frozen=True)
class ExpandedLayout:
    """How the expanded blocks of a format lie in memory, and what is the same in all of them.

    ``centred``: bytes lie there less their offset, signed, as a matrix unit wants them.
    """

    lanes: int
    n_scales: int
    n_minimums: int
    w_max: int
    offset: int
    signed: bool
    centred: bool

    @property
    def block_bytes(self) -> int:
        """Bytes of 32 columns of all lanes."""
        return (DOT_COLUMNS + 4 * (self.n_scales + self.n_minimums)) * self.lanes

    def store(self, s: Simd, block: BlockRegisters, address: Value) -> None:
        """Write one block to ``address``."""
        weights = [register - block.offset for register in block.weights] if self.centred else block.weights
        for i, register in enumerate([*weights, *block.scales, *block.minimums]):
            s.store(address + 4 * self.lanes * i, register)

    def load(self, s: Simd, address: Value) -> BlockRegisters:
        """Read one block."""
        size = 4 * self.lanes
        weights = [s.load(address + size * i, I8, size) for i in range(8)]
        numbers = [s.load(address + size * (8 + i), F32, self.lanes) for i in range(self.n_scales + self.n_minimums)]
        offset, signed = self.offset, self.signed
        if self.centred:  # for the set's products of unsigned weights
            weights, offset, signed = [register ^ -128 for register in weights], 128, False
        scales, minimums = numbers[: self.n_scales], numbers[self.n_scales :]
        return BlockRegisters(
            weights, _one_or_pair(scales), self.w_max, offset, signed, _one_or_pair(minimums) if minimums else None
        )  # fmt: skip


def _one_or_pair(values: list[Value]) -> Value | tuple[Value, Value]:
    return values[0] if len(values) == 1 else (values[0], values[1])


def expanded_layout(format: DotFormat, isa: Isa) -> ExpandedLayout:
    """The layout of a format's blocks, as the first that its ``unpack`` yields says; all are alike."""
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [I64]), "unpack")
    s = Simd(ir.IRBuilder(function.append_basic_block()))
    block = next(format.unpack(s, isa, Value(s.b, function.args[0])))
    centred = isa.matrix_unit is not None and len(block.scales) == 1 and block.w_max - block.offset < 128
    n_minimums = len(block.minimums)
    return ExpandedLayout(isa.lanes, len(block.scales), n_minimums, block.w_max, block.offset, block.signed, centred)


def expand_blocks(format: DotFormat, isa: Isa, layout: ExpandedLayout) -> Intrinsic[None]:
    """A compiled function: ``n_blocks`` packed blocks at ``w`` to ``out``, while it prefetches those ``ahead`` bytes further."""
    block_bytes = format.packed_block_bytes * isa.lanes
    parts = format.packed_block_size // DOT_COLUMNS

    @simd_function("void(i8, i8, i8, i8)")
    def expand(s: Simd, w: Value, n_blocks: Value, ahead: Value, out: Value) -> None:
        with s.loop(n_blocks) as k:
            at = w + k * block_bytes
            for line in range(0, block_bytes, 64):
                s.prefetch(at + ahead + line)
            for part, block in enumerate(format.unpack(s, isa, at)):
                layout.store(s, block, out + (k * parts + part) * layout.block_bytes)

    return expand
