"""Attention as a program has it: layers of different shapes in one cache, options, several steps and threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gumba import backends
from gumba.backends.cache_shapes import KVShape
from gumba.backends.cpu.kernels import record
from gumba.backends.cpu.kernels.attention_layout import split_units, tile_tokens
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.runner.kv_cache import KVCache
from gumba.simd.detect import current
from support import kernel_oracles, programs
from support.programs import batch, named, walk

SHAPES = [KVShape(2, 12, 12), KVShape(0, 1, 1), KVShape(1, 16, 40), KVShape(3, 8, 8, window=50)]
N_HEADS = 6
SINKS = np.linspace(-1, 3, N_HEADS).astype(np.float32)
SLOPES = np.float32(0.5) ** np.arange(1, N_HEADS + 1, dtype=np.float32)
BIAS = np.random.default_rng(3).standard_normal((N_HEADS, 61)).astype(np.float32)
#: Tokens of every sequence that are said to be its source (the kernels read it where a variant needs it).
N_SOURCE = 1
#: Tokens of a sequence in each step.
STEPS = [(70, 1), (1, 130), (3, 3)]

#: (layer, options of ``Program.attention``, the same for the oracle).
CASES: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    (0, {}, {}),
    (2, {}, {}),
    (3, {"window": 40, "softcap": 2.0}, {"window": 40, "cap": 2.0}),
    (2, {"sinks": SINKS}, {"sinks": SINKS}),
    (0, {"slopes": SLOPES}, {"slopes": SLOPES}),
    (3, {"chunk": 50}, {"chunk": 50}),
    (2, {"bias": BIAS}, {"bias": BIAS}),
    (0, {"part": "source"}, {"cross": N_SOURCE}),
]
#: Those for another page format than float32: the code of most options together, in kernels that other tests compile too.
TOGETHER: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    *CASES[:2],
    (3, {"causal": False, "window": 40, "softcap": 2.0, "sinks": SINKS, "slopes": SLOPES}, {}),
    (2, {"part": "answer", "bias": BIAS}, {}),
]


def attentions(p: Program, kv: KVCache, cases: list[tuple[int, dict[str, Any], dict[str, Any]]]) -> list[list[Buffer]]:
    """q, k, v and result of each case, with one token table after the other."""
    made = []
    for layer, options, _ in cases:
        shape = SHAPES[layer]
        widths = (N_HEADS * shape.head_dim, shape.n_kv_heads * shape.head_dim, shape.n_kv_heads * shape.v_dim)
        q, k, v = (p.embed(programs.matrix(named("f32"), 50, width, width + layer)) for width in widths)
        q, k, v = (p.scale(b, 4.0) for b in (q, k, v))
        made.append([q, k, v, p.attention(q, k, v, layer, 0.3, **options)])
    return made


def run(
    n_threads: int, order: list[int], write: Callable[[Program, KVCache], list[Buffer]], kv_type: str = "f32"
) -> list[list[np.ndarray]]:
    """Rows of the buffers that ``write`` names, for each step of two sequences."""
    kv = KVCache(backends.get(), SHAPES, 7, kv_type, n_window_pages=9)
    assert kv.window_pool is not None
    p = Program(current(), n_threads, 140, 300, kv=kv.memory.layouts)
    kept = write(p, kv)
    records = p.finish(kept)
    tables = [np.array(kv.allocate(3), np.int32) for _ in STEPS[0]]
    window_tables = [np.array(kv.window_pool.allocate(3), np.int32) for _ in STEPS[0]]
    rng = np.random.default_rng(0)
    past, found = [0, 0], []
    for sizes in STEPS:
        tokens = rng.integers(0, 50, sum(sizes)).astype(np.int32)
        positions = np.concatenate([np.arange(at, at + n) for at, n in zip(past, sizes)]).astype(np.int32)
        tables_of = [table for table, n in zip(tables, sizes) for _ in range(n)]
        slots = np.array([int(t[at // 64]) * 64 + at % 64 for t, at in zip(tables_of, positions)], np.int64)
        window_table_of = [table for table, n in zip(window_tables, sizes) for _ in range(n)]
        window_slots = np.array(
            [int(t[at // 64]) * 64 + at % 64 for t, at in zip(window_table_of, positions)], np.int64
        )
        tiles, start = [], 0
        for table, window_table, at, n in zip(tables, window_tables, past, sizes):
            window_table[: kv.first_read(at)] = -1
            for i in range(0, n, tile_tokens(p.most_grouped)):
                count = min(tile_tokens(p.most_grouped), n - i)
                tiles.append([start + i, count, at + i, table.ctypes.data, at + n, N_SOURCE, window_table.ctypes.data])
            start += n
        held = np.array(tiles, np.int64)
        assert held.shape[1] == record.TILE_WORDS
        words = batch(len(tokens), tokens)
        for offset, array in (
            (record.POSITIONS, positions),
            (record.SLOTS, slots),
            (record.WINDOW_SLOTS, window_slots),
            (record.TILES, held),
        ):
            words[offset // 8] = array.ctypes.data
        words[record.N_TILES // 8] = len(tiles)
        walk(records, words, n_threads, order)
        found.append([p.rows(b)[: len(tokens), : b.width].copy() for b in kept])
        past = [at + n for at, n in zip(past, sizes)]
    return found


@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_layer_has_its_shape_and_options(case: int) -> None:
    layer, _, options = CASES[case]
    shape = SHAPES[layer]
    found = run(1, [0], lambda p, kv: [b for made in attentions(p, kv, CASES[: case + 1])[case:] for b in made])
    sequences: list[list[list[np.ndarray]]] = [[[], [], []], [[], [], []]]
    for (q, k, v, out), sizes in zip(found, STEPS):
        start = 0
        for i, n in enumerate(sizes):
            past = sum(map(len, sequences[i][1]))
            for kept, x in zip(sequences[i], (q, k, v)):
                kept.append(x[start : start + n])
            keys = np.concatenate(sequences[i][1]).reshape(-1, shape.n_kv_heads, shape.head_dim)
            values = np.concatenate(sequences[i][2]).reshape(-1, shape.n_kv_heads, shape.v_dim)
            queries = q[start : start + n].reshape(n, N_HEADS, shape.head_dim)
            expected = kernel_oracles.attention(queries, keys, values, past, 0.3, **options)
            np.testing.assert_allclose(out[start : start + n], expected.reshape(n, -1), rtol=2e-5, atol=2e-5)
            start += n


def test_a_whole_sequence_is_seen_where_it_is_not_causal() -> None:
    """In one step: what is in the cache after the step's store."""
    found = run(2, [0, 1], lambda p, kv: attentions(p, kv, [(0, {"causal": False, "window": 30}, {})])[0])[0]
    q, k, v = (x[:70].reshape(70, -1, 12) for x in found[:3])
    expected = kernel_oracles.attention(q, k, v, 0, 0.3, causal=False, window=30).reshape(70, -1)
    np.testing.assert_allclose(found[3][:70], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kv_type, cases", [("f32", CASES), ("q8_0", TOGETHER)])
def test_any_timing_and_number_of_threads_gives_the_same(kv_type: str, cases: list[Any]) -> None:
    def write(p: Program, kv: KVCache) -> list[Buffer]:
        return [made[3] for made in attentions(p, kv, cases)]

    first = run(1, [0], write, kv_type)
    for n_threads, order in ((3, [0, 1, 2]), (3, [2, 1, 0]), (4, [1, 3, 0, 2])):
        for step, expected in zip(run(n_threads, order, write, kv_type), first):
            for got, want in zip(step, expected):
                np.testing.assert_array_equal(got, want)


def test_a_layer_can_read_what_another_has_stored() -> None:
    """Other queries with the same keys and values: stored once, waited for."""

    def write(p: Program, kv: KVCache) -> list[Buffer]:
        q, _, _, one = attentions(p, kv, [CASES[1]])[0]
        other = p.attention(p.scale(q, -1.0), None, None, 2, -0.3)
        return [one, other]

    for n_threads in (1, 3):
        for one, other in run(n_threads, list(range(n_threads))[::-1], write):
            np.testing.assert_array_equal(one, other)  # -q with -scale


def test_a_program_knows_what_bounds_its_tiles() -> None:
    kv = KVCache(backends.get(), SHAPES, 7, "f16", n_window_pages=7)
    p = Program(current(), 2, 8, 300, kv=kv.memory.layouts)
    assert (p.most_grouped, p.most_kv_heads) == (1, 1)
    attentions(p, kv, [CASES[0], CASES[1]])
    assert (p.most_grouped, p.most_kv_heads) == (6, 2)
    attentions(p, kv, [CASES[2]])
    assert (p.most_grouped, p.most_kv_heads) == (6, 3)
    assert split_units(2) == 8


def test_attention_checks_what_it_is_given() -> None:
    kv = KVCache(backends.get(), SHAPES, 7, "f16", n_window_pages=7)
    p = Program(current(), 1, 8, 300, kv=kv.memory.layouts)
    q, k, v = (p.embed(programs.matrix(named("f32"), 50, width)) for width in (72, 24, 24))
    wrong: list[Callable[[], object]] = [
        lambda: p.attention(q, k, v, 0, 0.3, sinks=SINKS[:5]),
        lambda: p.attention(q, k, v, 0, 0.3, slopes=SLOPES[:1]),
        lambda: p.attention(k, k, q, 0, 0.3),
        lambda: p.attention(q, q, v, 0, 0.3),
        lambda: p.attention(q, k, None, 0, 0.3),
        lambda: p.attention(v, k, v, 2, 0.3),
        lambda: p.attention(q, k, v, 1, 0.3),
        lambda: p.attention(q, k, v, 0, 0.3, window=-1),
        lambda: p.attention(q, None, None, 0, 0.3),
        lambda: p.attention(q, k, v, 0, 0.3, chunk=-1),
        lambda: p.attention(q, k, v, 0, 0.3, window=9, chunk=9),
        lambda: p.attention(q, k, v, 0, 0.3, chunk=9, causal=False),
        lambda: p.attention(q, k, v, 0, 0.3, slopes=SLOPES, bias=BIAS),
        lambda: p.attention(q, k, v, 0, 0.3, bias=BIAS[:5]),
        lambda: p.attention(q, k, v, 0, 0.3, bias=BIAS[:, :60]),
        lambda: p.store_kv(q, v, 0),
        lambda: p.attention(v, v, v, 3, 0.3),
        lambda: p.attention(v, v, v, 3, 0.3, window=51),
    ]
    before = len(p.operations)
    for call in wrong:
        with pytest.raises(ValueError):
            call()
        assert len(p.operations) == before
