"""Operations that make each number of a row by itself, or a row by itself: norms, sums, activations, copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.backends.cpu.kernels import activations, activations_q8, elementwise, norms
from gumba.backends.cpu.kernels import mean_pooling as text_means
from gumba.backends.cpu.kernels.record import N_OUTPUTS, N_TOKENS, POSITIONS, TOKENS, Kernel
from gumba.backends.cpu.program.base import Writer
from gumba.backends.cpu.program.operation import Arguments, Buffer

#: Operations over blocks of rows that read more than the block they write: whole rows, other rows, other columns.
_GATHERING = (
    norms.rms_norm,
    norms.layer_norm,
    elementwise.select_rows,
    elementwise.copy_columns,
    elementwise.scale_rows,
    text_means.text_means,
)


def _check_alike(x: Buffer, y: Buffer) -> None:
    """ValueError for buffers of other rows or columns."""
    if (x.width, x.count) != (y.width, y.count):
        raise ValueError(f"{x.name} has {x.width} columns, {y.name} {y.width}; or one of them has other rows")


class Elementwise(Writer):
    """The part of a ``Program`` that works row by row."""

    def rms_norm(self, x: Buffer, weight: np.ndarray | None, eps: float) -> Buffer:
        """x / sqrt(mean(x^2) + eps) * weight, float32 [width]; None: without."""
        out = self._buffer("rms_norm", x.width, x.count)
        arguments: Arguments = {
            "x": x,
            "weight": self._row(weight, x.width, 1.0),
            "out": out,
            "width": x.width,
            "eps": eps,
        }
        self._elementwise(norms.rms_norm, arguments, [x], out)
        return out

    def layer_norm(self, x: Buffer, weight: np.ndarray | None, bias: np.ndarray | None, eps: float) -> Buffer:
        """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, both float32 [width]; None: without."""
        out = self._buffer("layer_norm", x.width, x.count)
        arguments: Arguments = {"x": x, "weight": self._row(weight, x.width, 1.0),
                                "bias": self._row(bias, x.width, 0.0), "out": out, "width": x.width, "eps": eps}  # fmt: skip
        self._elementwise(norms.layer_norm, arguments, [x], out)
        return out

    def head_norm(
        self, x: Buffer, weight: np.ndarray | None, eps: float, n_heads: int, head_dim: int, centred: bool = False
    ) -> Buffer:
        """The RMS norm of each head (``centred``: the layer norm). weight: float32 [head_dim] or [n_heads * head_dim]."""
        if n_heads * head_dim != x.width:
            raise ValueError(f"{n_heads} heads of {head_dim}: {x.name} has {x.width} columns")
        of_each = weight is not None and np.size(weight) == x.width
        out = self._buffer("head_norm", x.width, x.count)
        arguments: Arguments = {"count": x.count, "x": x,
                                "weight": self._row(weight, x.width if of_each else head_dim, 1.0),
                                "weight_step": 4 * head_dim if of_each else 0, "out": out, "stride": x.row_bytes,
                                "n_heads": n_heads, "head_dim": head_dim, "centred": int(centred), "eps": eps}  # fmt: skip
        self.append(norms.head_norm, arguments, [x], [out], ("heads", x.count, n_heads))
        return out

    def add(self, x: Buffer, y: Buffer) -> Buffer:
        """x + y."""
        return self._combine("add", x, y, y.row_bytes, [x, y])

    def multiply(self, x: Buffer, y: Buffer) -> Buffer:
        """x * y, number by number."""
        return self._combine("multiply", x, y, y.row_bytes, [x, y])

    def add_row(self, x: Buffer, row: np.ndarray) -> Buffer:
        """The same row of numbers, float32 [width], added to every row of x."""
        return self._combine("add", x, self._row(row, x.width, 0.0), 0, [x])

    def multiply_row(self, x: Buffer, row: np.ndarray) -> Buffer:
        """Every row of x times the same row of numbers, float32 [width]."""
        return self._combine("multiply", x, self._row(row, x.width, 1.0), 0, [x])

    def scale(self, x: Buffer, factor: float) -> Buffer:
        """x * factor."""
        out = self._buffer("scale", x.width, x.count)
        self._elementwise(elementwise.scale, {"x": x, "out": out, "factor": factor}, [x], out)
        return out

    def scale_rows(self, x: Buffer, factors: Buffer) -> Buffer:
        """Every row of x times its own number; factors: float32 [n, 1]."""
        if (factors.width, factors.count) != (1, x.count):
            raise ValueError(
                f"{factors.name} has {factors.width} columns, expected 1; or it has other rows than {x.name}"
            )
        out = self._buffer("scale_rows", x.width, x.count)
        arguments: Arguments = {"x": x, "factors": factors, "factors_stride": factors.row_bytes, "out": out}
        self._elementwise(elementwise.scale_rows, arguments, [x, factors], out)
        return out

    def add_positions(self, x: Buffer, table: np.ndarray) -> Buffer:
        """x plus the row of ``table``, float32 [n_positions, width], at each token's position."""
        if x.count != N_TOKENS or len(table) < self.max_context or table.shape[1:] != (x.width,):
            raise ValueError(f"positions {table.shape} for {x.width} columns and a context of {self.max_context}")
        return self._add_table("add_positions", x, table, POSITIONS, 1)

    def add_types(self, x: Buffer, table: np.ndarray, n_vocab: int) -> Buffer:
        """x plus the row of ``table``, float32 [n_types, width], of each token's type: its id, divided by ``n_vocab``."""
        if x.count != N_TOKENS or not len(table) or table.shape[1:] != (x.width,) or n_vocab < 1:
            raise ValueError(f"types {table.shape} for {x.width} columns, {n_vocab} ids of each")
        return self._add_table("add_types", x, table, TOKENS, n_vocab)

    def _add_table(self, name: str, x: Buffer, table: np.ndarray, index: int, divisor: int) -> Buffer:
        padded = np.zeros((len(table), x.row_bytes // 4), np.float32)
        padded[:, : x.width] = table
        out = self._buffer(name, x.width)
        arguments: Arguments = {"index": index, "divisor": divisor, "x": x,
                                "table": self.constant(padded, pad=False), "table_stride": padded.strides[0],
                                "out": out}  # fmt: skip
        self._elementwise(elementwise.add_table, arguments, [x], out)
        return out

    def slice(self, x: Buffer, first: int, width: int) -> Buffer:
        """Columns ``first`` up to ``first + width`` of x, as a buffer of its own."""
        if not 0 <= first < first + width <= x.width:
            raise ValueError(f"columns {first} to {first + width} of {x.name}, which has {x.width}")
        out = self._buffer("slice", width, x.count)
        arguments: Arguments = {"x": x, "x_stride": x.row_bytes, "first": first, "out": out, "width": width}
        self._elementwise(elementwise.copy_columns, arguments, [x], out)
        return out

    def text_means(self, x: Buffer) -> Buffer:
        """x, but in the place of each text's first token the mean of all its tokens. Texts must be in the step whole."""
        if x.count != N_TOKENS:
            raise ValueError(f"{x.name} has no row for every token")
        out = self._buffer("text_means", x.width)
        self._elementwise(text_means.text_means, {"x": x, "out": out}, [x], out)
        return out

    def activation(self, x: Buffer, kind: str) -> Buffer:
        """A function of each number of x; ``kind``: one of ``kernels.activations.KINDS``."""
        out = self._buffer(kind, x.width, x.count)
        self._elementwise(activations.activation(self.isa, kind), {"x": x, "out": out}, [x], out)
        return out

    def gated(self, gate: Buffer, up: Buffer, kind: str) -> Buffer:
        """kind(gate) * up; ``kind`` as of ``activation``."""
        _check_alike(gate, up)
        out = self._buffer("gated", gate.width, gate.count)
        self._elementwise(activations.gated(self.isa, kind), {"gate": gate, "up": up, "out": out}, [gate, up], out)
        return out

    def swiglu(self, gate: Buffer, up: Buffer) -> Buffer:
        """silu(gate) * up."""
        return self.gated(gate, up, "silu")

    def swiglu_oai(self, gate: Buffer, up: Buffer, alpha: float, limit: float) -> Buffer:
        """g sigmoid(alpha g) (u + 1), where g is gate, at most ``limit``, and u is up, within ``limit`` of 0."""
        _check_alike(gate, up)
        out = self._buffer("swiglu_oai", gate.width, gate.count)
        arguments: Arguments = {"gate": gate, "up": up, "out": out, "alpha": alpha, "limit": limit}
        self._elementwise(activations.swiglu_oai(self.isa), arguments, [gate, up], out)
        return out

    def softcap(self, x: Buffer, cap: float) -> Buffer:
        """cap * tanh(x / cap)."""
        out = self._buffer("softcap", x.width, x.count)
        self._elementwise(activations.softcap(self.isa), {"x": x, "out": out, "cap": cap, "inverse": 1 / cap}, [x], out)
        return out

    def join_heads(self, n_heads: int, parts: Sequence[tuple[Buffer, int, int, int]]) -> Buffer:
        """Rows of ``n_heads`` heads, each put together of columns of several buffers.

        ``parts``: buffer, first column of the first head, columns of each head, columns from one head to the next (0: all heads
        get the same).
        """
        count, width = parts[0][0].count, sum(columns for _, _, columns, _ in parts)
        for x, first, columns, step in parts:
            if x.count != count or not 0 <= first < first + (n_heads - 1) * step + columns <= x.width:
                raise ValueError(
                    f"{columns} columns from {first} on, {n_heads} times {step}, of {x.width}; or other rows"
                )
        out, at = self._buffer("heads", n_heads * width, count), 0
        for x, first, columns, step in parts:
            self.append(
                elementwise.copy_heads,
                {"count": count, "x": x, "x_first": 4 * first, "x_stride": x.row_bytes, "x_head": 4 * step, "out": out,
                 "out_first": 4 * at, "stride": out.row_bytes, "out_head": 4 * width, "n_heads": n_heads, "width": columns},
                [x], [out], ("tokens",) if count == N_TOKENS else ("rows", count),
            )  # fmt: skip
            at += columns
        return out

    def select_outputs(self, x: Buffer) -> Buffer:
        """Only the rows whose logits are wanted; x where it has no others."""
        if x.count == N_OUTPUTS:
            return x
        out = self._buffer("select", x.width, N_OUTPUTS)
        self._elementwise(elementwise.select_rows, {"x": x, "out": out}, [x], out)
        return out

    def _combine(self, kind: str, x: Buffer, y: Buffer | int, y_stride: int, reads: Sequence[Buffer]) -> Buffer:
        if isinstance(y, Buffer):
            _check_alike(x, y)
        out = self._buffer(kind, x.width, x.count)
        self._elementwise(elementwise.combine(kind), {"x": x, "y": y, "y_stride": y_stride, "out": out}, reads, out)
        return out

    def _elementwise(self, kernel: Kernel, arguments: Arguments, reads: Sequence[Buffer], out: Buffer) -> None:
        n_blocks = -(-out.width // activations_q8.COLUMNS)
        arguments = arguments | {"count": out.count, "stride": out.row_bytes, "n_blocks": n_blocks}
        gathers = reads if kernel in _GATHERING else ()
        self.append(kernel, arguments, reads, [out], ("blocks", out.count, n_blocks), gathers)
