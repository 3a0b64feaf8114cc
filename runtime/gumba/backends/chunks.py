"""The input of a step, chunks of tokens of one sequence each, and its checks.

Backends check all numbers in compiled code, on their way to the device. If one is out of range, they call
``StepLimits.check``, which repeats the checks slowly and raises an error that says what is wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from gumba.errors import RequestError

_TABLE = "a block table must be a row of page ids, all of them taken from this model's cache"


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence for one step.

    Attributes:
        tokens: Token ids.
        position: Position of the first token in its sequence.
        pages: The sequence's block table, for at least ``position + len(tokens)`` tokens.
        outputs: The tokens whose logits are computed.
        state: For recurrent layers, the sequence's slot of ``Model.states`` with the state after ``position`` tokens.
        n_source: For encoder-decoders, the number of first tokens of the sequence that are the source, all in one chunk.
        window_pages: The block table of the window pool, if there is one; entries before the window are unused.
    """

    tokens: Sequence[int] | np.ndarray
    position: int
    pages: Sequence[int] | np.ndarray
    outputs: Literal["none", "last", "all"] = "last"
    state: int = -1
    n_source: int = 0
    window_pages: Sequence[int] | np.ndarray = ()


class PagePool(Protocol):
    """What the checks of a step need of ``gumba.runner.kv_cache.KVCache``."""

    @property
    def n_pages(self) -> int:
        """Number of pages: page ids are below it."""
        ...

    @property
    def page_tokens(self) -> int:
        """Tokens per page."""
        ...

    @property
    def used(self) -> np.ndarray:
        """Whether each page is allocated, bool [n_pages]."""
        ...

    def owns(self, pages: np.ndarray) -> bool:
        """Whether all page ids (integers) are in range and allocated."""
        ...


class Pools(PagePool, Protocol):
    """The KV cache's pool of pages, and its window pool if it has one."""

    @property
    def window_pool(self) -> PagePool | None:
        """The pool of the layers with a sliding window; None: they have none of their own."""
        ...

    @property
    def window(self) -> int:
        """The longest window of ``window_pool``."""
        ...

    def first_read(self, position: int) -> int:
        """Index in the block table of the first window page that a token at ``position`` reads."""
        ...


@dataclass(frozen=True)
class StepLimits:
    """Bounds of the numbers in a step: token ids are below ``n_ids``, positions below ``n_ctx``."""

    n_ids: int
    n_ctx: int
    max_batch_tokens: int
    pools: Pools

    def check(self, chunks: Sequence[Chunk]) -> None:
        """Raise RequestError if a number of a step is out of range."""
        pools, total = self.pools, 0
        for chunk in chunks:
            ids, table = token_ids(chunk.tokens, self.n_ids), page_ids(chunk.pages)
            first = position_of(chunk.position)
            end = first + len(ids)
            if first < 0 or end > self.n_ctx:
                raise RequestError(
                    f"positions {first} to {end - 1}: expected 0 to {self.n_ctx - 1} (the context's size)"
                )
            if not 0 <= position_of(chunk.n_source) <= first:
                raise RequestError(f"a source of {chunk.n_source} tokens before position {first}")
            if len(table) * pools.page_tokens < end:
                raise RequestError(f"a block table of {len(table)} pages for {end} tokens: expected enough pages")
            if not pools.owns(table):
                raise RequestError(_TABLE)
            self._check_window_pages(chunk, first, end)
            total += len(ids)
        if total > self.max_batch_tokens:
            raise RequestError(f"a step of {total} tokens: expected no more than {self.max_batch_tokens}")

    def _check_window_pages(self, chunk: Chunk, first: int, end: int) -> None:
        pool = self.pools.window_pool
        if pool is None:
            if len(chunk.window_pages):
                raise RequestError("a second block table: expected none, this model's cache has one pool")
            return
        table = page_ids(chunk.window_pages)
        if len(table) * pool.page_tokens < end:
            raise RequestError(f"a second block table of {len(table)} pages for {end} tokens: expected enough")
        if not pool.owns(table[self.pools.first_read(first) :]):
            raise RequestError(_TABLE)


def position_of(position: object) -> int:
    """A position as an integer. Raises RequestError."""
    try:
        return operator.index(position)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(f"position {position!r}: expected an integer") from None


def page_ids(pages: Sequence[int] | np.ndarray) -> np.ndarray:
    """A block table as int64: a copy, which the caller cannot change during a step."""
    table = np.array(pages) if len(pages) else np.empty(0, np.int64)
    if table.ndim != 1 or table.dtype.kind not in "iu":
        raise RequestError(_TABLE)
    return table.astype(np.int64, copy=False)  # ids past its range become negative


def token_ids(tokens: Sequence[int] | np.ndarray, n_vocab: int) -> np.ndarray:
    """Token ids as int32. Raises RequestError for anything that is no integer in 0 .. n_vocab - 1."""
    if not isinstance(tokens, np.ndarray):
        for i, token in enumerate(tokens):
            if type(token) is not int and not isinstance(token, np.integer):
                raise RequestError(f"token {i} is {token!r}, expected an integer from 0 to {n_vocab - 1}")
            if not 0 <= token < n_vocab:
                raise RequestError(f"token {i} is {token}, expected 0 to {n_vocab - 1}")
        return np.array(tokens, np.int32)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise RequestError(f"tokens are {tokens.dtype} {list(tokens.shape)}, expected one row of integers")
    if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) < n_vocab):
        raise RequestError(f"tokens from {tokens.min()} to {tokens.max()}, expected 0 to {n_vocab - 1}")
    return np.ascontiguousarray(tokens, np.int32)
