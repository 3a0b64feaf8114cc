"""The tokens whose logits are needed, as a step of their own: for layers that store nothing that another token reads."""

from __future__ import annotations

from gumba.backends.cpu.kernels.record import (
    N_OUTPUTS,
    N_TILES,
    N_TOKENS,
    OUTPUT_ROWS,
    OUTPUTS_VIEW,
    POSITIONS,
    SPLIT,
    TILE_WORDS,
    TILES,
    kernel,
)
from gumba.simd.memory import load_i32, load_i64, store_i32, store_i64


@kernel
def view_outputs(batch, thread, n_threads):
    """Fill the record behind the batch's (OUTPUTS_VIEW): positions and tiles of the rows whose logits are needed, by one thread.

    A tile's needed tokens are consecutive: its chunk needs the logits of all, or of the last one. How the context is split for a
    step is kept: there are no more tiles than before.
    """
    if thread == 0:
        view = batch + OUTPUTS_VIEW
        n, rows, positions = load_i64(batch + N_OUTPUTS), load_i64(batch + OUTPUT_ROWS), load_i64(batch + POSITIONS)
        tile, out = load_i64(batch + TILES), load_i64(view + TILES)
        n_tiles, i = 0, 0
        for _ in range(load_i64(batch + N_TILES)):
            first = i
            while i < n and load_i32(rows + 4 * i) < load_i64(tile) + load_i64(tile + 8):
                store_i32(load_i64(view + POSITIONS) + 4 * i, load_i32(positions + 4 * load_i32(rows + 4 * i)))
                i += 1
            if i > first:
                for word in range(TILE_WORDS):
                    store_i64(out + 8 * word, load_i64(tile + 8 * word))
                store_i64(out, first)
                store_i64(out + 8, i - first)
                store_i64(out + 16, load_i32(load_i64(view + POSITIONS) + 4 * first))
                out += 8 * TILE_WORDS
                n_tiles += 1
            tile += 8 * TILE_WORDS
        store_i64(view + N_TOKENS, n)
        store_i64(view + N_OUTPUTS, n)
        store_i64(view + N_TILES, n_tiles)
        store_i64(view + SPLIT, load_i64(batch + SPLIT))
