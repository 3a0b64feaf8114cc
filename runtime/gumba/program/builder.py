"""Writing a program: each call appends one operation and hands back the buffer that it fills.

A ``Program`` is written once, at load. Buffers are named runs of rows (one per token, or one per wanted logit row); where they
lie is settled at the end: buffers whose lives do not overlap share memory. Barriers are placed by the data: an operation
waits only if it reads what another thread may still be writing, or overwrites what another may still be reading. Operations
that split their work alike (the same rows, the same units) hand each thread its own results, and need no barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gumba.errors import ResourceError
from gumba.kernels import activations, conv, elementwise, embed, matmul, norms, q8, rope
from gumba.kernels import attention as att
from gumba.kernels.op import (
    BARRIER,
    CUT,
    FIRST_ARGUMENT,
    MAX_PIECES,
    N_OUTPUTS,
    N_TOKENS,
    POSITIONS,
    RECORD_WORDS,
    TOKENS,
    Kernel,
    cut,
)
from gumba.kernels.packed import ROW_ALIGN, PackedMatrix, aligned_empty
from gumba.kernels.pages import PAGE_TOKENS, page_formats
from gumba.simd.isa import Isa

#: A piece of a small step's product reads at least so much, or is not cut further.
PIECE_BYTES = 1 << 20


@dataclass(eq=False)
class Buffer:
    """Rows of ``width`` elements. ``count``: offset in the batch record of how many rows a step has."""

    name: str
    width: int
    row_bytes: int
    count: int
    blocks: Buffer | None = None  # the same rows as int8 blocks, once an operation has asked for them
    address: int = 0
    first_use: int = -1
    last_use: int = -1


@dataclass(frozen=True)
class Work:
    """What an operation must read, write and compute at the least: what its measured time is held against.

    ``weights``: bytes of a matrix, read once a step; ``row_bytes``: read and written for each of its rows; ``kv_bytes``: per
    token of context of each sequence; ``row_ops``: multiplications and additions per row; ``pair_ops``: per pair of a token
    and one that it attends to; ``kind``: the arithmetic of those, "int8", "float32" or "bf16"; ``shape``: in words;
    ``window``: of the context, only so many tokens count (0: all).
    """

    weights: int = 0
    row_bytes: int = 0
    kv_bytes: int = 0
    row_ops: int = 0
    pair_ops: int = 0
    kind: str = "float32"
    shape: str = ""
    window: int = 0


@dataclass
class Operation:
    kernel: Kernel
    arguments: dict[str, int | float | Buffer]
    reads: Sequence[Buffer]
    writes: Sequence[Buffer]
    split: tuple[object, ...]  # operations of equal split give each thread the same rows and columns
    gathers: Sequence[Buffer] = ()  # inputs of which a thread reads more than its own share
    phase: int = 0
    work: Work = Work()

    def waits_for(self, earlier: Operation) -> bool:
        """Whether every thread must have ended ``earlier`` before any begins this."""
        alike = self.split == earlier.split
        return (
            any(b in earlier.writes and not (alike and b not in self.gathers) for b in self.reads)
            or any(b in earlier.reads and not (alike and b not in earlier.gathers) for b in self.writes)
            or any(b in earlier.writes and not alike for b in self.writes)
        )


#: Operations over blocks of rows that read more than the block they write: whole rows, other rows, other columns.
_GATHERING = (
    norms.rms_norm,
    norms.layer_norm,
    elementwise.select_rows,
    elementwise.copy_columns,
    elementwise.scale_rows,
)


def _check_alike(x: Buffer, y: Buffer) -> None:
    """ValueError for buffers of other rows or columns."""
    if (x.width, x.count) != (y.width, y.count):
        raise ValueError(f"{x.name} has {x.width} columns, {y.name} {y.width}; or one of them has other rows")


def _check_shapes(q: Buffer, k: Buffer | None, v: Buffer | None, at: KVLayout, window: int, stored: bool) -> None:
    """ValueError for what does not fit the layer's cache."""
    wanted = at.n_kv_heads * at.head_dim, at.n_kv_heads * at.v_dim
    given = (k.width, v.width) if k is not None and v is not None else None
    if (given is None and (k is not v or not stored)) or given not in (None, wanted):
        raise ValueError(
            f"keys and values of {given} columns: expected {wanted}, or none where they are stored already"
        )
    if not q.width or not wanted[0] or q.width % wanted[0] or window < 0:
        raise ValueError(f"queries of {q.width} columns, keys of {wanted[0]}, window {window}")


def _product(w: PackedMatrix) -> Work:
    """The work of one matrix product."""
    kind = "float32" if w.format.ACTIVATION == "f32" else "int8"
    return Work(w.data.nbytes, row_ops=2 * w.rows * w.columns, kind=kind, shape=f"{w.rows}x{w.columns}")


@dataclass(frozen=True)
class KVLayout:
    """Where keys and values of one layer lie, in bytes. ``pages``: address of the layer's part of the first extent.

    Memory is cut into extents of ``extent_pages`` pages, ``extent_bytes`` each, with a place for every layer. There the keys
    of one head lie in page after page, then the next head's; from ``v_offset`` on the values likewise.
    """

    pages: int
    k_page: int
    v_page: int
    k_head: int
    v_head: int
    v_offset: int
    extent_pages: int
    extent_bytes: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    kv_type: str


@dataclass
class Program:
    isa: Isa
    n_threads: int
    max_rows: int
    max_context: int = 0
    operations: list[Operation] = field(default_factory=list)
    #: Of all attentions: most query heads for a KV head, and most KV heads. They bound a step's tiles.
    most_grouped: int = 1
    most_kv_heads: int = 1
    _keep: list[np.ndarray] = field(default_factory=list)
    _caches: dict[int, Buffer] = field(default_factory=dict)  # stand for the pages of a layer, to order what uses them
    _plain_rows: dict[tuple[int, float], int] = field(default_factory=dict)
    _scratch_bytes: int = embed.SCRATCH
    _partials_bytes: int = 0
    _arena: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    # What an architecture writes -----------------------------------------------------------------------------------

    def embed(self, w: PackedMatrix) -> Buffer:
        """Rows of ``w`` for this step's token ids (past its rows they count from 0 again: see ``add_types``)."""
        self._keep.append(w.data)
        out = self._buffer("embed", w.columns)
        self.append(
            embed.embed(w.format, self.isa),
            {"w": w.address, "n_rows": w.rows, "group_bytes": w.group_bytes, "n_blocks": w.n_blocks, "scratch": -1,
             "out": out, "out_stride": out.row_bytes},
            [], [out], ("tokens",), work=Work(row_bytes=len(w.data) // max(1, w.rows)),
        )  # fmt: skip
        return out

    def rms_norm(self, x: Buffer, weight: np.ndarray | None, eps: float) -> Buffer:
        """x / sqrt(mean(x^2) + eps) * weight, float32 [width]; None: without."""
        out = self._buffer("rms_norm", x.width, x.count)
        arguments = {"x": x, "weight": self._row(weight, x.width, 1.0), "out": out, "width": x.width, "eps": eps}
        self._elementwise(norms.rms_norm, arguments, [x], out)
        return out

    def layer_norm(self, x: Buffer, weight: np.ndarray | None, bias: np.ndarray | None, eps: float) -> Buffer:
        """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, both float32 [width]; None: without."""
        out = self._buffer("layer_norm", x.width, x.count)
        arguments = {"x": x, "weight": self._row(weight, x.width, 1.0), "bias": self._row(bias, x.width, 0.0), "out": out,
                     "width": x.width, "eps": eps}  # fmt: skip
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
        arguments = {"count": x.count, "x": x, "weight": self._row(weight, x.width if of_each else head_dim, 1.0),
                     "weight_step": 4 * head_dim if of_each else 0, "out": out, "stride": x.row_bytes, "n_heads": n_heads,
                     "head_dim": head_dim, "centred": int(centred), "eps": eps}  # fmt: skip
        self.append(norms.head_norm, arguments, [x], [out], ("tokens",) if x.count == N_TOKENS else ("rows", x.count))
        return out

    def matmul(
        self, w: PackedMatrix, x: Buffer, residual: Buffer | None = None, bias: np.ndarray | None = None
    ) -> Buffer:
        """x times w transposed, plus a residual, plus a bias."""
        self._keep.append(w.data)
        out = self._buffer("matmul", w.rows, x.count)
        source = x if w.format.ACTIVATION == "f32" else self.blocks(x)
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
        is_float = m.format.ACTIVATION == "f32"
        source = x if is_float else self.blocks(x)
        padded = m.n_groups * self.isa.lanes
        out = self._buffer("head_matmul", n_heads * padded, x.count)
        self.hold(*(each.data for each in w))
        self.append(
            matmul.head_matmul(m.format, self.isa),
            {"count": x.count, "x": source, "x_stride": source.row_bytes,
             "x_head": 4 * m.columns if is_float else m.columns // q8.COLUMNS * q8.BYTES,
             "weights": self.hold(np.array([each.address for each in w], np.int64)), "n_heads": n_heads,
             "group_bytes": m.group_bytes, "n_blocks": m.n_blocks, "n_groups": m.n_groups, "out": out,
             "out_stride": out.row_bytes},
            [source], [out], ("head groups", n_heads, m.n_groups), [source],
            Work(n_heads * m.data.nbytes, row_ops=2 * n_heads * m.rows * m.columns,
                 kind="float32" if is_float else "int8", shape=f"{n_heads}x{m.rows}x{m.columns}"),
        )  # fmt: skip
        return out if padded == m.rows else self.join_heads(n_heads, [(out, 0, m.rows, padded)])

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
        arguments = {"x": x, "factors": factors, "factors_stride": factors.row_bytes, "out": out}
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
        arguments = {"index": index, "divisor": divisor, "x": x, "table": self.constant(padded, pad=False),
                     "table_stride": padded.strides[0], "out": out}  # fmt: skip
        self._elementwise(elementwise.add_table, arguments, [x], out)
        return out

    def slice(self, x: Buffer, first: int, width: int) -> Buffer:
        """Columns ``first`` up to ``first + width`` of x, as a buffer of its own."""
        if not 0 <= first < first + width <= x.width:
            raise ValueError(f"columns {first} to {first + width} of {x.name}, which has {x.width}")
        out = self._buffer("slice", width, x.count)
        arguments = {"x": x, "x_stride": x.row_bytes, "first": first, "out": out, "width": width}
        self._elementwise(elementwise.copy_columns, arguments, [x], out)
        return out

    def activation(self, x: Buffer, kind: str) -> Buffer:
        """A function of each number of x; ``kind``: one of ``gumba.kernels.activations.KINDS``."""
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
        arguments = {"gate": gate, "up": up, "out": out, "alpha": alpha, "limit": limit}
        self._elementwise(activations.swiglu_oai(self.isa), arguments, [gate, up], out)
        return out

    def softcap(self, x: Buffer, cap: float) -> Buffer:
        """cap * tanh(x / cap)."""
        out = self._buffer("softcap", x.width, x.count)
        self._elementwise(activations.softcap(self.isa), {"x": x, "out": out, "cap": cap, "inverse": 1 / cap}, [x], out)
        return out

    def rope(self, x: Buffer, n_heads: int, head_dim: int, rope_dim: int, table: int, neox: bool = False) -> Buffer:
        """Turn the heads of x by their positions, in place. ``table``: a constant made by ``gumba.kernels.rope.rope_table``."""
        arguments = {"x": x, "stride": x.row_bytes, "n_heads": n_heads, "head_dim": head_dim, "rope_dim": rope_dim,
                     "table": table, "neox": int(neox)}  # fmt: skip
        self.append(rope.rope, arguments, [x], [x], ("tokens",))
        return x

    def attention(
        self, q: Buffer, k: Buffer | None, v: Buffer | None, kv: Sequence[KVLayout], layer: int, scale: float, *,
        window: int = 0, softcap: float = 0.0, sinks: np.ndarray | None = None, slopes: np.ndarray | None = None,
        causal: bool = True,
    ) -> Buffer:  # fmt: skip
        """Store k and v in the layer's cache, then attend: softmax(scale q k) v, float32 [n_tokens, n_heads * v_dim].

        A token sees itself and what comes before it; if not ``causal``, all tokens that its sequence has after this step. k and
        v None: the layer's cache holds what an earlier attention of this step has stored. ``window``: only what is less than so
        many tokens away (0: no limit); ``softcap``: scores become cap * tanh(score / cap); ``sinks``: float32 [n_heads], logits
        that take part in the softmax's sum only; ``slopes``: float32 [n_heads], the distance times this is taken from a score
        (ALiBi).
        """
        at = kv[layer]
        group = q.width // max(1, at.n_kv_heads * at.head_dim)
        n_heads = at.n_kv_heads * group
        _check_shapes(q, k, v, at, window, stored=at.pages in self._caches)
        pages = page_formats()[at.kv_type]
        variant = att.Variant(not causal, window > 0, softcap > 0, slopes is not None, sinks is not None)
        of_heads = {name: self._row(values * np.float32(att.LOG2_E), n_heads, 0.0)
                    for name, values in (("sinks", sinks), ("slopes", slopes)) if values is not None}  # fmt: skip
        geometry = att.geometry(pages, at.n_kv_heads, group, at.head_dim, at.v_dim, k_page=at.k_page, v_page=at.v_page,
                                k_head=at.k_head, v_head=at.v_head, v_offset=at.v_offset, extent_pages=at.extent_pages,
                                extent_bytes=at.extent_bytes, window=window, **of_heads)  # fmt: skip
        self._keep.append(geometry)
        self.most_grouped, self.most_kv_heads = max(self.most_grouped, group), max(self.most_kv_heads, at.n_kv_heads)
        place: dict[str, int | float | Buffer] = {
            "memory": at.pages, "geo": int(geometry.ctypes.data), "scratch": -1, "scratch_bytes": -1,
        }  # fmt: skip
        cache = self._caches.setdefault(at.pages, Buffer("kv", 0, 0, N_TOKENS))
        self._scratch_bytes = max(self._scratch_bytes, att.scratch_bytes(pages, group, at.head_dim, at.v_dim))
        if k is not None and v is not None:
            self.append(
                att.store_kv(self.isa, pages),
                place | {"k": k, "v": v, "k_stride": k.row_bytes, "v_stride": v.row_bytes},
                [k, v], [cache], ("tokens",),
            )  # fmt: skip
        partials = att.partials_bytes(group, pages.v_row(at.v_dim), self.n_threads, self.max_context)
        self._partials_bytes = max(self._partials_bytes, partials)
        out = self._buffer("attention", n_heads * at.v_dim)
        unit = 1 / softcap if softcap > 0 else att.LOG2_E  # scores are made for tanh, or for powers of two
        self.append(
            att.attention(self.isa, pages, variant),
            place | {"q": q, "out": out, "stride": q.row_bytes, "out_stride": out.row_bytes, "scale": scale * unit,
                     "cap": softcap * att.LOG2_E, "partials": -1},
            [q, cache], [out], ("tiles",),
            work=Work(
                kv_bytes=at.n_kv_heads * (at.k_page + at.v_page) // PAGE_TOKENS,
                pair_ops=2 * n_heads * (at.head_dim + at.v_dim) * (1 if causal else 2),
                kind=pages.arithmetic(self.isa),
                window=window,
            ),
        )  # fmt: skip
        return out

    def short_convolution(self, x: Buffer, weight: np.ndarray, kv: Sequence[KVLayout], layer: int) -> Buffer:
        """The sum over a token and those before it of x times a column of ``weight``, float32 [width, n_taps], the last its own.

        The layer's pages keep x; they must hold rows of its width (``KVShape.of_rows``).
        """
        at, n_blocks = kv[layer], -(-x.width // q8.COLUMNS)
        rows = (1, 0, n_blocks * q8.COLUMNS, "f32")
        if (at.n_kv_heads, at.head_dim, at.v_dim, at.kv_type) != rows or len(weight) != x.width or x.count != N_TOKENS:
            raise ValueError(
                f"{x.name} has {x.width} columns, weights {weight.shape}; pages of {at.v_dim} {at.kv_type}"
            )
        taps = np.zeros((weight.shape[1], n_blocks * q8.COLUMNS), np.float32)
        taps[:, : x.width] = weight.T
        place = {"memory": at.pages + at.v_offset, "page_bytes": at.v_page, "extent_pages": at.extent_pages,
                 "extent_bytes": at.extent_bytes, "row_bytes": 4 * at.v_dim, "n_blocks": n_blocks}  # fmt: skip
        cache = self._caches.setdefault(at.pages, Buffer("kv", 0, 0, N_TOKENS))
        self.append(conv.store_rows, place | {"x": x, "stride": x.row_bytes}, [x], [cache], ("tokens",))
        out = self._buffer("short_conv", x.width)
        self.append(
            conv.short_conv,
            place | {"weight": self.constant(taps, pad=False), "weight_stride": taps.strides[0], "n_taps": len(taps),
                     "out": out, "stride": out.row_bytes},
            [cache], [out], ("tile blocks", n_blocks), [cache],
        )  # fmt: skip
        return out

    def select_outputs(self, x: Buffer) -> Buffer:
        """Only the rows whose logits are wanted."""
        out = self._buffer("select", x.width, N_OUTPUTS)
        self._elementwise(elementwise.select_rows, {"x": x, "out": out}, [x], out)
        return out

    def constant(self, values: np.ndarray, pad: bool = True) -> int:
        """Address of float32 numbers that live as long as the program; padded with zeros like a buffer's row."""
        values = np.ascontiguousarray(values, np.float32).ravel()
        size = -(-len(values) // ROW_ALIGN) * ROW_ALIGN if pad else len(values)
        kept = aligned_empty(4 * size).view(np.float32)
        kept[: len(values)], kept[len(values) :] = values, 0
        self._keep.append(kept)
        return int(kept.ctypes.data)

    # How it becomes records ----------------------------------------------------------------------------------------

    def _buffer(self, name: str, width: int, count: int = N_TOKENS) -> Buffer:
        return Buffer(f"{name}{len(self.operations)}", width, -(-width // ROW_ALIGN) * ROW_ALIGN * 4, count)

    def hold(self, *arrays: np.ndarray) -> int:
        """Let arrays live as long as the program; address of the last."""
        self._keep += arrays
        return int(arrays[-1].ctypes.data)

    def append(
        self, kernel: Kernel, arguments: dict[str, int | float | Buffer], reads: Sequence[Buffer],
        writes: Sequence[Buffer], split: tuple[object, ...], gathers: Sequence[Buffer] = (), work: Work = Work(),
    ) -> None:  # fmt: skip
        moved = sum(b.row_bytes for b in [*reads, *writes])
        work = replace(work, row_bytes=work.row_bytes + moved)
        self.operations.append(Operation(kernel, arguments, reads, writes, split, gathers, work=work))

    def _row(self, values: np.ndarray | None, width: int, default: float) -> int:
        """Address of one row of numbers; of ``default`` where there are none."""
        if values is None:
            if (width, default) not in self._plain_rows:
                self._plain_rows[width, default] = self.constant(np.full(width, default, np.float32))
            return self._plain_rows[width, default]
        if np.size(values) != width:
            raise ValueError(f"{np.size(values)} numbers for {width} columns")
        return self.constant(values)

    def _combine(self, kind: str, x: Buffer, y: Buffer | int, y_stride: int, reads: Sequence[Buffer]) -> Buffer:
        if isinstance(y, Buffer):
            _check_alike(x, y)
        out = self._buffer(kind, x.width, x.count)
        self._elementwise(elementwise.combine(kind), {"x": x, "y": y, "y_stride": y_stride, "out": out}, reads, out)
        return out

    def _elementwise(
        self, kernel: Kernel, arguments: dict[str, int | float | Buffer], reads: Sequence[Buffer], out: Buffer
    ) -> None:
        n_blocks = -(-out.width // q8.COLUMNS)
        arguments = arguments | {"count": out.count, "stride": out.row_bytes, "n_blocks": n_blocks}
        gathers = reads if kernel in _GATHERING else ()
        self.append(kernel, arguments, reads, [out], ("blocks", out.count, n_blocks), gathers)

    def blocks(self, x: Buffer) -> Buffer:
        """x as int8 blocks: made once, shared by every product that reads x."""
        if x.blocks is None:
            n_blocks = x.width // q8.COLUMNS
            x.blocks = Buffer(f"{x.name}.q8", x.width, n_blocks * q8.BYTES, x.count)
            arguments = {"count": x.count, "x": x, "x_stride": x.row_bytes, "out": x.blocks,
                         "out_stride": x.blocks.row_bytes, "n_blocks": n_blocks}  # fmt: skip
            self.append(q8.quantize_q8, arguments, [x], [x.blocks], ("blocks", x.count, n_blocks))
        return x.blocks

    def _place_barriers(self) -> list[bool]:
        """Whether a barrier follows each operation; numbers the phases between barriers."""
        after = [False] * len(self.operations)
        begin, phase = 0, 0
        for i, op in enumerate(self.operations):
            if any(op.waits_for(earlier) for earlier in self.operations[begin:i]):
                after[i - 1] = True
                begin, phase = i, phase + 1
            op.phase = phase
        if after:
            after[-1] = True
        return after

    def _place_buffers(self, keep: Sequence[Buffer]) -> np.ndarray:
        """One arena for all buffers: first fit, sharing memory between buffers that are never alive in the same phase."""
        buffers: list[Buffer] = []
        for op in self.operations:
            for b in [*op.reads, *op.writes]:
                if b.first_use < 0:
                    b.first_use = op.phase
                    buffers.append(b)
                b.last_use = op.phase
        for b in keep:
            b.last_use = self.operations[-1].phase
        placed: list[tuple[int, int, Buffer]] = []
        for b in sorted(buffers, key=lambda b: -b.row_bytes):
            size = -(-b.row_bytes * self.max_rows // 64) * 64  # a multiple of a cache line
            start = 0
            for low, high, other in sorted(placed, key=lambda p: p[0]):
                if other.last_use < b.first_use or b.last_use < other.first_use:
                    continue
                if start + size <= low:
                    break
                start = max(start, high)
            placed.append((start, start + size, b))
        total = max((high for _, high, _ in placed), default=0)
        try:
            arena = aligned_empty(total + 64)
        except MemoryError:
            raise ResourceError(f"the working buffers need {total >> 20} MB of memory") from None
        for low, _, b in placed:
            b.address = int(arena.ctypes.data) + low
        return arena

    def rows(self, buffer: Buffer) -> np.ndarray:
        """A view of a finished program's buffer, float32 [max_rows, padded width]."""
        start = buffer.address - int(self._arena.ctypes.data)
        size = buffer.row_bytes * self.max_rows
        return self._arena[start : start + size].view(np.float32).reshape(self.max_rows, -1)

    def finish(self, outputs: Sequence[Buffer]) -> np.ndarray:
        """Settle barriers and memory; the records, int64 [n, RECORD_WORDS]. ``outputs`` stay readable after a step."""
        barriers = self._place_barriers()
        self._arena = self._place_buffers(outputs)
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
        self._place_cuts(records)
        return records

    def _place_cuts(self, records: np.ndarray) -> None:
        """How finely the shares of each phase are cut, where all its operations allow it.

        In a small step only as far as a piece still reads PIECE_BYTES of weights: a new run of memory costs a third of a
        microsecond until it streams.
        """
        for phase in range(self.operations[-1].phase + 1 if self.operations else 0):
            members = [i for i, op in enumerate(self.operations) if op.phase == phase]
            if all(self.operations[i].kernel.divisible for i in members):
                weights = sum(self.operations[i].work.weights for i in members)
                small = min(MAX_PIECES, max(1, weights // (self.n_threads * PIECE_BYTES)))
                records[members[0], CUT] = cut(1 << small.bit_length() - 1, MAX_PIECES)
