"""Shapes of what a layer caches per sequence: keys and values of each token, or a recurrent state of fixed size.

Architectures declare these shapes; a backend decides their layout in memory (``gumba.backends.base``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias


class HeadBytes(Protocol):
    """The members of ``gumba.backends.base.KVFormat`` that sizes depend on."""

    def key_bytes(self, head_dim: int, /) -> int:
        """Bytes of one head's keys in a page."""
        ...

    def value_bytes(self, v_dim: int, /) -> int:
        """Bytes of one head's values in a page."""
        ...


@dataclass(frozen=True)
class KVShape:
    """What one layer caches per token: for each KV head, ``head_dim`` elements of a key and ``v_dim`` of a value.

    0 heads: nothing. ``window``: a token reads only itself and the ``window - 1`` tokens before it; 0: all before it.
    """

    n_kv_heads: int
    head_dim: int
    v_dim: int
    window: int = 0

    def bytes_per_page(self, format: HeadBytes) -> int:
        """Bytes of this layer in a page of ``format``."""
        return self.n_kv_heads * (format.key_bytes(self.head_dim) + format.value_bytes(self.v_dim))


#: A layer that keeps no keys and values.
NOTHING = KVShape(0, 0, 0)


@dataclass(frozen=True)
class ConvState:
    """State of ``Operations.causal_conv``: the last ``n_taps - 1`` inputs, float32 [n_taps - 1, width]."""

    width: int
    n_taps: int


@dataclass(frozen=True)
class DeltaState:
    """State of ``Operations.delta_rule``: one matrix for each head, float32 [n_heads, dim, dim]."""

    n_heads: int
    dim: int


#: One part of a recurrent layer's state.
StateShape: TypeAlias = "ConvState | DeltaState"

#: Limits that every backend must support, and that a model's file is checked against: tokens that ``causal_conv`` spans, and
#: the number that the ``dim`` of ``delta_rule`` is a multiple of.
MAX_CONV_TAPS = 16
DELTA_DIM_MULTIPLE = 32
