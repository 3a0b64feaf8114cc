"""A program that computes nothing: it checks the shapes of every operation's arguments, and records the operation.

The second implementation of ``gumba.backends.operations.Operations``, and the smallest one: what a backend must accept, and
which result each operation has. ``support.recording_backend`` is what stands around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gumba.backends.base import ACTIVATIONS, ExpertMatrices, RopeTable, Streams
from gumba.backends.cache_shapes import (
    DELTA_DIM_MULTIPLE,
    MAX_CONV_TAPS,
    ConvState,
    DeltaState,
    KVShape,
    StateShape,
)
from gumba.quants import BlockFormat


@dataclass(frozen=True)
class RecordedMatrix:
    """A matrix without weights."""

    format: BlockFormat
    rows: int
    columns: int


@dataclass(frozen=True, eq=False)
class RecordedBuffer:
    """A buffer without memory."""

    name: str
    width: int
    of_outputs: bool


@dataclass(frozen=True)
class Recorded:
    """An operation: what it reads, in order, and what it gives."""

    name: str
    reads: tuple[RecordedBuffer, ...]
    result: RecordedBuffer | None
    options: dict[str, Any]


def expect(fits: bool, what: str) -> None:
    """ValueError where arguments do not fit."""
    if not fits:
        raise ValueError(what)


def is_row(values: np.ndarray | None, *shape: int) -> bool:
    """Whether numbers are absent, or float32 of that shape."""
    return values is None or (values.dtype == np.float32 and values.shape == shape)


@dataclass
class RecordingProgram:
    """``layers``: what each layer keeps of a token; ``states``: the parts of each layer's state."""

    max_context: int
    layers: Sequence[KVShape] = ()
    states: Sequence[Sequence[StateShape]] = ()
    operations: list[Recorded] = field(default_factory=list)
    stored: set[int] = field(default_factory=set)
    tables: dict[RopeTable, int] = field(default_factory=dict)  # elements of a head that turn

    def _record(
        self, name: str, width: int, *reads: RecordedBuffer, of_outputs: bool | None = None, **options: Any
    ) -> RecordedBuffer:
        rows = {x.of_outputs for x in reads}
        expect(len(rows) <= 1 or name in ("attention",), f"{name}: buffers of other rows")
        of_outputs = any(rows) if of_outputs is None else of_outputs
        result = RecordedBuffer(f"{name}{len(self.operations)}", width, of_outputs)
        self.operations.append(Recorded(name, reads, result, options))
        return result

    def _in_place(self, name: str, x: RecordedBuffer, **options: Any) -> RecordedBuffer:
        self.operations.append(Recorded(name, (x,), x, options))
        return x

    # Products

    def embed(self, w: RecordedMatrix) -> RecordedBuffer:
        return self._record("embed", w.columns, of_outputs=False, rows=w.rows)

    def matmul(
        self,
        w: RecordedMatrix,
        x: RecordedBuffer,
        residual: RecordedBuffer | None = None,
        bias: np.ndarray | None = None,
    ) -> RecordedBuffer:
        expect(x.width == w.columns, f"{x.width} columns for a matrix of {w.columns}")
        expect(residual is None or residual.width == w.rows, "a residual of another width")
        expect(is_row(bias, w.rows), "a bias of another width")
        return self._record("matmul", w.rows, x, *([] if residual is None else [residual]), bias=bias is not None)

    def head_matmul(self, w: Sequence[RecordedMatrix], x: RecordedBuffer) -> RecordedBuffer:
        expect(len({(m.rows, m.columns, m.format) for m in w}) == 1, "matrices of several shapes")
        expect(x.width == len(w) * w[0].columns, f"{x.width} columns for {len(w)} matrices of {w[0].columns}")
        return self._record("head_matmul", len(w) * w[0].rows, x)

    def moe(
        self, x: RecordedBuffer, logits: RecordedBuffer, gate: ExpertMatrices[RecordedMatrix] | None,
        up: ExpertMatrices[RecordedMatrix], down: ExpertMatrices[RecordedMatrix], n_used: int,
        kind: str | Callable[[RecordedBuffer, RecordedBuffer], RecordedBuffer], *, weights: str = "softmax",
        normalized: bool = False, bias: np.ndarray | None = None, scale: float = 1.0, factors: np.ndarray | None = None,
        groups: tuple[int, int] = (1, 1), weigh_inputs: bool = False,
    ) -> RecordedBuffer:  # fmt: skip
        n_experts, inner = len(up.matrices), up.matrices[0].rows
        expect(logits.width == n_experts and 1 <= n_used <= n_experts, f"{logits.width} scores of {n_experts} experts")
        for part, shape in ((gate, (inner, x.width)), (up, (inner, x.width)), (down, (down.matrices[0].rows, inner))):
            if part is not None:
                expect(all((m.rows, m.columns) == shape for m in part.matrices), f"experts' matrices: not {shape}")
                expect(len(part.matrices) == n_experts, "another number of experts")
                expect(is_row(part.bias, n_experts, shape[0]), "experts' biases of another shape")
        expect(weights in ("softmax", "softmax_chosen", "sigmoid"), f"weights {weights!r}")
        expect(is_row(bias, n_experts) and is_row(factors, n_experts), "numbers for another number of experts")
        expect(n_experts % groups[0] == 0 and n_experts // groups[0] * groups[1] >= n_used, f"groups {groups}")
        inputs = [self._record("expert_product", inner, x) for part in (gate, up) if part is not None]
        if isinstance(kind, str):
            expect(kind in ACTIVATIONS, f"activation {kind!r}")
        else:
            expect(gate is not None, "without a gate, the activation is named")
            expect(kind(inputs[0], inputs[-1]).width == inner, "an activation that changes the width")
        return self._record(
            "moe", down.matrices[0].rows, x, logits, n_used=n_used, weights=weights, normalized=normalized, scale=scale,
            groups=groups, weigh_inputs=weigh_inputs,
        )  # fmt: skip

    # Norms

    def rms_norm(self, x: RecordedBuffer, weight: np.ndarray | None, eps: float) -> RecordedBuffer:
        expect(weight is None or weight.size == x.width, "a weight of another width")
        return self._record("rms_norm", x.width, x, eps=eps)

    def layer_norm(
        self, x: RecordedBuffer, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
    ) -> RecordedBuffer:
        expect(is_row(weight, x.width) and is_row(bias, x.width), "a weight or bias of another width")
        return self._record("layer_norm", x.width, x, eps=eps)

    def head_norm(
        self,
        x: RecordedBuffer,
        weight: np.ndarray | None,
        eps: float,
        n_heads: int,
        head_dim: int,
        centred: bool = False,
    ) -> RecordedBuffer:
        expect(x.width == n_heads * head_dim, f"{n_heads} heads of {head_dim}: {x.width} columns")
        expect(weight is None or weight.size in (head_dim, x.width), "a weight of another width")
        return self._record("head_norm", x.width, x, eps=eps, centred=centred)

    # Positions and attention

    def rope_table(
        self, inverse_frequencies: np.ndarray, magnitude: float, neox: bool, factors: np.ndarray | None = None
    ) -> RopeTable:
        expect(inverse_frequencies.ndim == 1, "frequencies are one row")
        expect(is_row(factors, self.max_context), "factors for other positions")
        table = RopeTable(len(self.tables) + 1)
        self.tables[table] = 2 * len(inverse_frequencies)
        return table

    def rope(
        self, x: RecordedBuffer, n_heads: int, head_dim: int, rope_dim: int, table: RopeTable, neox: bool = False
    ) -> RecordedBuffer:
        expect(x.width == n_heads * head_dim and rope_dim <= head_dim, f"{n_heads} heads of {head_dim}")
        expect(self.tables[table] == rope_dim, f"a table of {self.tables[table]} for {rope_dim} elements")
        return self._in_place("rope", x, neox=neox)

    def attention(
        self, q: RecordedBuffer, k: RecordedBuffer | None, v: RecordedBuffer | None, layer: int, scale: float, *,
        window: int = 0, softcap: float = 0.0, sinks: np.ndarray | None = None, slopes: np.ndarray | None = None,
        causal: bool = True, chunk: int = 0, bias: np.ndarray | None = None, part: Literal["all", "source", "answer"] = "all",
    ) -> RecordedBuffer:  # fmt: skip
        shape = self.layers[layer]
        n_kv = shape.n_kv_heads * shape.head_dim
        expect(n_kv > 0 and q.width % n_kv == 0, f"queries of {q.width} columns, keys of {n_kv}")
        n_heads = q.width // shape.head_dim
        if k is not None and v is not None:
            expect(not q.of_outputs, "queries of outputs alone with keys of all tokens")
            self.store_kv(k, v, layer)
        expect(k is None or v is not None, "keys without values")
        expect(layer in self.stored or part == "source", f"layer {layer} has nothing stored")
        expect(not shape.window or 0 < max(window, chunk) <= shape.window, f"window {window}: pages for {shape.window}")
        expect(is_row(sinks, n_heads) and is_row(slopes, n_heads), "numbers for other heads")
        expect(bias is None or (bias.ndim == 2 and len(bias) == n_heads and bias.shape[1] % 2 == 1), "biases")
        expect(sum((window > 0, chunk > 0, part != "all")) <= 1, "limits that do not go together")
        return self._record(
            "attention", n_heads * shape.v_dim, *(x for x in (q, k, v) if x is not None), layer=layer, scale=scale,
            window=window, softcap=softcap, causal=causal, chunk=chunk, part=part, of_outputs=q.of_outputs,
        )  # fmt: skip

    def store_kv(self, k: RecordedBuffer, v: RecordedBuffer, layer: int) -> None:
        shape = self.layers[layer]
        wanted = shape.n_kv_heads * shape.head_dim, shape.n_kv_heads * shape.v_dim
        expect((k.width, v.width) == wanted, f"keys and values of {k.width} and {v.width} columns: expected {wanted}")
        expect(not k.of_outputs and not v.of_outputs, "keys and values of some tokens only")
        self.stored.add(layer)
        self.operations.append(Recorded("store_kv", (k, v), None, {"layer": layer}))

    # Activations and sums

    def activation(self, x: RecordedBuffer, kind: str) -> RecordedBuffer:
        expect(kind in ACTIVATIONS, f"activation {kind!r}")
        return self._record("activation", x.width, x, kind=kind)

    def gated(self, gate: RecordedBuffer, up: RecordedBuffer, kind: str) -> RecordedBuffer:
        expect(kind in ACTIVATIONS, f"activation {kind!r}")
        return self._pair("gated", gate, up, kind=kind)

    def swiglu(self, gate: RecordedBuffer, up: RecordedBuffer) -> RecordedBuffer:
        return self.gated(gate, up, "silu")

    def swiglu_oai(self, gate: RecordedBuffer, up: RecordedBuffer, alpha: float, limit: float) -> RecordedBuffer:
        return self._pair("swiglu_oai", gate, up, alpha=alpha, limit=limit)

    def softcap(self, x: RecordedBuffer, cap: float) -> RecordedBuffer:
        return self._record("softcap", x.width, x, cap=cap)

    def add(self, x: RecordedBuffer, y: RecordedBuffer) -> RecordedBuffer:
        return self._pair("add", x, y)

    def multiply(self, x: RecordedBuffer, y: RecordedBuffer) -> RecordedBuffer:
        return self._pair("multiply", x, y)

    def _pair(self, name: str, x: RecordedBuffer, y: RecordedBuffer, **options: Any) -> RecordedBuffer:
        expect(x.width == y.width, f"{name}: {x.width} and {y.width} columns")
        return self._record(name, x.width, x, y, **options)

    def add_row(self, x: RecordedBuffer, row: np.ndarray) -> RecordedBuffer:
        expect(row.size == x.width, "a row of another width")
        return self._record("add_row", x.width, x)

    def multiply_row(self, x: RecordedBuffer, row: np.ndarray) -> RecordedBuffer:
        expect(row.size == x.width, "a row of another width")
        return self._record("multiply_row", x.width, x)

    def scale(self, x: RecordedBuffer, factor: float) -> RecordedBuffer:
        return self._record("scale", x.width, x, factor=factor)

    def scale_rows(self, x: RecordedBuffer, factors: RecordedBuffer) -> RecordedBuffer:
        expect(factors.width == 1, "one factor for each row")
        return self._record("scale_rows", x.width, x, factors)

    # Tables by token

    def add_positions(self, x: RecordedBuffer, table: np.ndarray) -> RecordedBuffer:
        expect(len(table) >= self.max_context and table.shape[1:] == (x.width,), f"positions {table.shape}")
        expect(not x.of_outputs, "rows of some tokens only")
        return self._record("add_positions", x.width, x)

    def add_types(self, x: RecordedBuffer, table: np.ndarray, n_vocab: int) -> RecordedBuffer:
        expect(len(table) > 0 and table.shape[1:] == (x.width,) and n_vocab > 0, f"types {table.shape}")
        expect(not x.of_outputs, "rows of some tokens only")
        return self._record("add_types", x.width, x)

    # Rows and columns

    def slice(self, x: RecordedBuffer, first: int, width: int) -> RecordedBuffer:
        expect(0 <= first < first + width <= x.width, f"columns {first} to {first + width} of {x.width}")
        return self._record("slice", width, x, first=first)

    def join_heads(self, n_heads: int, parts: Sequence[tuple[RecordedBuffer, int, int, int]]) -> RecordedBuffer:
        for x, first, columns, step in parts:
            expect(0 <= first < first + (n_heads - 1) * step + columns <= x.width, f"heads of {x.width} columns")
        width = n_heads * sum(columns for _, _, columns, _ in parts)
        return self._record("join_heads", width, *(x for x, _, _, _ in parts), n_heads=n_heads)

    def select_outputs(self, x: RecordedBuffer) -> RecordedBuffer:
        return x if x.of_outputs else self._record("select_outputs", x.width, x, of_outputs=True)

    def text_means(self, x: RecordedBuffer) -> RecordedBuffer:
        expect(not x.of_outputs, "rows of some tokens only")
        return self._record("text_means", x.width, x)

    # Layers with a state

    def causal_conv(
        self, x: RecordedBuffer, weight: np.ndarray, layer: int, part: int = 0, *, silu: bool = False
    ) -> RecordedBuffer:
        n_taps = weight.shape[1]
        expect(weight.shape == (x.width, n_taps) and n_taps <= MAX_CONV_TAPS, f"weights {weight.shape}")
        expect(self.states[layer][part] == ConvState(x.width, n_taps), "a state of another shape")
        expect(not x.of_outputs, "rows of some tokens only")
        return self._in_place("causal_conv", x, layer=layer, silu=silu)

    def decay(self, x: RecordedBuffer, bias: np.ndarray, rate: np.ndarray) -> RecordedBuffer:
        expect(is_row(bias, x.width) and is_row(rate, x.width), "rows of another width")
        return self._record("decay", x.width, x)

    def delta_rule(
        self,
        qk: RecordedBuffer,
        v: RecordedBuffer,
        decays: RecordedBuffer,
        betas: RecordedBuffer,
        dim: int,
        layer: int,
        part: int,
    ) -> RecordedBuffer:
        n_heads = v.width // dim
        expect(dim % DELTA_DIM_MULTIPLE == 0 and v.width % dim == 0 and qk.width % (2 * dim) == 0, f"heads of {dim}")
        expect(n_heads % (qk.width // 2 // dim) == 0, "value heads that key heads do not divide")
        expect((decays.width, betas.width) == (n_heads, n_heads), "gates for other heads")
        expect(self.states[layer][part] == DeltaState(n_heads, dim), "a state of another shape")
        return self._record("delta_rule", v.width, qk, v, decays, betas, layer=layer)

    # Several streams beside each other

    def stack_streams(self, parts: Sequence[RecordedBuffer]) -> Streams[RecordedBuffer]:
        width = parts[0].width
        expect(all(x.width == width for x in parts), "streams of other widths")
        return Streams(self._record("stack_streams", len(parts) * width, *parts), len(parts), width)

    def stream(self, x: Streams[RecordedBuffer], i: int) -> RecordedBuffer:
        return self.slice(x.buffer, i * x.stride, x.width)

    def select_output_streams(self, x: Streams[RecordedBuffer]) -> Streams[RecordedBuffer]:
        return Streams(self.select_outputs(x.buffer), x.n, x.width)

    def mix_streams(self, x: Streams[RecordedBuffer], coefficients: RecordedBuffer) -> Streams[RecordedBuffer]:
        expect(coefficients.width == x.n * x.n, f"{coefficients.width} coefficients for {x.n} streams")
        return Streams(self._record("mix_streams", x.buffer.width, x.buffer, coefficients), x.n, x.width)

    def add_to_streams(
        self, x: Streams[RecordedBuffer], y: RecordedBuffer, factors: RecordedBuffer | Sequence[float]
    ) -> Streams[RecordedBuffer]:
        n_factors = factors.width if isinstance(factors, RecordedBuffer) else len(factors)
        expect(y.width == x.width and n_factors == x.n, f"{n_factors} factors for {x.n} streams")
        reads = [x.buffer, y, *([factors] if isinstance(factors, RecordedBuffer) else [])]
        return Streams(self._record("add_to_streams", x.buffer.width, *reads), x.n, x.width)

    def match_magnitude(self, x: RecordedBuffer, y: RecordedBuffer, least: float) -> RecordedBuffer:
        return self._pair("match_magnitude", x, y, least=least)

    def keep_greatest(self, x: RecordedBuffer, factor: float) -> RecordedBuffer:
        return self._record("keep_greatest", x.width, x, factor=factor)


if TYPE_CHECKING:
    from gumba.backends.base import Operations

    _fits: Operations[RecordedBuffer, RecordedMatrix] = RecordingProgram(1)
