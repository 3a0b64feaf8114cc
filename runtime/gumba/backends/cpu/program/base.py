"""What all operations are written with: buffers, constants, records of what is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gumba.backends.cpu.kernels import activations_q8
from gumba.backends.cpu.kernels.record import N_TOKENS, Kernel
from gumba.backends.cpu.packing import ROW_ALIGN, aligned_empty
from gumba.backends.cpu.program.operation import NO_WORK, Arguments, Buffer, Operation, Work
from gumba.simd.isa import Isa


@dataclass
class Writer:
    """The operations written so far, and the memory that they use."""

    isa: Isa
    n_threads: int
    max_rows: int
    max_context: int = 0
    operations: list[Operation] = field(default_factory=list)
    _keep: list[np.ndarray] = field(default_factory=list)
    _plain_rows: dict[tuple[int, float], int] = field(default_factory=dict)

    def append(
        self, kernel: Kernel, arguments: Arguments, reads: Sequence[Buffer],
        writes: Sequence[Buffer], split: tuple[object, ...], gathers: Sequence[Buffer] = (), work: Work = NO_WORK,
    ) -> None:  # fmt: skip
        moved = sum(b.row_bytes for b in [*reads, *writes])
        work = replace(work, row_bytes=work.row_bytes + moved)
        self.operations.append(Operation(kernel, arguments, reads, writes, split, gathers, work=work))

    def constant(self, values: np.ndarray, pad: bool = True) -> int:
        """Address of float32 numbers that live as long as the program; padded with zeros like a buffer's row."""
        values = np.ascontiguousarray(values, np.float32).ravel()
        size = -(-len(values) // ROW_ALIGN) * ROW_ALIGN if pad else len(values)
        kept = aligned_empty(4 * size).view(np.float32)
        kept[: len(values)], kept[len(values) :] = values, 0
        self._keep.append(kept)
        return int(kept.ctypes.data)

    def hold(self, *arrays: np.ndarray) -> int:
        """Let arrays live as long as the program; address of the last."""
        self._keep += arrays
        return int(arrays[-1].ctypes.data)

    def blocks(self, x: Buffer) -> Buffer:
        """x as int8 blocks: made once, shared by every product that reads x."""
        if x.blocks is None:
            n_blocks = x.width // activations_q8.COLUMNS
            x.blocks = Buffer(f"{x.name}.q8", x.width, n_blocks * activations_q8.BYTES, x.count)
            arguments: Arguments = {"count": x.count, "x": x, "x_stride": x.row_bytes, "out": x.blocks,
                                    "out_stride": x.blocks.row_bytes, "n_blocks": n_blocks}  # fmt: skip
            self.append(activations_q8.quantize_q8, arguments, [x], [x.blocks], ("blocks", x.count, n_blocks))
        return x.blocks

    def _buffer(self, name: str, width: int, count: int = N_TOKENS) -> Buffer:
        return Buffer(f"{name}{len(self.operations)}", width, -(-width // ROW_ALIGN) * ROW_ALIGN * 4, count)

    def _row(self, values: np.ndarray | None, width: int, default: float) -> int:
        """Address of one row of numbers; of ``default`` where there are none."""
        if values is None:
            if (width, default) not in self._plain_rows:
                self._plain_rows[width, default] = self.constant(np.full(width, default, np.float32))
            return self._plain_rows[width, default]
        if np.size(values) != width:
            raise ValueError(f"{np.size(values)} numbers for {width} columns")
        return self.constant(values)
