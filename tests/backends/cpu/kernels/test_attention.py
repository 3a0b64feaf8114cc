"""Attention over a paged cache against a float64 softmax, and the same bits however queries are tiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gumba.backends.cpu.kernels import attention as attention_module
from gumba.backends.cpu.kernels import attention_block, attention_layout, attention_softmax, page_format
from gumba.backends.cpu.kernels.attention import attention
from gumba.backends.cpu.kernels.attention_layout import (
    TILE_ROWS,
    Variant,
    partials_bytes,
    scratch_bytes,
    split_units,
    tile_rows,
    tile_tokens,
)
from gumba.backends.cpu.kernels.page_format import BLOCK_ROWS, PART_TOKENS, SCRATCH
from gumba.backends.cpu.kv_pages import PAGE_FORMATS, bf16, q8_0
from gumba.backends.cpu.kv_pages import float as float_pages
from gumba.backends.cpu.packing import aligned_empty
from gumba.simd import maths
from gumba.simd.isa import Isa
from support import kernel_setups
from support.kernel_harness import (
    ISAS,
    ISAS_BUT_BF16,
    Batch,
    Setup,
    address,
    isa_id,
    isas_with,
    read_of_isa,
    same_bits,
)
from support.kernel_setups_attention import Cache

ISA = ISAS[0]


def isas_for(kv_type: str) -> list[Isa]:
    """The instruction sets with an attention of their own for these pages."""
    products = page_format.rank_update, page_format._update, page_format.float_product, page_format.wide_registers
    modules = attention_module, attention_block, attention_layout, attention_softmax, maths
    read = read_of_isa(*modules, *products, {"bf16": bf16, "q8_0": q8_0}.get(kv_type, float_pages))
    assert {"lanes", "registers"} <= read and ("dot_bf16" in read) == (kv_type == "bf16")
    return ISAS_BUT_BF16 if kv_type == "q8_0" else isas_with(read)  # q8_0's integer products are in other modules


@pytest.mark.parametrize(
    "isa, kv_type", [(isa, kv_type) for kv_type in PAGE_FORMATS for isa in isas_for(kv_type)], ids=isa_id
)
def test_every_instruction_set_and_cache_type(isa: Isa, kv_type: str) -> None:
    kernel_setups.setup_attention(isa, kv_type).check()
    kernel_setups.setup_store_kv(isa, kv_type).check()


@pytest.mark.parametrize("group", [1, 3, 8, 40])
@pytest.mark.parametrize("head_dim", [24, 64, 80])
def test_group_and_head_sizes(group: int, head_dim: int) -> None:
    """40 heads in a group are more rows than a tile aims at."""
    for kv_type in ("f16", "f32", "bf16", "q8_0"):
        kernel_setups.setup_attention(ISA, kv_type, group, head_dim, kv_heads=1 if group == 40 else 2).check()


@pytest.mark.parametrize(
    "past, new",
    [(0, 1), (0, 63), (0, 64), (0, 65), (62, 2), (63, 1), (64, 1), (191, 66), (506, 12), (1100, 5), (0, 300)],
)
def test_contexts_that_end_anywhere_in_a_page_or_part(past: int, new: int) -> None:
    kernel_setups.setup_attention(ISA, sequences=[(past, new)], head_dim=20).check()


@pytest.mark.parametrize("group", [1, 3, 8])
def test_same_bits_for_any_tiling(group: int) -> None:
    """A row's numbers do not depend on the queries that share its tile, down to one query per tile."""
    tiles = {1, 2, 3, 5, tile_tokens(group)}
    results = [
        kernel_setups.setup_attention(ISA, group=group, tile=tile).run() for tile in tiles if tile <= tile_tokens(group)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(same_bits(other), same_bits(results[0]))


@pytest.mark.parametrize("isa", isas_for("f16"), ids=isa_id)
def test_same_bits_token_by_token(isa: Isa) -> None:
    """Queries of a long prompt, and the same queries as a chunk of their own."""
    setup = kernel_setups.setup_attention(isa, sequences=[(0, 526)], group=3)
    whole = setup.run()
    block_table = setup.batch.tiles[0][3]
    for first in (525, 513, 512, 511, 129, 128, 127, 64, 63, 1):
        one = Batch(526, tiles=[(first, 1, first, block_table, 526, 0)])
        np.testing.assert_array_equal(same_bits(setup.run(batch=one)[first]), same_bits(whole[first]))


#: Parts that a step's last tokens share with none, one and several before; tiles of different length in one step.
SPLIT = [[(511, 1)], [(512, 1)], [(2047, 1)], [(2048, 3)], [(510, 4)], [(5, 1), (1200, 1)], [(1400, 2), (0, 1)]]


@pytest.mark.parametrize("sequences", SPLIT, ids=str)
@pytest.mark.parametrize("isa", isas_for("f16"), ids=isa_id)
def test_same_bits_when_threads_share_a_context(isa: Isa, sequences: list[tuple[int, int]]) -> None:
    """The parts of the context as units of their own, with any number of threads, in any order, time after time."""
    whole = kernel_setups.setup_attention(isa, sequences=sequences, kv_heads=1)
    parted = kernel_setups.setup_attention(isa, sequences=sequences, kv_heads=1, split=True)
    assert len(parted.batch.tiles) < split_units(1)
    np.testing.assert_array_equal(same_bits(parted.check()), same_bits(whole.check()))
    counters = parted.keep[2][: 64 * split_units(1)]  # more threads keep more, but no more are used here
    assert not counters.any(), "ready for the next step"


def test_split_context_of_any_group() -> None:
    for group, head_dim in ((1, 24), (8, 64), (40, 80)):
        for kv_type in ("f16", "f32", "bf16", "q8_0"):
            sizes = {"group": group, "head_dim": head_dim, "sequences": [(520, 1)], "kv_heads": 2}
            parted = kernel_setups.setup_attention(ISA, kv_type, split=True, **sizes)
            np.testing.assert_array_equal(
                same_bits(parted.check()), same_bits(kernel_setups.setup_attention(ISA, kv_type, **sizes).run())
            )


def test_partials_stay_in_their_memory() -> None:
    """What ``partials_bytes`` promises is enough, to the byte, for as many units as are ever split."""
    for n_threads in (1, 2, 3):
        units = split_units(n_threads) - 1
        setup = kernel_setups.setup_attention(ISA, sequences=[(511, 1)] * units, kv_heads=1, split=True)
        size = partials_bytes(3, 32, n_threads, 512)
        guarded = aligned_empty(size + 4096)
        guarded[:] = 0x5A
        guarded[: 64 * split_units(n_threads)] = 0
        setup.arguments["partials"] = address(guarded)
        got = setup.run(n_threads)
        assert np.abs(got - setup.expected).max() < 1e-5
        assert (guarded[size:] == 0x5A).all()


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0"])
def test_large_scores(kv_type: str) -> None:
    """Scores of some hundreds: e^x alone would be infinite."""
    setup = kernel_setups.setup_attention(ISA, kv_type, sharpness=300.0)
    setup.tolerance = 2e-3
    setup.check()


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0"])
@pytest.mark.parametrize("tokens", [2, 75, 76])
def test_a_later_token_changes_nothing_before_it(kv_type: str, tokens: int) -> None:
    """Not even one whose key and value are no numbers: nothing of it may be multiplied, not even by a weight of 0."""
    setup = kernel_setups.setup_attention(ISA, kv_type, sequences=[(0, tokens)])
    before = setup.run()[:-1]
    cache = setup.keep[1]
    assert isinstance(cache, Cache)
    with np.errstate(invalid="ignore"):
        cache.write(0, tokens - 1, np.full((2, 24), np.nan, np.float32), np.full((2, 24), np.inf, np.float32))
    after = setup.run()
    np.testing.assert_array_equal(same_bits(after[:-1]), same_bits(before))
    assert np.isnan(after[-1]).all()


def test_one_key_gives_its_value() -> None:
    setup = kernel_setups.setup_attention(ISA, "f32", group=1, sequences=[(0, 1)])
    np.testing.assert_array_equal(setup.run(), setup.expected.astype(np.float32))


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 12, 31, 32, 33, 40])
def test_scratch_holds_a_tile(group: int) -> None:
    rows = tile_tokens(group) * group
    assert tile_tokens(group) >= 1 and (rows <= TILE_ROWS or tile_tokens(group) == 1)
    assert tile_rows(group) >= rows and tile_rows(group) % BLOCK_ROWS == 0
    for head_dim in (24, 64, 80):
        for pages in PAGE_FORMATS.values():
            size = scratch_bytes(pages, group, head_dim, head_dim)
            results = (tile_rows(group) + BLOCK_ROWS) * 4 * (pages.v_row(head_dim) + 16)
            queries = tile_rows(group) * pages.query_bytes(head_dim)
            assert size >= queries + results + BLOCK_ROWS * 4 * PART_TOKENS + SCRATCH
            assert size % 64 == 0


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "q8_0"])
def test_scratch_is_not_left(kv_type: str) -> None:
    """Each thread keeps to its own scratch: guards before, between and after."""
    for group in (1, 3, 40):
        setup = kernel_setups.setup_attention(ISA, kv_type, group=group, kv_heads=1)
        size = int(setup.arguments["scratch_bytes"])
        guarded = aligned_empty(6 * (size + 64))
        guarded[:] = 0x5A
        setup.arguments["scratch"] = address(guarded) + 64
        setup.arguments["scratch_bytes"] = size + 64
        setup.run(3)
        parts = guarded[64:].copy()
        for thread in range(3):
            assert (parts[thread * (size + 64) + size : (thread + 1) * (size + 64)] == 0x5A).all()
        assert (guarded[:64] == 0x5A).all() and (parts[3 * (size + 64) :] == 0x5A).all()
        assert not (parts[:size] == 0x5A).all()


# What some architectures add -----------------------------------------------------------------------------------------------

#: Options of each kind alone and together, as architectures have them.
OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"window": 50},
    "cap": {"cap": 3.0},
    "sinks": {"sinks": True},
    "slopes": {"slopes": True},
    "whole": {"causal": False},
    "window of one": {"window": 1},
    "window, cap": {"window": 70, "cap": 1.5},
    "window, sinks": {"window": 129, "sinks": True},
    "whole, window": {"causal": False, "window": 33},
    "whole, slopes": {"causal": False, "slopes": True},
    "chunk": {"chunk": 30},
    "chunk, cap": {"chunk": 96, "cap": 3.0},
    "answer, bias": {"answer": True, "reach": 21},
    "cross": {"cross": True},
    "whole, bias": {"causal": False, "reach": 40},
    "bias of one": {"reach": 1},
    "all": {"causal": False, "window": 65, "cap": 2.0, "sinks": True, "slopes": True},
}
#: Each is code of its own, which takes seconds to compile: all with float32 pages, whose kernels the tests of models compile
#: too, and of the other formats those where the format matters.
CHOSEN = [(name, "f32") for name in OPTIONS] + [
    (name, kv_type) for name in ("whole", "window, cap", "answer, bias", "all") for kv_type in ("f16", "bf16", "q8_0")
]


def tolerance(setup: Setup, kv_type: str) -> Setup:
    """bfloat16 rounds weights too: a sum of few of them is not rounded away."""
    setup.tolerance = {"bf16": 1.5e-2}.get(kv_type, 2e-5)
    return setup


@pytest.mark.parametrize("name, kv_type", CHOSEN)
def test_options(name: str, kv_type: str) -> None:
    """Several sequences and pages, tiles of many rows, shares of several threads."""
    for group, head_dim in ((3, 24), (1, 80)):
        tolerance(kernel_setups.setup_attention(ISA, kv_type, group, head_dim, **OPTIONS[name]), kv_type).check()


@pytest.mark.parametrize(
    "isa, name, kv_type",
    [
        (isa, name, kv_type)
        for name, kv_type in (("all", "f16"), ("all", "bf16"), ("all", "q8_0"), ("answer, bias", "f16"))
        for isa in isas_for(kv_type)
    ],
    ids=isa_id,
)
def test_options_on_every_instruction_set(isa: Isa, name: str, kv_type: str) -> None:
    tolerance(kernel_setups.setup_attention(isa, kv_type, **OPTIONS[name]), kv_type).check()


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 63, 64, 65, 128, 500, 511, 512, 513, 600, 1024, 5000])
@pytest.mark.parametrize("causal", [True, False])
def test_windows_of_any_size(window: int, causal: bool) -> None:
    """That begin and end anywhere in a page or part; what lies before them is not read."""
    sequences = [(0, 75), (1030, 1), (505, 14), (1023, 3)]
    for kv_type in ("f32", "bf16"):
        setup = kernel_setups.setup_attention(
            ISA, kv_type, sequences=sequences, window=window, causal=causal, kv_heads=1
        )
        tolerance(setup, kv_type).check()


@pytest.mark.parametrize("name, kv_type", CHOSEN)
def test_options_have_the_same_bits_for_any_tiling(name: str, kv_type: str) -> None:
    """However many queries share a tile, and whether threads share the context: a row's numbers are its own."""
    sequences = [(0, 20), (1015, 20)]
    sizes = {"group": 3, "kv_heads": 1, "sequences": sequences, **OPTIONS[name]}
    whole = kernel_setups.setup_attention(ISA, kv_type, **sizes).run()
    for tile in (1, 2, 5):
        np.testing.assert_array_equal(
            same_bits(kernel_setups.setup_attention(ISA, kv_type, tile=tile, **sizes).run()), same_bits(whole)
        )


@pytest.mark.parametrize(
    "isa, kv_type, name",
    [*((ISA, "f32", name) for name in OPTIONS), *((isa, "f16", "all") for isa in isas_for("f16"))],
    ids=isa_id,
)
def test_options_have_the_same_bits_when_threads_share_a_context(isa: Isa, kv_type: str, name: str) -> None:
    for sequences in ([(1030, 1)], [(1020, 7)], [(2047, 1), (0, 1)]):
        sizes = {"sequences": sequences, "kv_heads": 1, **OPTIONS[name]}
        alone = tolerance(kernel_setups.setup_attention(isa, kv_type, **sizes), kv_type)
        parted = tolerance(kernel_setups.setup_attention(isa, kv_type, split=True, **sizes), kv_type)
        np.testing.assert_array_equal(same_bits(parted.check()), same_bits(alone.check()))
        assert not parted.keep[2][: 64 * split_units(1)].any(), "ready for the next step"


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0"])
def test_a_token_before_the_window_changes_nothing(kv_type: str) -> None:
    """Not even one whose key and value are no numbers. (Of bfloat16 pairs, the whole pair lies before it.)"""
    setup = kernel_setups.setup_attention(ISA, kv_type, sequences=[(600, 9)], window=100)
    before = setup.run()
    cache = setup.keep[1]
    assert isinstance(cache, Cache)
    for position in range(576 - 64, 600):
        with np.errstate(invalid="ignore"):
            cache.write(0, position, np.full((2, 24), np.nan, np.float32), np.full((2, 24), np.inf, np.float32))
        after = setup.run()
        clean = [t for t in range(9) if 600 + t - 99 > position + (kv_type == "bf16")]
        np.testing.assert_array_equal(same_bits(after[clean]), same_bits(before[clean]))
        assert np.isnan(after[[t for t in range(9) if 600 + t - 99 <= position]]).all()
        if not clean:
            break


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0"])
@pytest.mark.parametrize("head_dim, v_dim", [(24, 16), (16, 72), (80, 33), (192, 128), (7, 5)])
def test_values_of_another_size_than_keys(head_dim: int, v_dim: int, kv_type: str) -> None:
    for group in (1, 3):
        kernel_setups.setup_attention(ISA, kv_type, group, head_dim, v_dim=v_dim).check()
    kernel_setups.setup_attention(
        ISA, kv_type, 2, head_dim, v_dim=v_dim, sequences=[(1030, 1)], kv_heads=1, split=True
    ).check()
    kernel_setups.setup_store_kv(ISA, kv_type, head_dim, v_dim=v_dim).check()


def test_sinks_far_above_and_below_the_scores() -> None:
    """A sink that takes all, and one that takes nothing."""
    setup = kernel_setups.setup_attention(ISA, "f32", sinks=True, sequences=[(0, 9)])
    sinks = setup.keep[3]["sinks"]
    sinks[:] = [-np.inf, -1e4, -200, 200, 1e4, 0]
    plain = kernel_setups.setup_attention(ISA, "f32", sequences=[(0, 9)]).run().reshape(9, 6, 24)
    got = setup.run().reshape(9, 6, 24)
    np.testing.assert_allclose(got[:, :3], plain[:, :3], rtol=1e-6)
    assert (np.abs(got[:, 3:5]) < 1e-30).all() and np.isfinite(got).all()
    assert (np.abs(got[:, 5]) < np.abs(plain[:, 5])).all()


def test_a_plain_attention_is_code_of_its_own() -> None:
    """Nothing that others ask for is part of it."""
    pages = PAGE_FORMATS["f16"]
    assert attention(ISA, pages).name == f"attention[{ISA.name},f16]"
    assert attention(ISA, pages, Variant(window=True, sinks=True)).name == f"attention[{ISA.name},f16,window,sinks]"
