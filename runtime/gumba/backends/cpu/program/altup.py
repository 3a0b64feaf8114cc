"""Several streams beside each other as operations of a program (``kernels.altup`` says what they compute)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from gumba.backends import base
from gumba.backends.cpu.kernels import activations_q8, altup, elementwise
from gumba.backends.cpu.kernels.record import N_TOKENS, Kernel
from gumba.backends.cpu.packing import ROW_ALIGN
from gumba.backends.cpu.program.elementwise import Elementwise
from gumba.backends.cpu.program.operation import Arguments, Buffer

Streams: TypeAlias = base.Streams[Buffer]


class AltUp(Elementwise):
    """The part of a ``Program`` that works on several streams beside each other."""

    def stack_streams(self, parts: Sequence[Buffer]) -> Streams:
        """Streams from a buffer for each; ValueError for buffers unlike each other."""
        first = parts[0]
        if any((x.width, x.count) != (first.width, first.count) for x in parts):
            raise ValueError(f"streams of {', '.join(str(x.width) for x in parts)} columns, or of other rows")
        n, padded = len(parts), first.row_bytes // 4
        out = Buffer(f"streams{len(self.operations)}", n * padded, n * first.row_bytes, first.count)
        for i, x in enumerate(parts):
            self.append(
                elementwise.copy_heads,
                {"count": x.count, "x": x, "x_first": 0, "x_stride": x.row_bytes, "x_head": 0, "out": out,
                 "out_first": i * x.row_bytes, "stride": out.row_bytes, "out_head": 0, "n_heads": 1, "width": x.width},
                [x], [out], ("tokens",) if x.count == N_TOKENS else ("rows", x.count),
            )  # fmt: skip
        return base.Streams(out, n, first.width)

    def stream(self, x: Streams, i: int) -> Buffer:
        """One of the streams, as a buffer of its own."""
        return self.slice(x.buffer, i * x.stride, x.width)

    def select_output_streams(self, x: Streams) -> Streams:
        """Only the rows whose logits are wanted."""
        return base.Streams(self.select_outputs(x.buffer), x.n, x.width)

    def mix_streams(self, x: Streams, coefficients: Buffer) -> Streams:
        """Every stream plus all of them, weighted. coefficients: float32 [n, x.n * x.n], of the first stream first."""
        if (coefficients.width, coefficients.count) != (x.n * x.n, x.buffer.count):
            raise ValueError(f"{coefficients.width} coefficients for {x.n} streams; or other rows")
        arguments: Arguments = {"coefficients": coefficients, "coefficients_stride": coefficients.row_bytes}  # fmt: skip
        return self._on_streams(altup.mix_streams(x.n), x, arguments, [coefficients])

    def add_to_streams(self, x: Streams, y: Buffer, factors: Buffer | Sequence[float]) -> Streams:
        """Every stream plus y times the stream's factor: one of each row's, float32 [n, n_streams], or the same for all rows."""
        wanted = (y.width, y.count) == (x.width, x.buffer.count)
        if isinstance(factors, Buffer):
            if not wanted or (factors.width, factors.count) != (x.n, x.buffer.count):
                raise ValueError(
                    f"{y.width} columns, {factors.width} factors for {x.n} streams of {x.width}; or other rows"
                )
            own: Arguments = {"factors": factors, "factors_stride": factors.row_bytes}
            reads = [y, factors]
        else:
            if not wanted or len(factors) != x.n:
                raise ValueError(
                    f"{y.width} columns, {len(factors)} factors for {x.n} streams of {x.width}; or other rows"
                )
            own = {"factors": self.constant(np.array(factors, np.float32)), "factors_stride": 0}
            reads = [y]
        return self._on_streams(altup.add_to_streams(x.n), x, own | {"y": y, "y_stride": y.row_bytes}, reads)

    def _on_streams(self, kernel: Kernel, x: Streams, arguments: Arguments, reads: list[Buffer]) -> Streams:
        out = Buffer(f"streams{len(self.operations)}", x.buffer.width, x.buffer.row_bytes, x.buffer.count)
        n_blocks = -(-x.width // activations_q8.COLUMNS)
        arguments = arguments | {"count": out.count, "x": x.buffer, "out": out, "stride": out.row_bytes, "part": 4 * x.stride,
                                 "n_blocks": n_blocks}  # fmt: skip
        self.append(kernel, arguments, [x.buffer, *reads], [out], ("stream blocks", out.count, x.n, n_blocks))
        return base.Streams(out, x.n, x.width)

    def match_magnitude(self, x: Buffer, y: Buffer, least: float) -> Buffer:
        """x * sqrt(mean(y^2) / max(mean(x^2), least)), row by row."""
        if (x.width, x.count) != (y.width, y.count):
            raise ValueError(f"{x.name} has {x.width} columns, {y.name} {y.width}; or one of them has other rows")
        return self._of_rows(altup.match_magnitude, x, {"y": y, "least": least}, [x, y])

    def keep_greatest(self, x: Buffer, factor: float) -> Buffer:
        """max(0, x - (mean(x) + factor * deviation(x))), row by row."""
        return self._of_rows(altup.keep_greatest, x, {"factor": factor}, [x])

    def _of_rows(self, kernel: Kernel, x: Buffer, arguments: Arguments, reads: list[Buffer]) -> Buffer:
        """An operation over blocks of rows that reads whole rows."""
        n_blocks = -(-x.width // activations_q8.COLUMNS)
        out = Buffer(f"{kernel.name}{len(self.operations)}", x.width, -(-x.width // ROW_ALIGN) * ROW_ALIGN * 4, x.count)
        arguments = arguments | {"count": x.count, "x": x, "out": out, "stride": out.row_bytes, "width": x.width,
                                 "n_blocks": n_blocks}  # fmt: skip
        self.append(kernel, arguments, reads, [out], ("blocks", x.count, n_blocks), reads)
        return out
