"""Several streams beside each other as operations of a program (``kernels.altup`` says what they compute)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gumba.backends.cpu.kernels import activations_q8, altup, elementwise
from gumba.backends.cpu.kernels.record import N_TOKENS, Kernel
from gumba.backends.cpu.packing import ROW_ALIGN
from gumba.backends.cpu.program.builder import Buffer, Program


@dataclass(frozen=True)
class Streams:
    """``n`` rows of ``width`` for each token, side by side in one of ``buffer``'s, each padded like a row of its own."""

    buffer: Buffer
    n: int
    width: int

    @property
    def part(self) -> int:
        """Columns from one to the next."""
        return self.buffer.width // self.n


def stack(p: Program, parts: Sequence[Buffer]) -> Streams:
    """Streams from a buffer for each; ValueError for buffers unlike each other."""
    first = parts[0]
    if any((x.width, x.count) != (first.width, first.count) for x in parts):
        raise ValueError(f"streams of {', '.join(str(x.width) for x in parts)} columns, or of other rows")
    n, padded = len(parts), first.row_bytes // 4
    out = Buffer(f"streams{len(p.operations)}", n * padded, n * first.row_bytes, first.count)
    for i, x in enumerate(parts):
        p.append(
            elementwise.copy_heads,
            {"count": x.count, "x": x, "x_first": 0, "x_stride": x.row_bytes, "x_head": 0, "out": out,
             "out_first": i * x.row_bytes, "stride": out.row_bytes, "out_head": 0, "n_heads": 1, "width": x.width},
            [x], [out], ("tokens",) if x.count == N_TOKENS else ("rows", x.count),
        )  # fmt: skip
    return Streams(out, n, first.width)


def part(p: Program, x: Streams, i: int) -> Buffer:
    """One of the streams, as a buffer of its own."""
    return p.slice(x.buffer, i * x.part, x.width)


def select_outputs(p: Program, x: Streams) -> Streams:
    """Only the rows whose logits are wanted."""
    return Streams(p.select_outputs(x.buffer), x.n, x.width)


def mix(p: Program, x: Streams, coefficients: Buffer) -> Streams:
    """Every stream plus all of them, weighted. coefficients: float32 [n, n_streams * n_streams], of the first stream first."""
    if (coefficients.width, coefficients.count) != (x.n * x.n, x.buffer.count):
        raise ValueError(f"{coefficients.width} coefficients for {x.n} streams; or other rows")
    arguments: dict[str, int | float | Buffer] = {
        "coefficients": coefficients, "coefficients_stride": coefficients.row_bytes,
    }  # fmt: skip
    return _on_streams(p, altup.mix_streams(x.n), x, arguments, [coefficients])


def add(p: Program, x: Streams, y: Buffer, factors: Buffer | Sequence[float]) -> Streams:
    """Every stream plus y times the stream's factor: one of each row's, float32 [n, n_streams], or the same for all rows."""
    wanted = (y.width, y.count) == (x.width, x.buffer.count)
    if isinstance(factors, Buffer):
        if not wanted or (factors.width, factors.count) != (x.n, x.buffer.count):
            raise ValueError(
                f"{y.width} columns, {factors.width} factors for {x.n} streams of {x.width}; or other rows"
            )
        own: dict[str, int | float | Buffer] = {"factors": factors, "factors_stride": factors.row_bytes}
        reads = [y, factors]
    else:
        if not wanted or len(factors) != x.n:
            raise ValueError(f"{y.width} columns, {len(factors)} factors for {x.n} streams of {x.width}; or other rows")
        own = {"factors": p.constant(np.array(factors, np.float32)), "factors_stride": 0}
        reads = [y]
    return _on_streams(p, altup.add_to_streams(x.n), x, own | {"y": y, "y_stride": y.row_bytes}, reads)


def _on_streams(
    p: Program, kernel: Kernel, x: Streams, arguments: dict[str, int | float | Buffer], reads: list[Buffer]
) -> Streams:
    out = Buffer(f"streams{len(p.operations)}", x.buffer.width, x.buffer.row_bytes, x.buffer.count)
    n_blocks = -(-x.width // activations_q8.COLUMNS)
    arguments = arguments | {"count": out.count, "x": x.buffer, "out": out, "stride": out.row_bytes, "part": 4 * x.part,
                             "n_blocks": n_blocks}  # fmt: skip
    p.append(kernel, arguments, [x.buffer, *reads], [out], ("stream blocks", out.count, x.n, n_blocks))
    return Streams(out, x.n, x.width)


def match_magnitude(p: Program, x: Buffer, y: Buffer, least: float) -> Buffer:
    """x * sqrt(mean(y^2) / max(mean(x^2), least)), row by row."""
    if (x.width, x.count) != (y.width, y.count):
        raise ValueError(f"{x.name} has {x.width} columns, {y.name} {y.width}; or one of them has other rows")
    return _of_rows(p, altup.match_magnitude, x, {"y": y, "least": least}, [x, y])


def keep_greatest(p: Program, x: Buffer, factor: float) -> Buffer:
    """max(0, x - (mean(x) + factor * deviation(x))), row by row."""
    return _of_rows(p, altup.keep_greatest, x, {"factor": factor}, [x])


def _of_rows(
    p: Program, kernel: Kernel, x: Buffer, arguments: dict[str, int | float | Buffer], reads: list[Buffer]
) -> Buffer:
    """An operation over blocks of rows that reads whole rows."""
    n_blocks = -(-x.width // activations_q8.COLUMNS)
    out = Buffer(f"{kernel.name}{len(p.operations)}", x.width, -(-x.width // ROW_ALIGN) * ROW_ALIGN * 4, x.count)
    arguments = arguments | {"count": x.count, "x": x, "out": out, "stride": out.row_bytes, "width": x.width,
                             "n_blocks": n_blocks}  # fmt: skip
    p.append(kernel, arguments, reads, [out], ("blocks", x.count, n_blocks), reads)
    return out
