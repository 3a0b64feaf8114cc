"""Attention over a paged cache against a float64 softmax, and the same bits however queries are tiled."""

from __future__ import annotations

import numpy as np
import pytest
import setups
from harness import ISAS, Batch, isa_id, same_bits

from gumba.kernels.attention import (
    BLOCK_ROWS,
    TILE_ROWS,
    partials_bytes,
    scratch_bytes,
    split_units,
    tile_rows,
    tile_tokens,
)
from gumba.kernels.pages import PART_TOKENS, SCRATCH, page_formats
from gumba.simd.isa import Isa

ISA = ISAS[0]


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0"])
@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
def test_every_instruction_set_and_cache_type(isa: Isa, kv_type: str) -> None:
    setups.setup_attention(isa, kv_type).check()
    setups.setup_store_kv(isa, kv_type).check()


@pytest.mark.parametrize("group", [1, 3, 8, 40])
@pytest.mark.parametrize("head_dim", [24, 64, 80])
def test_group_and_head_sizes(group: int, head_dim: int) -> None:
    """40 heads in a group are more rows than a tile aims at."""
    for kv_type in ("f16", "f32", "bf16", "q8_0"):
        setups.setup_attention(ISA, kv_type, group, head_dim, kv_heads=1 if group == 40 else 2).check()


@pytest.mark.parametrize(
    "past, new",
    [(0, 1), (0, 63), (0, 64), (0, 65), (62, 2), (63, 1), (64, 1), (191, 66), (506, 12), (1100, 5), (0, 300)],
)
def test_contexts_that_end_anywhere_in_a_page_or_part(past: int, new: int) -> None:
    setups.setup_attention(ISA, sequences=[(past, new)], head_dim=20).check()


@pytest.mark.parametrize("group", [1, 3, 8])
def test_same_bits_for_any_tiling(group: int) -> None:
    """A row's numbers do not depend on the queries that share its tile, down to one query per tile."""
    tiles = {1, 2, 3, 5, tile_tokens(group)}
    results = [
        setups.setup_attention(ISA, group=group, tile=tile).run() for tile in tiles if tile <= tile_tokens(group)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(same_bits(other), same_bits(results[0]))


@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
def test_same_bits_token_by_token(isa: Isa) -> None:
    """Queries of a long prompt, and the same queries as a chunk of their own."""
    setup = setups.setup_attention(isa, sequences=[(0, 526)], group=3)
    whole = setup.run()
    block_table = setup.batch.tiles[0][3]
    for first in (525, 513, 512, 511, 129, 128, 127, 64, 63, 1):
        one = Batch(526, tiles=[(first, 1, first, block_table)])
        np.testing.assert_array_equal(same_bits(setup.run(batch=one)[first]), same_bits(whole[first]))


#: Parts that a step's last tokens share with none, one and several before; tiles of different length in one step.
SPLIT = [[(511, 1)], [(512, 1)], [(2047, 1)], [(2048, 3)], [(510, 4)], [(5, 1), (1200, 1)], [(1400, 2), (0, 1)]]


@pytest.mark.parametrize("sequences", SPLIT, ids=str)
@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
def test_same_bits_when_threads_share_a_context(isa: Isa, sequences: list[tuple[int, int]]) -> None:
    """The parts of the context as units of their own, with any number of threads, in any order, time after time."""
    whole = setups.setup_attention(isa, sequences=sequences, kv_heads=1)
    parted = setups.setup_attention(isa, sequences=sequences, kv_heads=1, split=True)
    assert len(parted.batch.tiles) < split_units(1)
    np.testing.assert_array_equal(same_bits(parted.check()), same_bits(whole.check()))
    counters = parted.keep[-1][: 64 * split_units(1)]  # more threads keep more, but no more are used here
    assert not counters.any(), "ready for the next step"


def test_split_context_of_any_group() -> None:
    for group, head_dim in ((1, 24), (8, 64), (40, 80)):
        for kv_type in ("f16", "f32", "bf16", "q8_0"):
            sizes = {"group": group, "head_dim": head_dim, "sequences": [(520, 1)], "kv_heads": 2}
            parted = setups.setup_attention(ISA, kv_type, split=True, **sizes)
            np.testing.assert_array_equal(
                same_bits(parted.check()), same_bits(setups.setup_attention(ISA, kv_type, **sizes).run())
            )


def test_partials_stay_in_their_memory() -> None:
    """What ``partials_bytes`` promises is enough, to the byte, for as many units as are ever split."""
    for n_threads in (1, 2, 3):
        units = split_units(n_threads) - 1
        setup = setups.setup_attention(ISA, sequences=[(511, 1)] * units, kv_heads=1, split=True)
        size = partials_bytes(3, 32, n_threads, 512)
        guarded = setups.aligned_empty(size + 4096)
        guarded[:] = 0x5A
        guarded[: 64 * split_units(n_threads)] = 0
        setup.arguments["partials"] = setups.address(guarded)
        got = setup.run(n_threads)
        assert np.abs(got - setup.expected).max() < 1e-5
        assert (guarded[size:] == 0x5A).all()


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0"])
def test_large_scores(kv_type: str) -> None:
    """Scores of some hundreds: e^x alone would be infinite."""
    setup = setups.setup_attention(ISA, kv_type, sharpness=300.0)
    setup.tolerance = 2e-3
    setup.check()


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0"])
@pytest.mark.parametrize("tokens", [2, 75, 76])
def test_a_later_token_changes_nothing_before_it(kv_type: str, tokens: int) -> None:
    """Not even one whose key and value are no numbers: nothing of it may be multiplied, not even by a weight of 0."""
    setup = setups.setup_attention(ISA, kv_type, sequences=[(0, tokens)])
    before = setup.run()[:-1]
    cache = setup.keep[1]
    assert isinstance(cache, setups.Cache)
    with np.errstate(invalid="ignore"):
        cache.write(0, tokens - 1, np.full((2, 24), np.nan, np.float32), np.full((2, 24), np.inf, np.float32))
    after = setup.run()
    np.testing.assert_array_equal(same_bits(after[:-1]), same_bits(before))
    assert np.isnan(after[-1]).all()


def test_one_key_gives_its_value() -> None:
    setup = setups.setup_attention(ISA, "f32", group=1, sequences=[(0, 1)])
    np.testing.assert_array_equal(setup.run(), setup.expected.astype(np.float32))


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 12, 31, 32, 33, 40])
def test_scratch_holds_a_tile(group: int) -> None:
    rows = tile_tokens(group) * group
    assert tile_tokens(group) >= 1 and (rows <= TILE_ROWS or tile_tokens(group) == 1)
    assert tile_rows(group) >= rows and tile_rows(group) % BLOCK_ROWS == 0
    for head_dim in (24, 64, 80):
        for pages in page_formats().values():
            size = scratch_bytes(pages, group, head_dim)
            results = (tile_rows(group) + BLOCK_ROWS) * 4 * (pages.v_row(head_dim) + 16)
            queries = tile_rows(group) * pages.query_bytes(head_dim)
            assert size >= queries + results + BLOCK_ROWS * 4 * PART_TOKENS + SCRATCH
            assert size % 64 == 0


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "q8_0"])
def test_scratch_is_not_left(kv_type: str) -> None:
    """Each thread keeps to its own scratch: guards before, between and after."""
    for group in (1, 3, 40):
        setup = setups.setup_attention(ISA, kv_type, group=group, kv_heads=1)
        size = int(setup.arguments["scratch_bytes"])
        guarded = setups.aligned_empty(6 * (size + 64))
        guarded[:] = 0x5A
        setup.arguments["scratch"] = setups.address(guarded) + 64
        setup.arguments["scratch_bytes"] = size + 64
        setup.run(3)
        parts = guarded[64:].copy()
        for thread in range(3):
            assert (parts[thread * (size + 64) + size : (thread + 1) * (size + 64)] == 0x5A).all()
        assert (guarded[:64] == 0x5A).all() and (parts[3 * (size + 64) :] == 0x5A).all()
        assert not (parts[:size] == 0x5A).all()
