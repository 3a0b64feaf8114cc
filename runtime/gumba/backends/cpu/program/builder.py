"""Writing a program: each call appends one operation and hands back the buffer that it fills.

A ``Program`` is written once, at load. Buffers are named runs of rows (one per token, or one per wanted logit row); where they
lie is settled at the end: buffers whose lives do not overlap share memory. Barriers are placed by the data: an operation
waits only if it reads what another thread may still be writing, or overwrites what another may still be reading. Operations
that split their work alike (the same rows, the same units) hand each thread its own results, and need no barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gumba.backends.base import RopeTable
from gumba.backends.cpu.kernels import activations_q8, embed, matmul, rope
from gumba.backends.cpu.kernels import attention_layout as att
from gumba.backends.cpu.kernels import output_rows as outputs
from gumba.backends.cpu.kernels.attention import attention, store_kv
from gumba.backends.cpu.kernels.record import BARRIER, FIRST_ARGUMENT, N_TOKENS, OUTPUTS_VIEW, RECORD_WORDS
from gumba.backends.cpu.kv_pages import PAGE_FORMATS, PAGE_TOKENS
from gumba.backends.cpu.packing import PackedMatrix, aligned_empty
from gumba.backends.cpu.program.altup import AltUp
from gumba.backends.cpu.program.delta_net import Recurrent
from gumba.backends.cpu.program.memory_plan import place_barriers, place_buffers, plan_splits
from gumba.backends.cpu.program.moe import MixtureOfExperts
from gumba.backends.cpu.program.operation import Arguments, Buffer, KVLayout, Operation, Work

__all__ = ["Buffer", "KVLayout", "Operation", "Program", "Work"]


def _check_shapes(
    q: Buffer, k: Buffer | None, v: Buffer | None, at: KVLayout, windows: tuple[int, int], stored: bool
) -> None:
    """ValueError for what does not fit the layer's cache. ``windows``: what limits how far back a token attends; 0: nothing."""
    wanted = at.n_kv_heads * at.head_dim, at.n_kv_heads * at.v_dim
    given = (k.width, v.width) if k is not None and v is not None else None
    if (given is None and (k is not v or not stored)) or given not in (None, wanted):
        raise ValueError(
            f"keys and values of {given} columns: expected {wanted}, or none where they are stored already"
        )
    if not q.width or not wanted[0] or q.width % wanted[0] or min(windows) < 0 or not at.covers(max(windows)):
        raise ValueError(f"queries of {q.width} columns, keys of {wanted[0]}, windows {windows}, pages for {at.window}")


def _product(w: PackedMatrix) -> Work:
    """The work of one matrix product."""
    kind = "float32" if w.format.activation == "f32" else "int8"
    return Work(w.data.nbytes, row_ops=2 * w.rows * w.columns, kind=kind, shape=f"{w.rows}x{w.columns}")


@dataclass
class Program(Recurrent, MixtureOfExperts, AltUp):
    """The CPU's ``gumba.backends.base.Operations``: products, positions and attention here, the others in its base classes.

    ``kv``: where the keys and values of each layer lie.
    """

    kv: Sequence[KVLayout] = field(default_factory=list)
    #: Of all attentions: most query heads for a KV head, and most KV heads. They bound a step's tiles.
    most_grouped: int = 1
    most_kv_heads: int = 1
    _caches: dict[int, Buffer] = field(default_factory=dict)  # stand for the pages of a layer, to order what uses them
    _outputs_view: Buffer | None = None  # likewise, for the record of the tokens whose logits are wanted
    _scratch_bytes: int = embed.SCRATCH
    _partials_bytes: int = 0
    _arena: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    # What an architecture writes -----------------------------------------------------------------------------------

    def embed(self, w: PackedMatrix) -> Buffer:
        """Rows of ``w`` for this step's token ids (past its rows they count from 0 again: see ``add_types``)."""
        if w.scale != 1.0:
            return self.scale(self.embed(replace(w, scale=1.0)), w.scale)
        self._keep.append(w.data)
        out = self._buffer("embed", w.columns)
        self.append(
            embed.embed(w.format, self.isa),
            {"w": w.address, "n_rows": w.rows, "group_bytes": w.group_bytes, "n_blocks": w.n_blocks, "scratch": -1,
             "out": out, "out_stride": out.row_bytes},
            [], [out], ("tokens",), work=Work(row_bytes=len(w.data) // max(1, w.rows)),
        )  # fmt: skip
        return out

    def matmul(
        self, w: PackedMatrix, x: Buffer, residual: Buffer | None = None, bias: np.ndarray | None = None
    ) -> Buffer:
        """x times w transposed, plus a residual, plus a bias."""
        if w.scale != 1.0:
            scaled = self.scale(self.matmul(replace(w, scale=1.0), x), w.scale)
            scaled = scaled if residual is None else self.add(scaled, residual)
            return scaled if bias is None else self.add_row(scaled, bias)
        self._keep.append(w.data)
        out = self._buffer("matmul", w.rows, x.count)
        source = x if w.format.activation == "f32" else self.blocks(x)
        self.append(
            matmul.matmul(w.format, self.isa),
            {"count": x.count, "x": source, "x_stride": source.row_bytes, "w": w.address, "group_bytes": w.group_bytes,
             "n_blocks": w.n_blocks, "n_groups": w.n_groups, "out": out, "out_stride": out.row_bytes,
             "residual": residual if residual is not None else 0},
            [source] + ([residual] if residual is not None else []), [out], ("groups", w.n_groups), [source],
            _product(w),
        )  # fmt: skip
        return out if bias is None else self.add_row(out, bias)

    def head_matmul(self, w: Sequence[PackedMatrix], x: Buffer) -> Buffer:
        """Each head of x times its own matrix, transposed: float32 [n, n_heads * rows]. Matrices of one shape and format."""
        m, n_heads = w[0], len(w)
        if x.width != n_heads * m.columns or any(
            (o.rows, o.columns, o.format) != (m.rows, m.columns, m.format) for o in w
        ):
            raise ValueError(
                f"{n_heads} matrices of {m.rows} x {m.columns}, or of several shapes, for {x.width} columns"
            )
        is_float = m.format.activation == "f32"
        source = x if is_float else self.blocks(x)
        padded = m.n_groups * self.isa.lanes
        out = self._buffer("head_matmul", n_heads * padded, x.count)
        self.hold(*(each.data for each in w))
        self.append(
            matmul.head_matmul(m.format, self.isa),
            {"count": x.count, "x": source, "x_stride": source.row_bytes,
             "x_head": 4 * m.columns if is_float else m.columns // activations_q8.COLUMNS * activations_q8.BYTES,
             "weights": self.hold(np.array([each.address for each in w], np.int64)), "n_heads": n_heads,
             "group_bytes": m.group_bytes, "n_blocks": m.n_blocks, "n_groups": m.n_groups, "out": out,
             "out_stride": out.row_bytes},
            [source], [out], ("head groups", n_heads, m.n_groups), [source],
            Work(n_heads * m.data.nbytes, row_ops=2 * n_heads * m.rows * m.columns,
                 kind="float32" if is_float else "int8", shape=f"{n_heads}x{m.rows}x{m.columns}"),
        )  # fmt: skip
        if any(each.scale != 1.0 for each in w):
            out = self.multiply_row(out, np.repeat([each.scale for each in w], padded).astype(np.float32))
        return out if padded == m.rows else self.join_heads(n_heads, [(out, 0, m.rows, padded)])

    def rope_table(
        self, inverse_frequencies: np.ndarray, magnitude: float, neox: bool, factors: np.ndarray | None = None
    ) -> RopeTable:
        """Cosines and sines of each position, float32 [max_context, 2, rope_dim]; see ``kernels.rope.cos_sin_table``."""
        table = rope.cos_sin_table(inverse_frequencies, self.max_context, magnitude, neox=neox)
        if factors is not None:
            table *= factors.astype(np.float32)[:, None, None]
        return RopeTable(self.constant(table, pad=False))

    def rope(
        self, x: Buffer, n_heads: int, head_dim: int, rope_dim: int, table: RopeTable, neox: bool = False
    ) -> Buffer:
        """Rotate the heads of x by their positions, in place."""
        view, reads = self._view(x.count)
        arguments: Arguments = {"view": view, "x": x, "stride": x.row_bytes, "n_heads": n_heads,
                                "head_dim": head_dim, "rope_dim": rope_dim, "table": table, "neox": int(neox)}  # fmt: skip
        self.append(rope.rope, arguments, [x, *reads], [x], ("heads", x.count, n_heads))
        return x

    def _view(self, count: int) -> tuple[int, list[Buffer]]:
        """Which record of the batch an operation on so many rows reads, and what it waits for."""
        if count == N_TOKENS:
            return 0, []
        if self._outputs_view is None:
            self._outputs_view = Buffer("outputs view", 0, 0, N_TOKENS)
            self.append(outputs.view_outputs, {}, [], [self._outputs_view], ("one",))
        return OUTPUTS_VIEW, [self._outputs_view]

    def attention(
        self, q: Buffer, k: Buffer | None, v: Buffer | None, layer: int, scale: float, *,
        window: int = 0, softcap: float = 0.0, sinks: np.ndarray | None = None, slopes: np.ndarray | None = None,
        causal: bool = True, chunk: int = 0, bias: np.ndarray | None = None, part: Literal["all", "source", "answer"] = "all",
    ) -> Buffer:  # fmt: skip
        """Append ``store_kv``, unless k and v are None, and ``attention``: softmax(scale q k) v, float32 [n, n_heads * v_dim].

        The arguments are those of ``gumba.backends.operations.Operations.attention``; each that differs from its default selects
        code of the kernel (``kernels.attention_layout.Variant``). Raises ValueError for shapes that do not fit the layer's cache.
        """
        at = self.kv[layer]
        if k is not None and k.count != q.count:
            raise ValueError(f"{q.name} has other rows than {k.name}")
        view, reads = self._view(q.count)
        group = q.width // max(1, at.n_kv_heads * at.head_dim)
        n_heads = at.n_kv_heads * group
        _check_shapes(q, k, v, at, (window, chunk), stored=at.pages in self._caches or part == "source")
        pages = PAGE_FORMATS[at.kv_type]
        variant = att.Variant(
            not causal, window > 0, chunk > 0, part == "answer", part == "source", softcap > 0, slopes is not None,
            bias is not None, sinks is not None,
        )  # fmt: skip
        options = {"window": max(window, chunk)} | self._of_heads(n_heads, sinks, slopes, bias)
        place, cache = self._place(at, group, options)
        self._scratch_bytes = max(self._scratch_bytes, att.scratch_bytes(pages, group, at.head_dim, at.v_dim))
        self.most_grouped, self.most_kv_heads = max(self.most_grouped, group), max(self.most_kv_heads, at.n_kv_heads)
        if k is not None and v is not None:
            self._store(k, v, at, place, cache)  # the same geometry, which is then at hand
        partials = att.partials_bytes(group, pages.v_row(at.v_dim), self.n_threads, self.max_context)
        self._partials_bytes = max(self._partials_bytes, partials)
        out = self._buffer("attention", n_heads * at.v_dim, q.count)
        unit = 1 / softcap if softcap > 0 else att.LOG2_E  # scores are made for tanh, or for powers of two
        self.append(
            attention(self.isa, pages, variant),
            place | {"view": view, "q": q, "out": out, "stride": q.row_bytes, "out_stride": out.row_bytes, "scale": scale * unit,
                     "cap": softcap * att.LOG2_E, "partials": -1},
            [q, cache, *reads], [out], ("tiles", q.count),
            work=Work(
                kv_bytes=at.n_kv_heads * (at.k_page + at.v_page) // PAGE_TOKENS,
                pair_ops=2 * n_heads * (at.head_dim + at.v_dim) * (1 if causal else 2),
                kind=pages.arithmetic(self.isa),
                window=max(window, chunk),
            ),
        )  # fmt: skip
        return out

    def store_kv(self, k: Buffer, v: Buffer, layer: int) -> None:
        """Store keys and values of this step's tokens in the layer's cache."""
        at = self.kv[layer]
        if (k.width, v.width) != (at.n_kv_heads * at.head_dim, at.n_kv_heads * at.v_dim):
            raise ValueError(f"keys and values of {k.width} and {v.width} columns for {at.n_kv_heads} heads")
        self._scratch_bytes = max(
            self._scratch_bytes, att.scratch_bytes(PAGE_FORMATS[at.kv_type], 1, at.head_dim, at.v_dim)
        )
        self._store(k, v, at, *self._place(at, 1, {}))

    def _store(self, k: Buffer, v: Buffer, at: KVLayout, place: Arguments, cache: Buffer) -> None:
        self.append(
            store_kv(self.isa, PAGE_FORMATS[at.kv_type]),
            place | {"k": k, "v": v, "k_stride": k.row_bytes, "v_stride": v.row_bytes},
            [k, v], [cache], ("heads", k.count, at.n_kv_heads),
        )  # fmt: skip

    def _place(self, at: KVLayout, group: int, options: dict[str, int]) -> tuple[Arguments, Buffer]:
        """The arguments that say where a layer's cache lies; what stands for it, to order the operations."""
        pages = PAGE_FORMATS[at.kv_type]
        geometry = att.geometry(pages, at.n_kv_heads, group, at.head_dim, at.v_dim, k_page=at.k_page, v_page=at.v_page,
                                k_head=at.k_head, v_head=at.v_head, v_offset=at.v_offset, extent_pages=at.extent_pages,
                                extent_bytes=at.extent_bytes, windowed=at.window > 0, **options)  # fmt: skip
        cache = self._caches.setdefault(at.pages, Buffer("kv", 0, 0, N_TOKENS))
        return {"memory": at.pages, "geo": self.hold(geometry), "scratch": -1, "scratch_bytes": -1}, cache

    def _of_heads(
        self, n_heads: int, sinks: np.ndarray | None, slopes: np.ndarray | None, bias: np.ndarray | None
    ) -> dict[str, int]:
        """Of the geometry: where the numbers lie that each head has for itself."""
        found: dict[str, int] = {}
        unit = np.float32(att.LOG2_E)
        if sinks is not None:
            found["sinks"] = self._row(sinks * unit, n_heads, 0.0)
        if slopes is not None:
            found |= {"of_distance": self._row(slopes * unit, n_heads, 0.0), "of_distance_row": 4}
        if bias is not None:
            if bias.ndim != 2 or len(bias) != n_heads or bias.shape[1] % 2 != 1:
                raise ValueError(f"biases {bias.shape} for {n_heads} heads")
            table = att.bias_table(bias * unit)
            found |= {"of_distance": self.hold(table), "of_distance_row": table.strides[0], "reach": bias.shape[1] // 2}
        return found

    # How it becomes records ----------------------------------------------------------------------------------------

    def rows(self, buffer: Buffer) -> np.ndarray:
        """A view of a finished program's buffer, float32 [max_rows, padded width]."""
        start = buffer.address - int(self._arena.ctypes.data)
        size = buffer.row_bytes * self.max_rows
        return self._arena[start : start + size].view(np.float32).reshape(self.max_rows, -1)

    def finish(self, outputs: Sequence[Buffer]) -> np.ndarray:
        """Settle barriers and memory; the records, int64 [n, RECORD_WORDS]. ``outputs`` stay readable after a step."""
        barriers = place_barriers(self.operations)
        self._arena = place_buffers(self.operations, outputs, self.max_rows)
        scratch = aligned_empty(self._scratch_bytes * self.n_threads)
        partials = aligned_empty(self._partials_bytes)
        partials[: 64 * att.split_units(self.n_threads)] = 0  # the counters
        self._keep += [scratch, partials]
        own = {
            "scratch": int(scratch.ctypes.data),
            "scratch_bytes": self._scratch_bytes,
            "partials": int(partials.ctypes.data),
        }
        records = np.zeros((len(self.operations), RECORD_WORDS), np.int64)
        for record, op, barrier in zip(records, self.operations, barriers):
            values: dict[str, int | float] = {}
            for name, value in op.arguments.items():
                if isinstance(value, Buffer):
                    values[name] = value.address
                elif name in own:
                    values[name] = own[name]
                else:
                    values[name] = value
            words = op.kernel.words(values)
            record[0], record[BARRIER] = op.kernel.address, int(barrier)
            record[FIRST_ARGUMENT : FIRST_ARGUMENT + len(words)] = words
        plan_splits(self.operations, self.n_threads, records)
        return records
