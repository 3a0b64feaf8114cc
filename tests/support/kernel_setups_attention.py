"""Builders for the kernels of what looks at other tokens: attention and its rotary positions: see ``setups``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gumba.backends.cpu.kernels import attention_layout as att
from gumba.backends.cpu.kernels import output_rows, record, rope
from gumba.backends.cpu.kernels.attention import attention, store_kv
from gumba.backends.cpu.kernels.page_format import PART_TOKENS
from gumba.backends.cpu.kv_pages import PAGE_FORMATS
from gumba.backends.cpu.packing import aligned_empty
from gumba.simd.isa import Isa
from support import kernel_oracles
from support.kernel_harness import Batch, Setup, address, rng_of, rows


def setup_rope(
    isa: Isa, rope_dim: int = 20, head_dim: int = 24, n_heads: int = 3, neox: bool = False, n: int = 6
) -> Setup:
    rng = rng_of(8)
    x = rng.standard_normal((n, n_heads * head_dim)).astype(np.float32)
    positions = [0, 1, 500, 7, 63, 64][:n]
    frequencies = 10000.0 ** -(np.arange(rope_dim // 2) * 2.0 / rope_dim)
    table = np.ascontiguousarray(rope.cos_sin_table(frequencies, 501, 1.0, neox))
    out = rows(x)
    arguments = {"view": 0, "x": address(out), "stride": out.strides[0], "n_heads": n_heads, "head_dim": head_dim,
                 "rope_dim": rope_dim, "table": address(table), "neox": int(neox)}  # fmt: skip
    expected = kernel_oracles.rope(x.reshape(n, n_heads, head_dim), positions, frequencies, neox).reshape(n, -1)
    return Setup(rope.rope, arguments, Batch(n, positions=positions), out, lambda a: a[:, : x.shape[1]], expected, 2e-6,
                 keep=[table])  # fmt: skip


class Cache:
    """Pages of one layer, full of NaN until they are written; each sequence has a shuffled block table."""

    def __init__(
        self,
        isa: Isa,
        heads: int,
        head_dim: int,
        v_dim: int,
        kv_type: str,
        contexts: Sequence[int],
        rng: np.random.Generator,
    ) -> None:
        self.isa, self.heads, self.head_dim, self.v_dim, self.kv_type = isa, heads, head_dim, v_dim, kv_type
        self.pages = PAGE_FORMATS[kv_type]
        self.dtype = np.dtype({"f16": np.float16}.get(kv_type, np.float32))
        # What a head's keys and values take of a page, by the formats' descriptions.
        self.v_row = -(-v_dim // (32 if kv_type == "q8_0" else 16)) * (32 if kv_type == "q8_0" else 16)
        size = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 0}[kv_type]
        k_bytes = (
            -(-head_dim // 32) * 34 if kv_type == "q8_0" else (head_dim + (kv_type == "bf16") * head_dim % 2) * size
        )
        v_bytes = -(-v_dim // 32) * 34 if kv_type == "q8_0" else self.v_row * size
        self.k_bytes, self.v_bytes = k_bytes, v_bytes
        self.v_offset = -(-heads * k_bytes * 64 // 64) * 64
        self.page_bytes = self.v_offset + heads * 64 * v_bytes + 128  # and 128 that no page holds
        counts = [-(-context // 64) for context in contexts]
        ids = rng.permutation(sum(counts) + 2)
        self.tables = [ids[sum(counts[:i]) : sum(counts[: i + 1])].astype(np.int32) for i in range(len(counts))]
        self.extent_bytes = 2 * self.page_bytes + 192  # two pages, and a gap
        self.memory = aligned_empty(-(-len(ids) // 2) * self.extent_bytes)
        self.memory[:] = 0xFF  # NaN as float16 and float32

    def write(self, sequence: int, position: int, k: np.ndarray, v: np.ndarray) -> None:
        extent, place = divmod(int(self.tables[sequence][position // 64]), 2)
        page = self.memory[extent * self.extent_bytes + place * self.page_bytes :][: self.page_bytes]
        if self.kv_type == "q8_0":
            kernel_oracles.store_kv_q8_0(page, position % 64, k, v, self.v_offset, self.isa)
        elif self.kv_type == "bf16":
            kernel_oracles.store_kv_bf16(page, position % 64, k, v, self.v_offset, self.v_row)
        else:
            kernel_oracles.store_kv(page, position % 64, k, v, self.v_offset, self.v_row, self.dtype)

    def arguments(self, group: int, threads: int = 50, **options: int) -> dict[str, int | float]:
        """What both kernels take. ``self.scratch`` is for that many threads; ``options``: more of the geometry."""
        page = {"k_page": self.page_bytes, "v_page": self.page_bytes, "v_offset": self.v_offset}
        page |= {"extent_pages": 2, "extent_bytes": self.extent_bytes}
        self.geometry = att.geometry(
            self.pages, self.heads, group, self.head_dim, self.v_dim, **page, k_head=self.k_bytes * 64,
            v_head=self.v_bytes * 64, **options,
        )  # fmt: skip
        size = att.scratch_bytes(self.pages, group, self.head_dim, self.v_dim)
        self.scratch = aligned_empty(threads * size)
        return {"memory": address(self.memory), "geo": address(self.geometry), "scratch": address(self.scratch),
                "scratch_bytes": size}  # fmt: skip


def setup_store_kv(
    isa: Isa, kv_type: str = "f16", head_dim: int = 24, heads: int = 2, v_dim: int | None = None
) -> Setup:
    """Every byte of the pages is compared: nothing beside the tokens' places may change."""
    rng = rng_of(9)
    v_dim = v_dim or head_dim
    cache = Cache(isa, heads, head_dim, v_dim, kv_type, [200], rng)
    positions = [0, 1, 63, 64, 130, 199]
    k, v = (rng.standard_normal((len(positions), heads * n)).astype(np.float32) for n in (head_dim, v_dim))
    k[0, :4] = (7e4, -7e4, 1e-6, 65519.9)  # too large for float16, subnormal in it, just small enough
    table = cache.tables[0]
    before = cache.memory.copy()
    with np.errstate(over="ignore"):
        for t, position in enumerate(positions):
            cache.write(0, position, k[t].reshape(heads, -1), v[t].reshape(heads, -1))
    expected = cache.memory.copy()
    cache.memory[:] = before
    held_k, held_v = rows(k), rows(v)
    arguments = cache.arguments(1) | {"k": address(held_k), "v": address(held_v), "k_stride": held_k.strides[0],
                                      "v_stride": held_v.strides[0]}  # fmt: skip
    slots = [int(table[p // 64]) * 64 + p % 64 for p in positions]
    return Setup(store_kv(isa, cache.pages), arguments, Batch(len(slots), slots=slots), cache.memory, lambda a: a, expected,
                 keep=[held_k, held_v, cache])  # fmt: skip


#: (tokens already in the cache, tokens of this step) of each sequence of a batch.
SEQUENCES = ((0, 1), (0, 70), (63, 1), (64, 1), (60, 9), (127, 2))


def setup_attention(
    isa: Isa,
    kv_type: str = "f16",
    group: int = 3,
    head_dim: int = 24,
    sequences: Sequence[tuple[int, int]] = SEQUENCES,
    tile: int | None = None,
    sharpness: float = 1.0,
    kv_heads: int = 2,
    split: bool = False,
    v_dim: int | None = None,
    window: int = 0,
    cap: float = 0.0,
    sinks: bool = False,
    slopes: bool = False,
    causal: bool = True,
    unread: bool = True,
    chunk: int = 0,
    answer: bool = False,
    cross: bool = False,
    reach: int = 0,
) -> Setup:
    """``split``: threads share the parts of a context; there must be fewer units than ``att.split_units(1)`` then.

    ``unread``: pages that no token sees hold NaN, and the block table says -1 for them; ``answer``, ``cross``: two thirds of
    what is in the cache already is the source; ``reach``: scores have biases, up to this distance.
    """
    rng = rng_of(10, group, head_dim)
    v_dim = v_dim or head_dim
    cache = Cache(isa, kv_heads, head_dim, v_dim, kv_type, [past + new for past, new in sequences], rng)
    scale = 1 / math.sqrt(head_dim)
    unit = 1 / cap if cap else att.LOG2_E
    heads = kv_heads * group
    of_heads: dict[str, np.ndarray] = {}
    if sinks:
        of_heads["sinks"] = np.linspace(-3, 9, heads).astype(np.float32)
    if slopes:
        of_heads["slopes"] = np.asarray(0.3 ** np.arange(heads), np.float32)
    if reach:
        of_heads["bias"] = rng_of(11).standard_normal((heads, 2 * reach + 1)).astype(np.float32) * np.float32(2)
    tile = tile or att.tile_tokens(group)
    tiles: list[tuple[int, ...]] = []
    queries, expected = [], []
    start = 0
    for i, (past, new) in enumerate(sequences):
        q = rng.standard_normal((new, heads, head_dim)).astype(np.float32) * np.float32(sharpness)
        k, v = (rng.standard_normal((past + new, kv_heads, n)).astype(cache.dtype) for n in (head_dim, v_dim))
        source = max(past * 2 // 3, int(cross))
        limits = {"answer": source if answer else None, "cross": source if cross else None, "chunk": chunk}
        first = past - window + 1 if window else past // chunk * chunk if chunk else source if answer else 0
        last = source if cross else past + new
        for position in range(past + new):
            if unread and not first // 64 <= position // 64 <= (last - 1) // 64:
                cache.tables[i][position // 64] = -1
            else:
                cache.write(i, position, k[position], v[position])
        for at in range(0, new, tile):
            tiles.append((start + at, min(tile, new - at), past + at, address(cache.tables[i]), past + new, source, 0))
        queries.append(q.reshape(new, -1))
        if kv_type == "q8_0":
            k, v = kernel_oracles.through_q8(k, half=True), kernel_oracles.through_q8(v, half=True)
            q = kernel_oracles.through_q8(q * np.float32(scale * unit), half=False) / (scale * unit)
        if kv_type == "bf16":
            k, v = kernel_oracles.through_bf16(k), kernel_oracles.through_bf16(v)
            q = kernel_oracles.through_bf16(q * np.float32(scale * unit)).astype(np.float64) / (scale * unit)
        made = kernel_oracles.attention(
            q, k, v, past, scale, window=window, cap=cap, causal=causal, **of_heads, **limits
        )
        expected.append(made.reshape(new, -1))
        start += new
    width = heads * v_dim
    held, out = rows(np.concatenate(queries)), rows(np.zeros((start, width), np.float32))
    longest = max(past + new for past, new in sequences)
    partials = aligned_empty(att.partials_bytes(group, cache.v_row, 50, longest) if split else 0)
    partials[:] = 0xFF  # NaN, but for the counters
    partials[: 64 * att.split_units(50)] = 0
    scaled = {name: np.asarray(values * np.float32(att.LOG2_E)) for name, values in of_heads.items()}
    options = {"sinks": address(scaled["sinks"])} if sinks else {}
    if slopes:
        options |= {"of_distance": address(scaled["slopes"]), "of_distance_row": 4}
    if reach:
        scaled["bias"] = att.bias_table(scaled["bias"])
        options |= {
            "of_distance": address(scaled["bias"]),
            "of_distance_row": scaled["bias"].strides[0],
            "reach": reach,
        }
    arguments = cache.arguments(group, window=window or chunk, **options) | {
        "view": 0, "q": address(held), "out": address(out), "stride": held.strides[0], "out_stride": out.strides[0],
        "partials": address(partials) if split else 0, "scale": scale * unit, "cap": cap * att.LOG2_E,
    }  # fmt: skip
    variant = att.Variant(not causal, window > 0, chunk > 0, answer, cross, cap > 0, slopes, reach > 0, sinks)
    batch = Batch(start, tiles=tiles, split=-(-longest // PART_TOKENS) if split else 0)
    return Setup(
        attention(isa, cache.pages, variant), arguments, batch, out, lambda a: a[:, :width], np.concatenate(expected),
        (6e-3 if kv_type == "bf16" else 1e-5) * max(1.0, sharpness), keep=[held, cache, partials, scaled],
    )  # fmt: skip


def setup_view_outputs(isa: Isa) -> Setup:
    """Chunks that want all tokens, the last, none; in tiles of three."""
    tiles: list[tuple[int, ...]] = []
    wanted, expected = [], []
    start = 0
    for position, n, which in ((5, 4, "all"), (0, 7, "last"), (60, 5, "none"), (9, 1, "all"), (70, 6, "last")):
        for at in range(0, n, 3):
            count, words = min(3, n - at), (900 + start, position + n, 0, 800 + start)
            tiles.append((start + at, count, position + at, *words))
            rows = [i for i in range(at, at + count) if which == "all" or (which == "last" and i == n - 1)]
            if rows:
                expected.append([len(wanted), len(rows), position + rows[0], *words])
                wanted += [start + i for i in rows]
        start += n
    positions = rng_of(41).permutation(start)
    batch = Batch(start, positions=positions.tolist(), tiles=tiles, output_rows=wanted, split=7)
    for tile in expected:  # the position of its first token is that token's
        tile[2] = int(positions[wanted[tile[0]]])
    out = np.full((2 + len(wanted), record.TILE_WORDS), -1, np.int64)  # positions, sizes, tiles
    view = record.OUTPUTS_VIEW // 8
    batch.words[view + record.POSITIONS // 8], batch.words[view + record.TILES // 8] = address(out), address(out[2:])
    words = [view + offset // 8 for offset in (record.N_TOKENS, record.N_OUTPUTS, record.N_TILES, record.SPLIT)]

    def seen(a: np.ndarray) -> np.ndarray:
        sizes = batch.words[words].tolist()
        return np.array([*a[:2].view(np.int32).ravel()[: sizes[0]], *sizes, *a[2 : 2 + sizes[2]].ravel()])

    made = [*positions[wanted], len(wanted), len(wanted), len(expected), 7, *np.array(expected).ravel()]
    return Setup(output_rows.view_outputs, {}, batch, out, seen, np.array(made))
