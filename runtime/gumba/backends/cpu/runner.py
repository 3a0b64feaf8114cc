"""Running a finished program on the CPU: a step's chunks become a batch record, with which a team of threads runs the records.

Python code between two steps runs with cold caches, several times slower than in a tight loop: ``run`` makes as few calls as it
can, and one compiled call (``batch.gather``) checks and copies all numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from gumba.backends.base import Chunk, StateRuns, StepLimits
from gumba.backends.chunks import page_ids, position_of, token_ids
from gumba.backends.cpu.batch import LIMIT_WORDS, OUTPUTS, gather
from gumba.backends.cpu.kernels import record
from gumba.backends.cpu.kernels.attention_layout import split_units, tile_tokens
from gumba.backends.cpu.program.builder import Buffer, Operation, Program
from gumba.backends.cpu.program.executor import Team
from gumba.backends.cpu.program.timing import Timing
from gumba.errors import EngineError, RequestError


class CPURunner:
    """The CPU's ``gumba.backends.base.Runner``."""

    def __init__(
        self,
        program: Program,
        hidden: Buffer,
        logits: Buffer,
        team: Team,
        limits: StepLimits,
        states: StateRuns | None,
    ) -> None:
        self._program: Program | None = program
        self._team, self._limits, self._pools = team, limits, limits.pools
        self._states = states
        self._records = program.finish([hidden, logits])
        self._timing: Timing | None = None
        self._hidden = program.rows(hidden)[:, : hidden.width]
        self._logits = program.rows(logits)[:, : logits.width]
        self._gather = gather.bare
        self._bounds = self._gather_bounds(program)
        self._tables = np.empty(64, np.int32)
        rows = program.max_rows
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
        shared: list[np.ndarray] = [self._bounds, self._pools.used, self._tables, self._batch]
        self._addresses = [array.ctypes.data for array in shared]

    def _gather_bounds(self, program: Program) -> np.ndarray:
        """The limits that ``batch.gather`` checks numbers against, and the sizes of attention's tiles: int64 [LIMIT_WORDS]."""
        limits, pools = self._limits, self._pools
        tile = tile_tokens(program.most_grouped)
        units = split_units(self._team.n_threads) if self._team.n_threads > 1 else 0
        words = [limits.n_ids, limits.n_ctx, pools.n_pages, program.max_rows, tile, program.most_kv_heads, units]
        pool = pools.window_pool
        words += [0, 0, 0] if pool is None else [pool.n_pages, pools.window, pool.used.ctypes.data]
        bounds = np.empty(LIMIT_WORDS, np.int64)
        bounds[:] = words
        return bounds

    def run(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Compute one step: logits, float32 [n_outputs, n_vocab], a view that the next step overwrites."""
        if self._program is None:
            raise EngineError("the model is closed")
        numbers = self._numbers(chunks)
        if self._gather(numbers.__array_interface__["data"][0], len(chunks), *self._addresses):
            self._limits.check(chunks)
            raise RequestError("a number of this step is out of range")
        if self._states is not None:
            runs = self._states.runs(chunks)
            if runs:
                self._arrays[record.RUNS][: len(runs)] = runs
            self._batch[record.N_RUNS // 8] = len(runs)
        if self._batch[record.N_TOKENS // 8]:
            self._team.run(self._records, self._batch)
        n_outputs: int = self._batch[record.N_OUTPUTS // 8]
        return self._logits[:n_outputs]

    def run_timed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """As ``run``, but returns the nanoseconds that each of ``operations`` took, int64 [n]."""
        records = self._records
        timing = self._timing = self._timing or Timing(records)
        self._records = timing.records
        try:
            self.run(chunks)
        finally:
            self._records = records
        return timing.nanoseconds()

    def _numbers(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """The input of ``batch.gather``: int64; only that all numbers are integers is checked here."""
        words: list[int] = []
        tokens: list[int] = []
        pages: list[int] = []
        window_pages: list[int] = []
        for chunk in chunks:
            ids, position, table, outputs, _, n_source, window_table = chunk
            if type(ids) is not list or type(table) is not list:
                ids, table = token_ids(ids, self._limits.n_ids).tolist(), page_ids(table).tolist()
            if self._pools.window_pool is not None:
                if type(window_table) is not list:
                    window_table = page_ids(window_table).tolist()
                window_table = window_table[self._pools.first_read(position_of(position)) :]
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
            self._limits.check(chunks)
            words = [operator.index(word) for word in words]
        try:
            return np.array(words, np.int64)
        except OverflowError:
            self._limits.check(chunks)
            raise

    @property
    def hidden(self) -> np.ndarray:
        """Final hidden states of the last step: float32 [n_outputs, n_embd], a view."""
        n_outputs: int = self._batch[record.N_OUTPUTS // 8]
        return self._hidden[:n_outputs]

    @property
    def operations(self) -> list[Operation]:
        """The operations of a step, in order. Raises EngineError if closed."""
        if self._program is None:
            raise EngineError("the model is closed")
        return self._program.operations

    def close(self) -> None:
        """Free the program's memory. Closing twice is harmless."""
        self._program = self._timing = None
        self._records = np.empty((0, record.RECORD_WORDS), np.int64)
        self._logits = np.empty((0, self._logits.shape[1]), np.float32)
        self._hidden = np.empty((0, self._hidden.shape[1]), np.float32)
