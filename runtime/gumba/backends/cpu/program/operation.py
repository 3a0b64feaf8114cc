"""What a program is made of: operations, the buffers between them, and where a layer's keys and values lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gumba.backends.cpu.kernels.record import N_OUTPUTS, Kernel


@dataclass(eq=False)
class Buffer:
    """Rows of ``width`` elements. ``count``: offset in the batch record of how many rows a step has."""

    name: str
    width: int
    row_bytes: int
    count: int
    blocks: Buffer | None = None  # the same rows as int8 blocks, once an operation needs them
    address: int = 0
    first_use: int = -1
    last_use: int = -1

    @property
    def of_outputs(self) -> bool:
        """Whether there is a row only for each token whose logits are wanted."""
        return self.count == N_OUTPUTS


@dataclass(frozen=True)
class Work:
    """What an operation must read, write and compute at the least: what its measured time is held against.

    ``weights``: bytes of a matrix, read once a step; ``row_bytes``: read and written for each of its rows; ``kv_bytes``: per
    token of context of each sequence; ``row_ops``: multiplications and additions per row; ``pair_ops``: per pair of a token
    and one that it attends to; ``kind``: the arithmetic of those, "int8", "float32" or "bf16"; ``shape``: in words;
    ``window``: of the context, only so many tokens count (0: all); ``state_bytes``: read and written for each sequence.
    """

    weights: int = 0
    row_bytes: int = 0
    kv_bytes: int = 0
    row_ops: int = 0
    pair_ops: int = 0
    kind: str = "float32"
    shape: str = ""
    window: int = 0
    state_bytes: int = 0


NO_WORK = Work()

#: A kernel's arguments by name; a buffer stands for its address, which the memory plan settles.
Arguments: TypeAlias = "dict[str, int | float | Buffer]"


@dataclass
class Operation:
    kernel: Kernel
    arguments: Arguments
    reads: Sequence[Buffer]
    writes: Sequence[Buffer]
    split: tuple[object, ...]  # operations of equal split give each thread the same rows and columns
    gathers: Sequence[Buffer] = ()  # inputs of which a thread reads more than its own share
    phase: int = 0
    work: Work = NO_WORK

    def waits_for(self, earlier: Operation) -> bool:
        """Whether every thread must have ended ``earlier`` before any begins this."""
        alike = self.split == earlier.split
        return (
            any(b in earlier.writes and not (alike and b not in self.gathers) for b in self.reads)
            or any(b in earlier.reads and not (alike and b not in earlier.gathers) for b in self.writes)
            or any(b in earlier.writes and not alike for b in self.writes)
        )


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
    #: Of a pool where a sequence has pages for this many tokens only; 0: for all.
    window: int = 0

    def covers(self, n_tokens: int) -> bool:
        """Whether a token finds itself and the ``n_tokens - 1`` before it there (0: all of them)."""
        return not self.window or 0 < n_tokens <= self.window
