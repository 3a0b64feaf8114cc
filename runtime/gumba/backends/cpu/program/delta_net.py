"""Operations of layers that keep a state of their sequence (``kernels.recurrent_state``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gumba.backends.cpu.kernels import causal_conv, delta_net
from gumba.backends.cpu.kernels.record import N_TOKENS
from gumba.backends.cpu.kernels.recurrent_state import COLUMNS
from gumba.backends.cpu.program.elementwise import Elementwise
from gumba.backends.cpu.program.operation import Arguments, Buffer, Work


@dataclass
class Recurrent(Elementwise):
    """The part of a ``Program`` that remembers. ``states``: of each layer, where the parts of its state lie in slot 0."""

    states: Sequence[Sequence[int]] = field(default_factory=list)

    def causal_conv(self, x: Buffer, weight: np.ndarray, layer: int, part: int = 0, *, silu: bool = False) -> Buffer:
        """The sum over a token and those before it of x times a column of ``weight``, float32 [width, n_taps], the last its own.

        ``silu``: through that activation. In place. ``part``: of the layer's state, which of its parts (a ``ConvState``).
        """
        if len(weight) != x.width or x.count != N_TOKENS:
            raise ValueError(f"{x.name} has {x.width} columns, weights {weight.shape}; or it has not all tokens")
        n_blocks, n_taps = -(-x.width // COLUMNS), weight.shape[1]
        taps = np.zeros((n_taps, n_blocks * COLUMNS), np.float32)
        taps[:, : x.width] = weight.T
        arguments: Arguments = {"x": x, "stride": x.row_bytes, "n_blocks": n_blocks,
                                "weight": self.constant(taps, pad=False), "weight_stride": taps.strides[0],
                                "memory": self.states[layer][part]}  # fmt: skip
        kernel = causal_conv.causal_conv(self.isa, n_taps, silu)
        work = Work(row_ops=2 * n_taps * x.width, shape=f"{x.width}x{n_taps}")
        self.append(kernel, arguments, [x], [x], ("run blocks", n_blocks), [x], work)
        return x

    def decay(self, x: Buffer, bias: np.ndarray, rate: np.ndarray) -> Buffer:
        """exp(rate * log(1 + exp(x + bias))); bias and rate (below 0): float32 [width]."""
        out = self._buffer("decay", x.width)
        n_blocks = -(-x.width // COLUMNS)
        arguments: Arguments = {"x": x, "bias": self._row(bias, x.width, 0.0), "rate": self._row(rate, x.width, 0.0),
                                "out": out, "stride": out.row_bytes, "n_blocks": n_blocks}  # fmt: skip
        self.append(delta_net.decay(self.isa), arguments, [x], [out], ("blocks", x.count, n_blocks))
        return out

    def delta_rule(
        self, qk: Buffer, v: Buffer, decays: Buffer, betas: Buffer, dim: int, layer: int, part: int
    ) -> Buffer:
        """What each head of the gated delta rule reads: float32 [n_tokens, n_heads * dim].

        qk: heads of queries, then as many of keys; v: ``n_heads`` heads of values, the heads of the keys in turn; decays and
        betas: float32 [n_tokens, n_heads]; ``dim``: of a head. ``part``: of the layer's state, which of its parts
        (a ``DeltaState``).
        """
        n_heads, n_key_heads = v.width // dim, qk.width // 2 // dim
        whole = v.width == n_heads * dim and qk.width == 2 * n_key_heads * dim and n_key_heads and dim % COLUMNS == 0
        if not whole or n_heads % n_key_heads or (decays.width, betas.width) != (n_heads, n_heads):
            raise ValueError(
                f"heads of {dim}: queries and keys have {qk.width} columns, values {v.width}, gates {decays.width}"
            )
        out = self._buffer("delta_rule", v.width)
        n_blocks = dim // COLUMNS
        arguments: Arguments = {"qk": qk, "qk_stride": qk.row_bytes, "n_key_heads": n_key_heads, "v": v,
                                "decays": decays, "betas": betas, "gate_stride": decays.row_bytes,
                                "memory": self.states[layer][part], "n_heads": n_heads, "n_blocks": n_blocks,
                                "dim": dim, "out": out, "stride": out.row_bytes}  # fmt: skip
        reads = [qk, v, decays, betas]
        state_bytes = 2 * 4 * n_heads * dim * dim
        work = Work(row_ops=7 * v.width * dim, shape=f"{n_heads}x{dim}x{dim}", state_bytes=state_bytes)
        self.append(delta_net.delta_rule(self.isa), arguments, reads, [out], ("run heads", n_heads), reads, work)
        return out
