"""A loaded model: weights, KV cache, and the program that turns chunks of tokens into logits."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from gumba.backends.cpu.batch import LIMIT_WORDS, OUTPUTS, gather
from gumba.backends.cpu.kernels import record
from gumba.backends.cpu.kernels.attention_layout import split_units, tile_tokens
from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.backends.cpu.program.builder import Buffer, Operation, Program
from gumba.backends.cpu.program.executor import Team
from gumba.backends.cpu.program.timing import Timing
from gumba.errors import EngineError, RequestError
from gumba.runner.kv_cache import KVCache
from gumba.runner.state_pool import States

_TABLE = "a block table must be a row of page ids, all of them taken from this model's cache"


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence for one step.

    ``tokens``: ids; ``position``: of the first one in its sequence; ``pages``: the sequence's block table, for at least
    ``position + len(tokens)`` tokens; ``outputs``: of which tokens the logits are wanted; ``state``: of a model with recurrent
    layers, the sequence's slot of ``Model.states``, which holds the state after ``position`` tokens; ``n_source``: of an
    encoder-decoder, how many of the sequence's first tokens are the source, which the encoder reads, all in one chunk;
    ``window_pages``: where the cache has a window pool, the block table of that; entries before the window are unused.
    """

    tokens: Sequence[int] | np.ndarray
    position: int
    pages: Sequence[int] | np.ndarray
    outputs: Literal["none", "last", "all"] = "last"
    state: int = -1
    n_source: int = 0
    window_pages: Sequence[int] | np.ndarray = ()


class Model:
    """What ``load_model`` returns. One thread at a time may call ``forward``.

    ``config``: sizes (n_vocab, n_layers, n_embd, ...); ``n_ctx``: most tokens of a sequence; ``kv``: the pool of pages;
    ``states``: the pool of recurrent states, None for a model without.
    """

    def __init__(
        self,
        config: Any,
        program: Program,
        outputs: tuple[Buffer, Buffer],
        kv: KVCache,
        team: Team,
        n_ctx: int,
        weights: Any,
        owns_team: bool = True,
        states: States | None = None,
    ) -> None:
        hidden, logits = outputs
        self._owns_team = owns_team
        self.config, self.kv, self.states, self.n_ctx = config, kv, states, n_ctx
        #: Of an encoder that tells types of tokens apart, ids from n_vocab on are those of the second type, and so on.
        self._n_ids = config.n_vocab * config.n_types
        self.n_threads = team.n_threads
        self.max_batch_tokens = program.max_rows
        self.isa = program.isa.name
        self._team = team
        self._program: Program | None = program
        self._weights = weights
        self._records = program.finish([hidden, logits])
        self._timing: Timing | None = None
        self._hidden, self._logits = program.rows(hidden), program.rows(logits)[:, : logits.width]
        tile = tile_tokens(program.most_grouped)
        units = split_units(self.n_threads) if self.n_threads > 1 else 0
        limits = [self._n_ids, n_ctx, kv.n_pages, self.max_batch_tokens, tile, program.most_kv_heads, units]
        limits += (
            [0, 0, 0]
            if kv.window_pool is None
            else [kv.window_pool.n_pages, kv.window, kv.window_pool.used.ctypes.data]
        )
        self._limits = np.empty(LIMIT_WORDS, np.int64)
        self._limits[:] = limits
        self._gather = gather.bare
        self._tables = np.empty(64, np.int32)
        rows = self.max_batch_tokens
        self._arrays: dict[int, np.ndarray] = {
            record.TOKENS: np.empty(rows, np.int32), record.POSITIONS: np.empty(rows, np.int32),
            record.SLOTS: np.empty(rows, np.int64),
            record.TILES: np.empty((rows, record.TILE_WORDS), np.int64), record.OUTPUT_ROWS: np.empty(rows, np.int32),
            record.RUNS: np.empty((rows if states else 0, record.RUN_WORDS), np.int64),
            record.WINDOW_SLOTS: np.empty(rows, np.int64),
            record.OUTPUTS_VIEW + record.POSITIONS: np.empty(rows, np.int32),
            record.OUTPUTS_VIEW + record.TILES: np.empty((rows, record.TILE_WORDS), np.int64),
        }  # fmt: skip
        self._batch = np.zeros(record.BATCH_WORDS, np.int64)
        for offset, array in self._arrays.items():
            self._batch[offset // 8] = array.ctypes.data
        shared: list[np.ndarray] = [self._limits, kv.used, self._tables, self._batch]
        self._addresses = [array.ctypes.data for array in shared]

    def forward(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """One step. Logits, float32 [wanted tokens, n_vocab], in the order of chunks and tokens.

        The rows are a view that the next step overwrites. Raises RequestError for a chunk that is out of range (nothing has
        been computed then), EngineError when the model is closed.
        """
        return self._step(chunks, self._records)

    def take_state(self) -> int:
        """A slot of ``states`` for a new sequence; -1 for a model without recurrent layers. Raises ResourceError."""
        return -1 if self.states is None else self.states.allocate()

    def drop_state(self, slot: int) -> None:
        """Give back what ``take_state`` gave."""
        if self.states is not None:
            self.states.release(slot)

    @property
    def team(self) -> Team:
        """The threads that compute."""
        return self._team

    @property
    def hidden(self) -> np.ndarray:
        """Of the last step: the final hidden states, float32 [wanted tokens, n_embd], of which the logits were made; a view."""
        n_outputs: int = self._batch[record.N_OUTPUTS // 8]
        return self._hidden[:n_outputs, : self.config.n_embd]

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
        numbers = self._numbers(chunks)
        if self._gather(numbers.__array_interface__["data"][0], len(chunks), *self._addresses):
            self._refuse(chunks)
            raise RequestError("a number of this step is out of range")
        if self.states is not None:
            self._gather_runs(chunks, self.states)
        if self._batch[record.N_TOKENS // 8]:
            self._team.run(records, self._batch)
        n_outputs: int = self._batch[record.N_OUTPUTS // 8]
        return self._logits[:n_outputs]

    def _numbers(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """What ``gumba.backends.cpu.batch`` reads: int64, nothing in it checked but that all are integers."""
        words: list[int] = []
        tokens: list[int] = []
        pages: list[int] = []
        window_pages: list[int] = []
        for chunk in chunks:
            ids, position, table, outputs, _, n_source, window_table = chunk
            if type(ids) is not list or type(table) is not list:
                ids, table = token_ids(ids, self._n_ids).tolist(), _page_ids(table).tolist()
            if self.kv.window_pool is not None:
                if type(window_table) is not list:
                    window_table = _page_ids(window_table).tolist()
                window_table = window_table[self.kv.first_read(_index(position)) :]
                window_pages += window_table
            words += (len(ids), position, len(table), OUTPUTS[outputs], n_source, len(window_table))
            tokens += ids
            pages += table
        words += tokens
        words += pages
        words += window_pages
        if len(pages) + len(window_pages) > len(self._tables):
            self._tables = np.empty(2 * (len(pages) + len(window_pages)), np.int32)
            self._addresses[2] = self._tables.ctypes.data
        if not all(type(word) is int for word in words):
            self._refuse(chunks)
            words = [operator.index(word) for word in words]
        try:
            return np.array(words, np.int64)
        except OverflowError:
            self._refuse(chunks)
            raise

    def _gather_runs(self, chunks: Sequence[Chunk], states: States) -> None:
        """Each sequence's tokens of this step and its slot, for the kernels. All else of the chunks is checked already."""
        runs: list[tuple[int, int, int, int]] = []
        after: dict[int, int] = {}
        first = 0
        for tokens, position, _, _, slot, *_ in chunks:
            if type(slot) is not int or not states.owns(slot) or slot in after:
                raise RequestError(
                    f"slot {slot!r} for states: expected one taken from this model, for each sequence its own"
                )
            if position and states.lengths[slot] != position:
                raise RequestError(
                    f"position {position}: the state in slot {slot} is that of {states.lengths[slot]} tokens"
                )
            if len(tokens):
                runs.append((first, len(tokens), position, slot * states.slot_bytes))
                after[slot] = position + len(tokens)
                first += len(tokens)
        for slot, length in after.items():
            states.lengths[slot] = length
        if runs:
            self._arrays[record.RUNS][: len(runs)] = runs
        self._batch[record.N_RUNS // 8] = len(runs)

    def _refuse(self, chunks: Sequence[Chunk]) -> None:
        """Raise RequestError for what is wrong with a step; nothing when all is well."""
        total = 0
        for chunk in chunks:
            ids, table = token_ids(chunk.tokens, self._n_ids), _page_ids(chunk.pages)
            first = _index(chunk.position)
            end = first + len(ids)
            if first < 0 or end > self.n_ctx:
                raise RequestError(
                    f"positions {first} to {end - 1}: expected 0 to {self.n_ctx - 1} (the context's size)"
                )
            if not 0 <= _index(chunk.n_source) <= first:
                raise RequestError(f"a source of {chunk.n_source} tokens before position {first}")
            if len(table) * PAGE_TOKENS < end:
                raise RequestError(f"a block table of {len(table)} pages for {end} tokens: expected enough pages")
            if not self.kv.owns(table):
                raise RequestError(_TABLE)
            if self.kv.window_pool is not None:
                window_pages = _page_ids(chunk.window_pages)
                if len(window_pages) * PAGE_TOKENS < end:
                    raise RequestError(
                        f"a second block table of {len(window_pages)} pages for {end} tokens: expected enough"
                    )
                if not self.kv.window_pool.owns(window_pages[self.kv.first_read(first) :]):
                    raise RequestError(_TABLE)
            elif len(chunk.window_pages):
                raise RequestError("a second block table: expected none, this model's cache has one pool")
            total += len(ids)
        if total > self.max_batch_tokens:
            raise RequestError(f"a step of {total} tokens: expected no more than {self.max_batch_tokens}")

    def close(self) -> None:
        """Stop the threads and let go of all memory, once a step that is under way has ended. Harmless when repeated."""
        if self._owns_team:
            self._team.close()
        self.kv.close()
        if self.states is not None:
            self.states.close()
        self._program = self._weights = None
        self._records = np.empty((0, record.RECORD_WORDS), np.int64)
        self._timing = None
        self._logits = np.empty((0, self.config.n_vocab), np.float32)
        self._hidden = np.empty((0, self.config.n_embd), np.float32)

    def __del__(self) -> None:
        team = getattr(self, "_team", None)
        if team is not None and self._owns_team:
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
