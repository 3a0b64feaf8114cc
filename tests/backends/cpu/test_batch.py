"""A step's batch record against the obvious Python, and every number that must not reach a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from gumba.backends.cpu.batch import LIMIT_WORDS, OUTPUTS, gather
from gumba.backends.cpu.kernels import record
from gumba.backends.cpu.kernels.page_format import PART_TOKENS
from gumba.backends.cpu.kv_pages import PAGE_TOKENS

VOCAB, CONTEXT, N_PAGES, ROWS, TILE, HEADS, N_WINDOW_PAGES = 100, 2048, 200, 64, 5, 3, 40


def run(chunks, used=None, units=8, window=0, window_used=None):
    """(status, batch record, arrays) of chunks (tokens, position, pages, outputs, perhaps tokens of the source, and
    pages from the first that is in the window)."""
    used = np.ones(N_PAGES, np.bool_) if used is None else used
    window_used = np.ones(N_WINDOW_PAGES, np.bool_) if window_used is None else window_used
    chunks = [(*chunk, 0, [])[:6] if len(chunk) < 5 else (*chunk, [])[:6] for chunk in chunks]
    words = [
        n
        for ids, at, pages, outputs, source, window_pages in chunks
        for n in (len(ids), at, len(pages), OUTPUTS[outputs], source, len(window_pages))
    ]
    words += [t for ids, *_ in chunks for t in ids] + [p for _, _, pages, *_ in chunks for p in pages]
    words += [p for *_, window_pages in chunks for p in window_pages]
    numbers = np.array(words, np.int64)
    limits = np.array(
        [VOCAB, CONTEXT, N_PAGES, ROWS, TILE, HEADS, units, N_WINDOW_PAGES, window, window_used.ctypes.data], np.int64
    )
    assert limits.size == LIMIT_WORDS
    tables = np.full(sum(len(c[2]) + len(c[5]) for c in chunks) + 1, -7, np.int32)
    batch = np.zeros(record.BATCH_WORDS, np.int64)
    arrays = {record.TOKENS: np.full(ROWS + 1, -7, np.int32), record.POSITIONS: np.full(ROWS + 1, -7, np.int32),
              record.SLOTS: np.full(ROWS + 1, -7, np.int64), record.TILES: np.full((ROWS + 1, record.TILE_WORDS), -7, np.int64),
              record.OUTPUT_ROWS: np.full(ROWS + 1, -7, np.int32),
              record.WINDOW_SLOTS: np.full(ROWS + 1, -7, np.int64)}  # fmt: skip
    for offset, array in arrays.items():
        batch[offset // 8] = array.ctypes.data
    status = gather(numbers.ctypes.data, len(chunks), limits.ctypes.data, used.ctypes.data, tables.ctypes.data,
                    batch.ctypes.data)  # fmt: skip
    assert tables[-1] == -7 and all((array[-1] == -7).all() for array in arrays.values()), "written past the end"
    return status, batch, arrays, tables


@pytest.mark.parametrize("window", [0, 1, 2, 100, 1000])
@pytest.mark.parametrize("seed", range(20))
def test_as_the_obvious_loop_says(seed: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    chunks = []
    left = ROWS
    while left:
        n = int(rng.integers(0, min(left, 20) + 1))
        at = int(rng.integers(0, CONTEXT - n + 1))
        pages = rng.permutation(N_PAGES)[: -(-(at + n) // PAGE_TOKENS) + rng.integers(0, 3)].tolist()
        window_pages = rng.permutation(N_WINDOW_PAGES)[
            : -(-(at + n) // PAGE_TOKENS) - max(0, at - window + 1) // PAGE_TOKENS
        ].tolist()
        outputs = str(rng.choice(["none", "last", "all"]))
        source = int(rng.integers(0, at + 1))
        chunks.append((rng.integers(0, VOCAB, n).tolist(), at, pages, outputs, source, window_pages if window else []))
        left -= n
    status, batch, arrays, tables = run(chunks, window=window)
    tokens, positions, slots, tiles, rows, table, window_slots = [], [], [], [], [], [], []
    for ids, at, pages, outputs, source, window_pages in chunks:
        skipped = max(0, at - window + 1) // PAGE_TOKENS if window else 0
        for first in range(0, len(ids), TILE):
            where = tables.ctypes.data + 4 * len(table)
            tiles.append([len(tokens) + first, min(TILE, len(ids) - first), at + first, where, at + len(ids), source,
                          where + 4 * (len(pages) - skipped)])  # fmt: skip
        for i, token in enumerate(ids):
            if outputs == "all" or (outputs == "last" and i == len(ids) - 1):
                rows.append(len(tokens))
            tokens.append(token)
            positions.append(at + i)
            slots.append(pages[(at + i) // PAGE_TOKENS] * PAGE_TOKENS + (at + i) % PAGE_TOKENS)
            if window:
                window_slots.append(
                    window_pages[(at + i) // PAGE_TOKENS - skipped] * PAGE_TOKENS + (at + i) % PAGE_TOKENS
                )
        table += pages + window_pages
    assert status == 0
    assert [batch[o // 8] for o in (record.N_TOKENS, record.N_TILES, record.N_OUTPUTS)] == [
        len(tokens),
        len(tiles),
        len(rows),
    ]
    expected = [
        (record.TOKENS, tokens),
        (record.POSITIONS, positions),
        (record.SLOTS, slots),
        (record.TILES, tiles),
        (record.OUTPUT_ROWS, rows),
        (record.WINDOW_SLOTS, window_slots),
    ]
    for offset, values in expected:
        assert arrays[offset][: len(values)].tolist() == values
    assert tables[: len(table)].tolist() == table


@pytest.mark.parametrize(
    "context, units, parts",
    [(PART_TOKENS, 8, 0), (PART_TOKENS + 1, 8, 2), (2048, 8, 4), (2048, HEADS, 0), (2048, HEADS + 1, 4), (2048, 0, 0)],
)
def test_the_context_is_split_where_units_are_few(context: int, units: int, parts: int) -> None:
    pages = list(range(-(-context // PAGE_TOKENS)))
    status, batch, *_ = run([([1], context - 1, pages, "last")], units=units)
    assert (status, batch[record.SPLIT // 8]) == (0, parts)


GOOD = ([1, 2, 3], 62, [4, 5], "last")


@pytest.mark.parametrize(
    "chunk",
    [
        ([-1], 0, [4], "last"),
        ([VOCAB], 0, [4], "last"),
        ([2**63 - 1], 0, [4], "last"),
        ([1], -1, [4], "last"),
        ([1, 2, 3], CONTEXT - 2, list(range(33)), "last"),
        ([1], 2**63 - 1, [4], "last"),
        ([1], 64, [4], "last"),
        ([1], 0, [], "last"),
        ([1], 0, [-1], "last"),
        ([1], 0, [N_PAGES], "last"),
        ([1], 0, [4, 2**62], "last"),
        ([1], 0, [6], "last"),
        ([1] * (ROWS - 2), 0, [4], "last"),
        ([1], 5, [4], "last", 6),
        ([1], 5, [4], "last", -1),
        ([1], 5, [4], "last", 2**62),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_numbers_out_of_range_are_refused(chunk: tuple, before: int) -> None:
    used = np.ones(N_PAGES, np.bool_)
    used[6] = False
    chunks = [GOOD] * before + [chunk] + [GOOD] * (1 - before)
    assert run(chunks, used)[0] == 1
    assert run([GOOD], used)[0] == 0


#: The third page is the first that position 130 sees through a window of 3.
WINDOWED = ([1, 2], 130, [4, 5, 7], "last", 0, [9])


@pytest.mark.parametrize("window_pages", [[], [-1], [N_WINDOW_PAGES], [2**62], [6], [9, 6]])
@pytest.mark.parametrize("before", [0, 1])
def test_pages_for_windows_out_of_range_are_refused(window_pages: list[int], before: int) -> None:
    window_used = np.ones(N_WINDOW_PAGES, np.bool_)
    window_used[6] = False
    chunks = [WINDOWED] * before + [(*WINDOWED[:5], window_pages)] + [WINDOWED] * (1 - before)
    assert run(chunks, window=3, window_used=window_used)[0] == 1
    assert run([WINDOWED], window=3, window_used=window_used)[0] == 0
    assert run([WINDOWED], window=4, window_used=window_used)[0] == 1, "the page before is seen as well"
