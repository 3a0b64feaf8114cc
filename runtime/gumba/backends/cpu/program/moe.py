"""Mixture of experts as operations of a program (``kernels.moe`` says how it works)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from gumba.backends import base
from gumba.backends.cpu.kernels import activations_q8
from gumba.backends.cpu.kernels import moe as experts
from gumba.backends.cpu.packing import ROW_ALIGN, PackedMatrix, aligned_empty
from gumba.backends.cpu.program.elementwise import Elementwise
from gumba.backends.cpu.program.operation import Arguments, Buffer, Work

Experts: TypeAlias = base.ExpertMatrices[PackedMatrix]


class MixtureOfExperts(Elementwise):
    """The part of a ``Program`` that routes tokens to experts."""

    def moe(
        self, x: Buffer, logits: Buffer, gate: Experts | None, up: Experts, down: Experts, n_used: int,
        kind: str | Callable[[Buffer, Buffer], Buffer], *, weights: str = "softmax", normalized: bool = False,
        bias: np.ndarray | None = None, scale: float = 1.0, factors: np.ndarray | None = None,
        groups: tuple[int, int] = (1, 1), weigh_inputs: bool = False,
    ) -> Buffer:  # fmt: skip
        """The weighted sum of the outputs of each token's ``n_used`` best experts (``gumba.backends.base`` has the arguments)."""
        _check(x, logits, [up, down] if gate is None else [gate, up, down], n_used)
        n_experts = len(up.matrices)
        if weights not in experts.WEIGHTS:
            raise ValueError(f"weights {weights!r}: expected one of {', '.join(experts.WEIGHTS)}")
        for values in (bias, factors):
            if values is not None and np.size(values) != n_experts:
                raise ValueError(f"{np.size(values)} numbers for {n_experts} experts")
        if weigh_inputs and any(part is not None and part.bias is not None for part in (gate, up)):
            raise ValueError("inputs are weighed behind the products, which may not have biases then")
        if gate is None and not isinstance(kind, str):
            raise ValueError("without a gate, the activation is named")
        n_groups, groups_used = groups
        if not 1 <= groups_used <= n_groups or n_experts % n_groups or n_experts // n_groups * groups_used < n_used:
            raise ValueError(f"{n_used} of {n_experts} experts, in {groups_used} of {n_groups} groups")
        route = experts.routing(
            n_experts, n_used, weights=weights, normalized=normalized, factor=scale, groups=groups,
            bias=0 if bias is None else self.constant(bias), factors=0 if factors is None else self.constant(factors),
        )  # fmt: skip
        choice = Buffer(f"choice{len(self.operations)}", 0, -(-8 * (n_used + n_experts) // 64) * 64, x.count)
        self.append(
            experts.choose_experts(self.isa),
            {"count": x.count, "logits": logits, "stride": logits.row_bytes, "choice": choice,
             "choice_stride": choice.row_bytes, "route": self.hold(route)},
            [logits], [choice], ("rows", x.count),
        )  # fmt: skip
        entries = _Entries(self, x, choice, n_experts, n_used)
        made = entries.product(entries.rows_of(x, up), up)
        if weigh_inputs:
            entries.weigh(made)
        if gate is not None:
            gates = entries.product(entries.rows_of(x, gate), gate)
            if weigh_inputs:
                entries.weigh(gates)
            made = self.gated(gates, made, kind) if isinstance(kind, str) else kind(gates, made)
        elif isinstance(kind, str):
            made = self.activation(made, kind)
        row = made if _is_float(down) else self.blocks(made)
        return entries.merge(entries.product(row, down), down.matrices[0].rows, weighted=not weigh_inputs)


def _is_float(of: Experts) -> bool:
    return bool(of.matrices[0].format.activation == "f32")


def _check(x: Buffer, logits: Buffer, parts: list[Experts], n_used: int) -> None:
    n_experts = len(parts[0].matrices)
    if not 1 <= n_used <= n_experts or (logits.width, logits.count) != (n_experts, x.count):
        raise ValueError(f"{n_used} of {n_experts} experts, {logits.width} scores; or scores of other rows")
    inner = parts[0].matrices[0].rows
    for i, part in enumerate(parts):
        first = part.matrices[0] if part.matrices else parts[0].matrices[0]
        wanted = (first.rows, inner) if i == len(parts) - 1 else (inner, x.width)
        if len(part.matrices) != n_experts or any(
            (m.rows, m.columns, m.format) != (*wanted, first.format) for m in part.matrices
        ):
            raise ValueError(
                f"experts' matrices: expected {n_experts} of {wanted[0]} rows, {wanted[1]} columns, one format"
            )
        if part.bias is not None and part.bias.shape != (n_experts, first.rows):
            raise ValueError(f"bias {part.bias.shape} for {n_experts} experts of {first.rows} rows")


class _Entries:
    """Each token once for every expert that it is sent to, sorted by expert: what is computed on such rows.

    A buffer of entries has ``n_used`` rows side by side in each of its own; where a token's lie is in ``order``.
    """

    def __init__(self, p: Elementwise, x: Buffer, choice: Buffer, n_experts: int, n_used: int) -> None:
        self._p, self._choice, self._n_experts, self._n_used = p, choice, n_experts, n_used
        self._count: Arguments = {"count": x.count, "n_used": n_used}
        self._starts = p.hold(aligned_empty(4 * (n_experts + 1)))
        self._order = Buffer(f"entries{len(p.operations)}", 0, -(-8 * n_used // 64) * 64, x.count)
        self._gathered: dict[bool, Buffer] = {}
        p.append(
            experts.sort_entries,
            self._count | {"choice": choice, "choice_stride": choice.row_bytes, "n_experts": n_experts,
                           "starts": self._starts, "entries": self._order},
            [choice], [self._order], ("one",),
        )  # fmt: skip

    def rows_of(self, x: Buffer, of: Experts) -> Buffer:
        """x as entries, in the form that the matrices' format wants: made once for each form."""
        if _is_float(of) not in self._gathered:
            source = x if _is_float(of) else self._p.blocks(x)
            out = Buffer(f"gathered{len(self._p.operations)}", 0, self._n_used * source.row_bytes, x.count)
            self._p.append(
                experts.gather_rows,
                self._count | {"x": source, "row_bytes": source.row_bytes, "entries": self._order, "out": out},
                [source, self._order], [out], ("entries", x.count, self._n_used), [source, self._order],
            )  # fmt: skip
            self._gathered[_is_float(of)] = out
        return self._gathered[_is_float(of)]

    def product(self, x: Buffer, of: Experts) -> Buffer:
        """Each entry times its expert's matrix. The rows of the result are padded like those of any buffer."""
        p, w = self._p, of.matrices[0]
        padded = -(-w.rows // ROW_ALIGN) * ROW_ALIGN
        out = Buffer(f"experts{len(p.operations)}", self._n_used * padded, 4 * self._n_used * padded, x.count)
        p.hold(*(each.data for each in of.matrices))
        p.append(
            experts.expert_matmul(w.format, p.isa),
            self._count | {"x": x, "x_stride": x.row_bytes // self._n_used,
                           "weights": p.hold(np.array([each.address for each in of.matrices], np.int64)),
                           "starts": self._starts, "n_experts": self._n_experts, "group_bytes": w.group_bytes,
                           "n_blocks": w.n_blocks, "n_groups": w.n_groups, "out": out, "out_stride": 4 * padded},
            [x, self._order], [out], ("groups", w.n_groups), [x, self._order],
            Work(self._n_used * w.data.nbytes, row_ops=2 * self._n_used * w.rows * w.columns,
                 kind="float32" if _is_float(of) else "int8",
                 shape=f"{self._n_used} of {self._n_experts}x{w.rows}x{w.columns}"),
        )  # fmt: skip
        if any(each.scale != 1.0 for each in of.matrices):
            scales = np.array([each.scale for each in of.matrices], np.float32)
            p.append(
                experts.scale_expert_rows,
                self._count | {"x": out, "stride": 4 * padded, "n_blocks": padded // activations_q8.COLUMNS,
                               "scales": p.constant(scales, pad=False), "starts": self._starts,
                               "n_experts": self._n_experts},
                [out, self._order], [out], ("entries", x.count, self._n_used), [out, self._order],
            )  # fmt: skip
        if of.bias is not None:
            table = np.zeros((self._n_experts, padded), np.float32)
            table[:, : w.rows] = of.bias
            p.append(
                experts.add_expert_rows,
                self._count | {"x": out, "stride": 4 * padded, "n_blocks": padded // activations_q8.COLUMNS,
                               "table": p.constant(table, pad=False), "table_stride": 4 * padded, "starts": self._starts,
                               "n_experts": self._n_experts},
                [out, self._order], [out], ("entries", x.count, self._n_used), [out, self._order],
            )  # fmt: skip
        return out

    def weigh(self, y: Buffer) -> None:
        """Each entry times its weight, in place: a product with what was weighed before it."""
        row_bytes = y.row_bytes // self._n_used
        self._p.append(
            experts.weigh_entries,
            self._count | {"x": y, "stride": row_bytes, "choice": self._choice, "choice_stride": self._choice.row_bytes,
                           "entries": self._order, "n_blocks": row_bytes // (4 * activations_q8.COLUMNS)},
            [y, self._choice, self._order], [y], ("rows", y.count), [y, self._order],
        )  # fmt: skip

    def merge(self, y: Buffer, width: int, *, weighted: bool) -> Buffer:
        """Each token's entries added, times their weights if ``weighted``."""
        p, n_blocks = self._p, -(-width // activations_q8.COLUMNS)
        out = Buffer(f"moe{len(p.operations)}", width, y.row_bytes // self._n_used, y.count)
        p.append(
            experts.merge_experts,
            self._count | {"x": y, "x_stride": y.row_bytes // self._n_used, "choice": self._choice,
                           "choice_stride": self._choice.row_bytes, "entries": self._order, "weighted": int(weighted),
                           "out": out, "stride": out.row_bytes, "n_blocks": n_blocks},
            [y, self._choice, self._order], [out], ("blocks", y.count, n_blocks), [y, self._choice, self._order],
        )  # fmt: skip
        return out
