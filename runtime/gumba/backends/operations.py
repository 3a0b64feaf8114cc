"""The operations of a program: the interface that architectures are written in and that every backend implements.

An architecture's ``forward`` calls the operations of a ``Program`` once, at load. Each call appends one operation and returns
the buffer that it fills; nothing is computed yet. The backend decides what an operation becomes (a record that threads process,
a kernel launch in a graph), where buffers are, which operations it fuses, and when one waits for another.

A step runs the program for the tokens of one or more sequences. Its size is unknown when the program is written, so a buffer
has one row for each token of the step (``n_tokens`` rows) or, after ``select_outputs``, one for each token that gets logits
(``n_outputs`` rows). All buffers are float32. A row must not depend on the other rows of a step: a token's bits are the same in
every batch and every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NewType, Protocol, TypeAlias, TypeVar

import numpy as np

#: Names that ``Operations.activation`` and ``Operations.gated`` take: x sigmoid(x); x Phi(x), exact; the same by tanh; by
#: x sigmoid(1.702 x); max(0, x); max(0, x)^2; 1 / (1 + exp(-x)); tanh(x).
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2", "sigmoid", "tanh")

#: A table of cosines and sines by position, as a handle that only the program that made it can read.
RopeTable = NewType("RopeTable", int)

#: How ``Operations.moe`` turns a router's scores into weights.
ExpertWeights: TypeAlias = Literal["softmax", "softmax_chosen", "sigmoid"]


# What operations work on ------------------------------------------------------------------------------------------------


class Buffer(Protocol):
    """The result of an operation: float32 [n_tokens, width], or [n_outputs, width] if ``of_outputs``.

    Rows may be padded: only the first ``width`` columns of a row are defined.
    """

    @property
    def name(self) -> str:
        """For error messages."""
        ...

    @property
    def width(self) -> int:
        """Columns."""
        ...

    @property
    def of_outputs(self) -> bool:
        """Whether it has rows only for the tokens that get logits."""
        ...


class Matrix(Protocol):
    """A weight matrix [rows, columns] in a block format, packed for the backend's kernels; read-only."""

    @property
    def rows(self) -> int:
        """Number of outputs of a product."""
        ...

    @property
    def columns(self) -> int:
        """Number of inputs of a product."""
        ...


BufferT = TypeVar("BufferT", bound=Buffer)
MatrixT = TypeVar("MatrixT", bound=Matrix)


@dataclass(frozen=True)
class ExpertMatrices(Generic[MatrixT]):
    """One matrix for each expert, all of one shape and format; ``bias``: float32 [n_experts, rows], added to products."""

    matrices: Sequence[MatrixT]
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Streams(Generic[BufferT]):
    """``n`` rows of ``width`` columns for each token, side by side in the rows of ``buffer`` (AltUp, Baykal et al. 2023)."""

    buffer: BufferT
    n: int
    width: int

    @property
    def stride(self) -> int:
        """Columns from one stream to the next, padding included."""
        return self.buffer.width // self.n


#: Columns of several buffers that ``join_heads`` puts together: buffer, first column of the first head, columns of each head,
#: columns from one head to the next (0: all heads get the same).
HeadPart: TypeAlias = "tuple[BufferT, int, int, int]"


# Operations -------------------------------------------------------------------------------------------------------------


class Operations(Protocol[BufferT, MatrixT]):
    """The operations of a program. ``n``: rows of the argument, all tokens of a step or the outputs; the result has as many.

    Arguments that are NumPy arrays are constants of the program. They are copied, so that the caller may change them.
    Every operation raises ValueError for arguments that do not fit each other.
    """

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of a sequence: positions are below it."""
        ...

    # Products

    def embed(self, w: MatrixT) -> BufferT:
        """Rows of ``w`` for the step's token ids, dequantized: [n_tokens, w.columns]. The row of an id is id % ``w.rows``."""
        ...

    def matmul(
        self, w: MatrixT, x: BufferT, residual: BufferT | None = None, bias: np.ndarray | None = None
    ) -> BufferT:
        """x times w transposed, plus ``residual`` [n, w.rows], plus ``bias`` float32 [w.rows]: [n, w.rows].

        x: [n, w.columns]. Where the block format pairs with int8 activations, rows of x are quantized first.
        """
        ...

    def head_matmul(self, w: Sequence[MatrixT], x: BufferT) -> BufferT:
        """Each head of x times its own matrix, transposed. x: [n, n_heads * columns]; result: [n, n_heads * rows].

        ``w``: one matrix for each head, all of one shape and format.
        """
        ...

    def moe(
        self, x: BufferT, logits: BufferT, gate: ExpertMatrices[MatrixT] | None, up: ExpertMatrices[MatrixT],
        down: ExpertMatrices[MatrixT], n_used: int, kind: str | Callable[[BufferT, BufferT], BufferT], *,
        weights: str = "softmax", normalized: bool = False, bias: np.ndarray | None = None, scale: float = 1.0,
        factors: np.ndarray | None = None, groups: tuple[int, int] = (1, 1), weigh_inputs: bool = False,
    ) -> BufferT:  # fmt: skip
        """Mixture of experts: the weighted sum of the outputs of each token's ``n_used`` best experts, [n, down's rows].

        An expert computes down(kind(gate(x)) * up(x)), or down(kind(up(x))) without ``gate``. ``logits``: the router's scores,
        [n, n_experts]; the best are chosen, of equal ones the one of lowest index first. ``kind``: an activation's name, or a
        function that writes the operations from gate(x) and up(x) to one buffer.

        ``weights``: an ``ExpertWeights``: softmax of all scores, softmax of the chosen ones' only, or sigmoid of each;
        ``normalized``: weights are divided by their sum; ``bias``: float32 [n_experts], added to scores (for "sigmoid": to
        their sigmoids) to choose by, not to weigh; ``scale``: factor of the weights; ``factors``: float32 [n_experts],
        another factor, of each expert's weight; ``groups``: number of groups of experts, and how many of them, the best, take
        part (DeepSeek-AI 2024); ``weigh_inputs``: experts get x times their weight, and their outputs are added unweighted.
        """
        ...

    # Norms

    def rms_norm(self, x: BufferT, weight: np.ndarray | None, eps: float) -> BufferT:
        """x / sqrt(mean(x^2) + eps) * weight, by row: [n, width]. ``weight``: float32 [width]; None: ones."""
        ...

    def layer_norm(self, x: BufferT, weight: np.ndarray | None, bias: np.ndarray | None, eps: float) -> BufferT:
        """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, by row; both float32 [width], None: ones and zeros."""
        ...

    def head_norm(
        self, x: BufferT, weight: np.ndarray | None, eps: float, n_heads: int, head_dim: int, centred: bool = False
    ) -> BufferT:
        """The RMS norm of each head (``centred``: the layer norm). x: [n, n_heads * head_dim].

        ``weight``: float32 [head_dim], the same for all heads, or [n_heads * head_dim]; None: ones.
        """
        ...

    # Positions and attention

    def rope_table(
        self, inverse_frequencies: np.ndarray, magnitude: float, neox: bool, factors: np.ndarray | None = None
    ) -> RopeTable:
        """Cosines and sines of position * inverse_frequencies, for all positions below ``max_context``, times ``magnitude``.

        ``inverse_frequencies``: float64 [rope_dim / 2], radians per position; ``neox``: as in ``rope``; ``factors``: float32
        [max_context], another factor, of each position.
        """
        ...

    def rope(
        self, x: BufferT, n_heads: int, head_dim: int, rope_dim: int, table: RopeTable, neox: bool = False
    ) -> BufferT:
        """Rotate the first ``rope_dim`` elements of each head by the token's position (Su et al. 2021). In place: returns x.

        ``neox``: element i turns with i + rope_dim / 2; else 2 i with 2 i + 1.
        """
        ...

    def attention(
        self, q: BufferT, k: BufferT | None, v: BufferT | None, layer: int, scale: float, *,
        window: int = 0, softcap: float = 0.0, sinks: np.ndarray | None = None, slopes: np.ndarray | None = None,
        causal: bool = True, chunk: int = 0, bias: np.ndarray | None = None, part: Literal["all", "source", "answer"] = "all",
    ) -> BufferT:  # fmt: skip
        """Store k and v in the layer's KV pages, then attend: softmax(scale q k) v, [n, n_heads * v_dim].

        q: [n, n_heads * head_dim]; k: [n_tokens, n_kv_heads * head_dim]; v: [n_tokens, n_kv_heads * v_dim], the sizes of the
        layer's ``KVShape``; query head h reads KV head h * n_kv_heads // n_heads. k and v None: the layer's pages hold what an
        earlier attention or ``store_kv`` of this step has stored; then q may have only the rows of the outputs.

        A token attends to itself and all earlier tokens; if not ``causal``, to all tokens that its sequence has after this step.
        ``window``: only to tokens less than this far away (0: no limit); ``chunk``: only within its chunk of this many tokens
        (chunked attention); ``part``: in an encoder-decoder, only to the source, or only to the answer after it.
        ``softcap``: scores become cap * tanh(score / cap); ``sinks``: float32 [n_heads], logits that take part in the
        softmax's sum only; ``slopes``: float32 [n_heads], the distance times this is subtracted from a score (ALiBi);
        ``bias``: float32 [n_heads, 2 * reach + 1], added to the scores of keys from ``reach`` tokens before the query to
        ``reach`` after it, the outermost ones to all beyond (T5).
        """
        ...

    def store_kv(self, k: BufferT, v: BufferT, layer: int) -> None:
        """Store keys and values of the step's tokens in the layer's KV pages; shapes as in ``attention``."""
        ...

    # Activations and sums

    def activation(self, x: BufferT, kind: str) -> BufferT:
        """A function of each number; ``kind``: one of ``ACTIVATIONS``."""
        ...

    def gated(self, gate: BufferT, up: BufferT, kind: str) -> BufferT:
        """kind(gate) * up; ``kind``: one of ``ACTIVATIONS``."""
        ...

    def swiglu(self, gate: BufferT, up: BufferT) -> BufferT:
        """silu(gate) * up."""
        ...

    def swiglu_oai(self, gate: BufferT, up: BufferT, alpha: float, limit: float) -> BufferT:
        """g sigmoid(alpha g) (u + 1), where g is gate, at most ``limit``, and u is up, clipped to +-``limit`` (gpt-oss)."""
        ...

    def softcap(self, x: BufferT, cap: float) -> BufferT:
        """cap * tanh(x / cap)."""
        ...

    def add(self, x: BufferT, y: BufferT) -> BufferT:
        """x + y, of one shape."""
        ...

    def multiply(self, x: BufferT, y: BufferT) -> BufferT:
        """x * y, element by element, of one shape."""
        ...

    def add_row(self, x: BufferT, row: np.ndarray) -> BufferT:
        """x plus ``row``, float32 [width], in every row."""
        ...

    def multiply_row(self, x: BufferT, row: np.ndarray) -> BufferT:
        """x times ``row``, float32 [width], in every row."""
        ...

    def scale(self, x: BufferT, factor: float) -> BufferT:
        """x * factor."""
        ...

    def scale_rows(self, x: BufferT, factors: BufferT) -> BufferT:
        """Every row of x times its own number. ``factors``: [n, 1]."""
        ...

    # Tables by token

    def add_positions(self, x: BufferT, table: np.ndarray) -> BufferT:
        """x plus the row of ``table``, float32 [at least max_context, width], at each token's position."""
        ...

    def add_types(self, x: BufferT, table: np.ndarray, n_vocab: int) -> BufferT:
        """x plus the row of ``table``, float32 [n_types, width], of each token's type: its id // n_vocab."""
        ...

    # Rows and columns

    def slice(self, x: BufferT, first: int, width: int) -> BufferT:
        """Columns ``first`` up to ``first + width`` of x, as a buffer of its own."""
        ...

    def join_heads(self, n_heads: int, parts: Sequence[tuple[BufferT, int, int, int]]) -> BufferT:
        """Rows of ``n_heads`` heads, each joined from columns of several buffers (``HeadPart``)."""
        ...

    def select_outputs(self, x: BufferT) -> BufferT:
        """Only the rows of tokens that get logits, [n_outputs, width]; x itself if it has no others."""
        ...

    def text_means(self, x: BufferT) -> BufferT:
        """x with each sequence's first row replaced by the mean of all its rows. The step must have whole sequences."""
        ...

    # Layers with a state (Yang et al. 2024)

    def causal_conv(self, x: BufferT, weight: np.ndarray, layer: int, part: int = 0, *, silu: bool = False) -> BufferT:
        """Depthwise convolution over a sequence's tokens: sum over taps of x[t - taps + 1 + tap] * weight[:, tap]. In place.

        x: [n_tokens, width]; ``weight``: float32 [width, n_taps], n_taps <= ``MAX_CONV_TAPS``; inputs before the first token
        are zero. ``silu``: the result through that activation. ``part``: which part of the layer's state is its ``ConvState``.
        """
        ...

    def decay(self, x: BufferT, bias: np.ndarray, rate: np.ndarray) -> BufferT:
        """exp(rate * log(1 + exp(x + bias))): [n, width]; ``bias`` and ``rate`` (below 0): float32 [width]."""
        ...

    def delta_rule(
        self, qk: BufferT, v: BufferT, decays: BufferT, betas: BufferT, dim: int, layer: int, part: int
    ) -> BufferT:
        """The gated delta rule: S = decay S; S += beta (v - S k) k^T; then S q, for each head: [n_tokens, n_heads * dim].

        qk: [n_tokens, 2 * n_key_heads * dim], all queries, then all keys; v: [n_tokens, n_heads * dim], value head h with key
        head h % n_key_heads; ``decays``, ``betas``: [n_tokens, n_heads]; ``dim``: a multiple of ``DELTA_DIM_MULTIPLE``.
        ``part``: which part of the layer's state is its ``DeltaState``, zero before a sequence's first token.
        """
        ...

    # Parallel residual streams

    def stack_streams(self, parts: Sequence[BufferT]) -> Streams[BufferT]:
        """Streams from one buffer each, all of one shape."""
        ...

    def stream(self, x: Streams[BufferT], i: int) -> BufferT:
        """Stream ``i``, as a buffer of its own: [n, x.width]."""
        ...

    def select_output_streams(self, x: Streams[BufferT]) -> Streams[BufferT]:
        """As ``select_outputs``, of all streams."""
        ...

    def mix_streams(self, x: Streams[BufferT], coefficients: BufferT) -> Streams[BufferT]:
        """Every stream i plus the sum over j of coefficients[:, i * x.n + j] * stream j. ``coefficients``: [n, x.n * x.n]."""
        ...

    def add_to_streams(self, x: Streams[BufferT], y: BufferT, factors: BufferT | Sequence[float]) -> Streams[BufferT]:
        """Every stream plus y [n, x.width] times the stream's factor: [n, x.n], or x.n numbers for all rows."""
        ...

    def match_magnitude(self, x: BufferT, y: BufferT, least: float) -> BufferT:
        """x * sqrt(mean(y^2) / max(mean(x^2), least)), by row."""
        ...

    def keep_greatest(self, x: BufferT, factor: float) -> BufferT:
        """max(0, x - (mean(x) + factor * deviation(x))), by row."""
        ...


#: A program and experts as an architecture sees them: whichever backend's buffers and matrices.
Program: TypeAlias = Operations[Buffer, Matrix]
Experts: TypeAlias = ExpertMatrices[Matrix]
