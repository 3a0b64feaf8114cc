"""A loaded model: weights, KV cache, and the program that turns chunks of tokens into logits."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gumba.errors import EngineError, RequestError
from gumba.kernels import op
from gumba.kernels.attention import split_units, tile_tokens
from gumba.kernels.pages import PAGE_TOKENS, PART_TOKENS
from gumba.kv_cache import KVCache
from gumba.program.builder import Buffer, Operation, Program
from gumba.program.executor import Team
from gumba.program.timing import Timing


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence for one step.

    ``tokens``: ids; ``position``: of the first one in its sequence; ``pages``: the sequence's block table, for at least
    ``position + len(tokens)`` tokens; ``outputs``: of which tokens the logits are wanted.
    """

    tokens: Sequence[int] | np.ndarray
    position: int
    pages: Sequence[int] | np.ndarray
    outputs: Literal["none", "last", "all"] = "last"


class Model:
    """What ``load_model`` returns. One thread at a time may call ``forward``.

    ``config``: sizes (n_vocab, n_layers, n_embd, ...); ``n_ctx``: most tokens of a sequence; ``kv``: the pool of pages.
    """

    def __init__(
        self, config: Any, program: Program, logits: Buffer, kv: KVCache, team: Team, n_ctx: int, weights: Any
    ) -> None:
        self.config, self.kv, self.n_ctx = config, kv, n_ctx
        self.n_threads = team.n_threads
        self.max_batch_tokens = program.max_rows
        self.isa = program.isa.name
        self._team = team
        self._program: Program | None = program
        self._weights = weights
        self._records = program.finish([logits])
        self._timing: Timing | None = None
        self._logits = program.rows(logits)
        self._tile = tile_tokens(config.n_heads // config.n_kv_heads)
        self._batch = np.zeros(op.BATCH_WORDS, np.int64)

    def forward(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """One step. Logits, float32 [wanted tokens, n_vocab], in the order of chunks and tokens.

        The rows are a view that the next step overwrites. Raises RequestError for a chunk that is out of range (nothing has
        been computed then), EngineError when the model is closed.
        """
        return self._step(chunks, self._records)

    def forward_timed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """A step like ``forward``'s: nanoseconds that each of ``operations`` took, int64 [n]. Raises what ``forward`` does."""
        timing = self._timing = self._timing or Timing(self._records)
        self._step(chunks, timing.records)
        return timing.nanoseconds()

    @property
    def operations(self) -> list[Operation]:
        """What a step consists of, in order. Raises EngineError when the model is closed."""
        if self._program is None:
            raise EngineError("the model is closed")
        return self._program.operations

    def _step(self, chunks: Sequence[Chunk], records: np.ndarray) -> np.ndarray:
        if self._program is None:
            raise EngineError("the model is closed")
        (tokens, positions, slots, tiles, rows), pages = self._gather(chunks)
        if len(tokens) == 0:
            return np.empty((0, self.config.n_vocab), np.float32)
        b = self._batch
        b[op.SPLIT // 8] = self._split(tiles)
        b[op.N_TOKENS // 8], b[op.N_TILES // 8], b[op.N_OUTPUTS // 8] = len(tokens), len(tiles), len(rows)
        for offset, array in (
            (op.TOKENS, tokens), (op.POSITIONS, positions), (op.SLOTS, slots), (op.TILES, tiles), (op.OUTPUT_ROWS, rows),
        ):  # fmt: skip
            b[offset // 8] = array.ctypes.data
        logits = self._logits
        self._team.run(records, b)
        del pages  # the kernels read the block tables up to here
        return logits[: len(rows), : self.config.n_vocab]

    def _split(self, tiles: np.ndarray) -> int:
        """In how many parts the threads take the longest context; 0 where the step has units enough for all of them."""
        n_units = len(tiles) * self.config.n_kv_heads
        if self.n_threads == 1 or n_units >= split_units(self.n_threads):
            return 0
        longest = int((tiles[:, 1] + tiles[:, 2]).max())
        return -(-longest // PART_TOKENS) if longest > PART_TOKENS else 0

    def _gather(self, chunks: Sequence[Chunk]) -> tuple[list[np.ndarray], np.ndarray]:
        """The batch record's arrays (tokens, positions, slots, tiles, output rows), every number in them checked.

        The second value holds the block tables one after the other. The tiles point into it: it must outlive the step.
        """
        tokens: list[np.ndarray] = []
        tables: list[np.ndarray] = []
        places: list[tuple[int, int, int, int]] = []
        rows: list[int] = []
        start = page = 0
        for chunk in chunks:
            ids, table = token_ids(chunk.tokens, self.config.n_vocab), _page_ids(chunk.pages)
            n, first = len(ids), _index(chunk.position)
            end = first + n
            if first < 0 or end > self.n_ctx:
                raise RequestError(
                    f"positions {first} to {end - 1}: expected 0 to {self.n_ctx - 1} (the context's size)"
                )
            if len(table) * PAGE_TOKENS < end:
                raise RequestError(f"a block table of {len(table)} pages for {end} tokens: expected enough pages")
            if n and chunk.outputs != "none":
                rows.extend(range(start, start + n) if chunk.outputs == "all" else [start + n - 1])
            tokens.append(ids)
            tables.append(table)
            places.append((start, n, first, page))
            start, page = start + n, page + len(table)
        if start > self.max_batch_tokens:
            raise RequestError(f"a step of {start} tokens: expected no more than {self.max_batch_tokens}")
        pages = np.concatenate([np.empty(0, np.int64), *tables])
        if not self.kv.owns(pages):
            raise RequestError("a block table must be a row of page ids, all of them taken from this model's cache")
        pages = pages.astype(np.int32)
        ids = np.concatenate([np.empty(0, np.int32), *tokens])
        return [ids, *self._places(places, pages), np.array(rows, np.int32)], pages

    def _places(self, chunks: list[tuple[int, int, int, int]], pages: np.ndarray) -> list[np.ndarray]:
        """Positions, slots and tiles of checked chunks, each (first token, tokens, first position, where in ``pages``)."""
        start, n, first, page = np.array(chunks, np.int64).reshape(-1, 4).T
        positions = np.arange(n.sum()) + np.repeat(first - start, n)
        within = positions % PAGE_TOKENS
        slots = pages[np.repeat(page, n) + positions // PAGE_TOKENS] * np.int64(PAGE_TOKENS) + within
        count = -(-n // self._tile)
        whose = np.repeat(np.arange(len(chunks)), count)
        done = (np.arange(len(whose)) - (np.cumsum(count) - count)[whose]) * self._tile
        tiles = np.empty((len(whose), 4), np.int64)
        tiles[:, 0] = start[whose] + done
        tiles[:, 1] = np.minimum(n[whose] - done, self._tile)
        tiles[:, 2] = first[whose] + done
        tiles[:, 3] = pages.ctypes.data + 4 * page[whose]
        return [positions.astype(np.int32), slots, tiles]

    def close(self) -> None:
        """Stop the threads and let go of all memory, once a step that is under way has ended. Harmless when repeated."""
        self._team.close()
        self.kv.close()
        self._program = self._weights = None
        self._records = np.empty((0, op.RECORD_WORDS), np.int64)
        self._timing = None
        self._logits = np.empty((0, self.config.n_vocab), np.float32)

    def __del__(self) -> None:
        team = getattr(self, "_team", None)
        if team is not None:
            team.close()


def _index(position: object) -> int:
    try:
        return operator.index(position)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(f"position {position!r}: expected an integer") from None


def _page_ids(pages: Sequence[int] | np.ndarray) -> np.ndarray:
    """A block table as int64: a copy, so that nobody changes it during a step."""
    table = np.array(pages) if len(pages) else np.empty(0, np.int64)
    if table.ndim != 1 or table.dtype.kind not in "iu":
        raise RequestError("a block table must be a row of page ids, all of them taken from this model's cache")
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
