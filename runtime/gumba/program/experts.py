"""Mixture of experts as operations of a program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.kernels import experts, q8
from gumba.kernels.packed import ROW_ALIGN, PackedMatrix, aligned_empty
from gumba.program.builder import Buffer, Program, Work


def moe(
    p: Program, x: Buffer, logits: Buffer, gate: Sequence[PackedMatrix] | None, up: Sequence[PackedMatrix],
    down: Sequence[PackedMatrix], n_used: int, kind: str, *, weights: str = "softmax", normalized: bool = False,
    bias: np.ndarray | None = None, scale: float = 1.0,
) -> Buffer:  # fmt: skip
    """The weighted sum of what each token's ``n_used`` best experts make of it.

    That is down(kind(gate(x)) * up(x)), or without ``gate`` down(kind(up(x))). ``logits``: the router's scores, float32
    [n, n_experts]; ``gate`` (or None), ``up``, ``down``: a matrix for each expert, all of one shape and format;
    ``kind``: as of ``Program.activation``. ``weights``: "softmax" of all scores, "softmax_chosen" of the chosen ones' only, or
    "sigmoid" of each; ``normalized``: divided by their sum; ``bias``: float32 [n_experts], added to scores (for "sigmoid": to
    what it makes of them) to choose by, not to weigh; ``scale``: factor of the weights. ValueError for what does not fit.
    """
    n_experts = len(up)
    matrices = [up, down] if gate is None else [gate, up, down]
    _check(x, logits, matrices, n_used, weights, bias)
    choice = Buffer(f"choice{len(p.operations)}", 0, -(-8 * (n_used + n_experts) // 64) * 64, x.count)
    p.append(
        experts.choose_experts(p.isa),
        {"count": x.count, "logits": logits, "stride": logits.row_bytes, "choice": choice, "choice_stride": choice.row_bytes,
         "n_experts": n_experts, "n_used": n_used, "bias": 0 if bias is None else p.constant(bias),
         "mode": experts.WEIGHTS[weights], "normalized": int(normalized), "factor": scale},
        [logits], [choice], ("rows", x.count),
    )  # fmt: skip
    starts = p.hold(aligned_empty(4 * (n_experts + 1)))
    entries = Buffer(f"entries{len(p.operations)}", 0, -(-8 * n_used // 64) * 64, x.count)
    p.append(
        experts.sort_entries,
        {"count": x.count, "choice": choice, "choice_stride": choice.row_bytes, "n_experts": n_experts, "n_used": n_used,
         "starts": starts, "entries": entries},
        [choice], [entries], ("one",),
    )  # fmt: skip

    def product(source: Buffer, source_stride: int, of: Sequence[PackedMatrix]) -> Buffer:
        """Of rows in the order of entries; so are the result's, each padded like a row of its own."""
        w = of[0]
        padded = -(-w.rows // ROW_ALIGN) * ROW_ALIGN
        out = Buffer(f"experts{len(p.operations)}", n_used * padded, 4 * n_used * padded, x.count)
        p.hold(*(each.data for each in of))
        addresses = p.hold(np.array([each.address for each in of], np.int64))
        p.append(
            experts.expert_matmul(w.format, p.isa),
            {"count": x.count, "n_used": n_used, "x": source, "x_stride": source_stride, "weights": addresses,
             "starts": starts, "n_experts": n_experts, "group_bytes": w.group_bytes, "n_blocks": w.n_blocks,
             "n_groups": w.n_groups, "out": out, "out_stride": 4 * padded},
            [source, entries], [out], ("groups", w.n_groups), [source, entries],
            Work(n_used * w.data.nbytes, row_ops=2 * n_used * w.rows * w.columns,
                 kind="float32" if w.format.ACTIVATION == "f32" else "int8",
                 shape=f"{n_used} of {n_experts}x{w.rows}x{w.columns}"),
        )  # fmt: skip
        return out

    gathered: dict[bool, tuple[Buffer, int]] = {}

    def rows_of(of: Sequence[PackedMatrix]) -> tuple[Buffer, int]:
        """x in the order of entries, as the format wants it."""
        is_float = of[0].format.ACTIVATION == "f32"
        if is_float not in gathered:
            source = x if is_float else p.blocks(x)
            out = Buffer(f"gathered{len(p.operations)}", 0, n_used * source.row_bytes, x.count)
            p.append(
                experts.gather_rows,
                {"count": x.count, "x": source, "row_bytes": source.row_bytes, "entries": entries, "n_used": n_used, "out": out},
                [source, entries], [out], ("entries", x.count, n_used), [source, entries],
            )  # fmt: skip
            gathered[is_float] = out, source.row_bytes
        return gathered[is_float]

    made = product(*rows_of(up), up)
    made = p.activation(made, kind) if gate is None else p.gated(product(*rows_of(gate), gate), made, kind)
    padded = made.width // n_used
    if down[0].format.ACTIVATION == "f32":
        y = product(made, 4 * padded, down)
    else:
        y = product(p.blocks(made), padded // q8.COLUMNS * q8.BYTES, down)
    width = down[0].rows
    out = Buffer(f"moe{len(p.operations)}", width, -(-width // ROW_ALIGN) * ROW_ALIGN * 4, x.count)
    n_blocks = -(-width // q8.COLUMNS)
    p.append(
        experts.merge_experts,
        {"count": x.count, "x": y, "x_stride": y.row_bytes // n_used, "choice": choice, "choice_stride": choice.row_bytes,
         "entries": entries, "n_used": n_used, "out": out, "stride": out.row_bytes, "n_blocks": n_blocks},
        [y, choice, entries], [out], ("blocks", x.count, n_blocks), [y, choice, entries],
    )  # fmt: skip
    return out


def _check(
    x: Buffer,
    logits: Buffer,
    matrices: list[Sequence[PackedMatrix]],
    n_used: int,
    weights: str,
    bias: np.ndarray | None,
) -> None:
    n_experts = len(matrices[0])
    inner = matrices[0][0].rows if n_experts else 0
    if not 1 <= n_used <= n_experts or (logits.width, logits.count) != (n_experts, x.count):
        raise ValueError(f"{n_used} of {n_experts} experts, {logits.width} scores; or scores of other rows")
    if bias is not None and np.size(bias) != n_experts:
        raise ValueError(f"{np.size(bias)} numbers of bias for {n_experts} experts")
    if weights not in experts.WEIGHTS:
        raise ValueError(f"weights {weights!r}: expected one of {', '.join(experts.WEIGHTS)}")
    for i, each in enumerate(matrices):
        wanted = (each[0].rows, inner) if i == len(matrices) - 1 else (inner, x.width)
        if len(each) != n_experts or any((m.rows, m.columns, m.format) != (*wanted, each[0].format) for m in each):
            raise ValueError(
                f"experts' matrices: expected {n_experts} of {wanted[0]} rows, {wanted[1]} columns, in one format"
            )
