"""The pool of KV pages: pages are handed out once, come back once, and memory is laid out as the kernels expect."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gumba import backends
from gumba.backends.cache_shapes import KVShape
from gumba.backends.cpu import cache_pages
from gumba.backends.cpu.kv_pages import PAGE_FORMATS
from gumba.errors import EngineError, RequestError, ResourceError
from gumba.runner.kv_cache import KVCache

BACKEND = backends.get()


def cache(n_pages: int = 6, **options: str) -> KVCache:
    return KVCache(BACKEND, [KVShape(3, 24, 24)] * 2, n_pages=n_pages, **options)


def test_pages_are_handed_out_once_and_come_back() -> None:
    kv = cache()
    first, second = kv.allocate(2), kv.allocate(4)
    assert sorted(first + second) == list(range(6)) and kv.n_free == 0
    kv.release(first)
    assert kv.n_free == 2
    assert sorted(kv.allocate(2)) == sorted(first)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=40))
def test_whatever_the_order(actions: list[tuple[bool, int]]) -> None:
    kv = cache(10)
    held: list[list[int]] = []
    for take, n in actions:
        if take and n <= kv.n_free:
            held.append(kv.allocate(n))
            assert len(held[-1]) == n
        elif take:
            with pytest.raises(ResourceError):
                kv.allocate(n)
        elif held:
            kv.release(held.pop(n % len(held)))
        taken = [page for pages in held for page in pages]
        assert len(set(taken)) == len(taken) and all(0 <= page < 10 for page in taken)
        assert kv.n_free == 10 - len(taken)
        assert all(kv.owns(np.array([page])) == (page in taken) for page in range(10))


def test_all_or_nothing() -> None:
    kv = cache()
    kv.allocate(4)
    with pytest.raises(ResourceError, match="3 KV pages requested, 2 of 6 are free"):
        kv.allocate(3)
    assert kv.n_free == 2 and len(kv.allocate(2)) == 2
    assert kv.allocate(0) == []
    with pytest.raises(RequestError):
        kv.allocate(-1)


@pytest.mark.parametrize("wrong", [[-1], [6], [5], [0, 5], [0, 0]])
def test_wrong_pages_are_not_taken_back(wrong: list[int]) -> None:
    """Nothing is released then, not even the right ones among them."""
    kv = cache()
    assert kv.allocate(3) == [0, 1, 2]
    with pytest.raises(EngineError, match=str(wrong[-1])):
        kv.release(wrong)
    assert kv.n_free == 3 and kv.owns(np.array([0, 1, 2]))


def test_owns() -> None:
    kv = cache()
    pages = np.array(kv.allocate(3))
    assert kv.owns(pages) and kv.owns(pages[::-1]) and kv.owns(pages[:0])
    for other in ([3], [-1], [6], [*pages, 5], [2**31 - 1], [-(2**31)]):
        assert not kv.owns(np.array(other, np.int64))
    kv.release(pages[:1].tolist())
    assert not kv.owns(pages) and kv.owns(pages[1:])


def test_threads_never_share_a_page() -> None:
    kv = cache(64)
    twice: list[int] = []
    owners = np.zeros(64, int)

    def work() -> None:
        for _ in range(300):
            pages = kv.allocate(3)
            owners[pages] += 1
            twice.extend(page for page in pages if owners[page] != 1)
            owners[pages] -= 1
            kv.release(pages)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not twice and kv.n_free == 64


@pytest.mark.parametrize("kv_type, size", [("f16", 2), ("f32", 4)])
def test_layout(kv_type: str, size: int) -> None:
    kv = cache(kv_type=kv_type)
    assert len(kv.memory.layouts) == 2 and kv.kv_type == kv_type
    for layout in kv.memory.layouts:
        assert (layout.n_kv_heads, layout.head_dim, layout.v_dim, layout.kv_type) == (3, 24, 24, kv_type)
        assert (layout.k_page, layout.v_page) == (24 * 64 * size, 32 * 64 * size)
        assert (layout.k_head, layout.v_head) == (6 * layout.k_page, 6 * layout.v_page)
        assert layout.v_offset == 3 * layout.k_head
        assert layout.pages % 64 == layout.v_offset % 64 == layout.k_page % 64 == layout.extent_bytes % 64 == 0
    layer_bytes = kv.memory.layouts[1].pages - kv.memory.layouts[0].pages
    assert layer_bytes == layout.v_offset + 3 * layout.v_head
    assert kv.page_bytes == 2 * 3 * (layout.k_page + layout.v_page)
    assert kv.n_bytes == 6 * kv.page_bytes == 2 * layer_bytes and kv.page_tokens == 64


#: Layers of several sizes; one that keeps nothing; two of the same that follow each other.
MIXED = [KVShape(3, 24, 24), KVShape(1, 72, 40), KVShape(1, 72, 40), KVShape(0, 8, 8), KVShape(2, 16, 64)]


def runs_of(kv: KVCache, page: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of each layer's and head's keys and values of a page, in memory."""
    keys, values = [], []
    for at in kv.memory.layouts:
        extent, place = divmod(page, at.extent_pages)
        first = at.pages - kv.memory._memory.ctypes.data + extent * at.extent_bytes
        for head in range(at.n_kv_heads):
            keys.append((first + head * at.k_head + place * at.k_page, at.k_page))
            values.append((first + at.v_offset + head * at.v_head + place * at.v_page, at.v_page))
    return keys + values


@pytest.mark.parametrize("shapes", [[KVShape(3, 24, 24)] * 2, MIXED], ids=["alike", "mixed"])
@pytest.mark.parametrize("n_pages", [1, 15, 16, 17, 40])
def test_every_page_has_memory_of_its_own(n_pages: int, shapes: list[KVShape]) -> None:
    """Each head's keys and values of each layer and page: disjoint, and inside what was allocated."""
    kv = KVCache(BACKEND, shapes, n_pages, "bf16")
    runs = sorted(run for page in range(n_pages) for run in runs_of(kv, page))
    assert len(runs) == n_pages * sum(shape.n_kv_heads for shape in shapes) * 2
    assert all(start + size <= following for (start, size), (following, _) in itertools.pairwise(runs))
    assert runs[0][0] == 0 and sum(runs[-1]) <= kv.n_bytes < (n_pages + 3) * kv.page_bytes
    assert (
        sum(size for _, size in runs)
        == n_pages * kv.page_bytes
        == n_pages * KVCache.bytes_per_page(shapes, BACKEND.kv_format("bf16"))
    )
    for layout, shape in zip(kv.memory.layouts, shapes, strict=True):
        assert (layout.n_kv_heads, layout.head_dim, layout.v_dim) == (shape.n_kv_heads, shape.head_dim, shape.v_dim)


def filled(kv_type: str, n_pages: int, seed: int = 0, shapes: list[KVShape] = MIXED) -> KVCache:
    """A cache of random bytes, all its pages taken."""
    kv = KVCache(BACKEND, shapes, n_pages, kv_type)
    assert sorted(kv.allocate(n_pages)) == list(range(n_pages))
    kv.memory._memory[:] = np.random.default_rng(seed).integers(0, 256, kv.n_bytes, np.uint8)
    return kv


@pytest.mark.parametrize("kv_type", PAGE_FORMATS)
def test_a_copy_has_every_byte_and_touches_no_other_page(kv_type: str) -> None:
    kv = filled(kv_type, 17)  # two extents of 9: the last place of the second one is no page
    assert kv.memory.layouts[0].extent_pages == 9
    for source, target in ((0, 1), (3, 16), (16, 0), (8, 9), (9, 8)):
        expected = kv.memory._memory.copy()
        for (start, size), (to, _) in zip(runs_of(kv, source), runs_of(kv, target), strict=True):
            expected[to : to + size] = expected[start : start + size]
        kv.copy(source, target)
        assert np.array_equal(kv.memory._memory, expected)


@pytest.mark.parametrize("kv_type", PAGE_FORMATS)
def test_what_is_read_can_be_written_into_another_cache(kv_type: str) -> None:
    """Caches of other sizes, whose pages lie otherwise, understand each other."""
    one, two = filled(kv_type, 6, 1), filled(kv_type, 40, 2)
    for source, target in ((0, 39), (5, 0), (3, 20)):
        data = one.read(source, windowed=False)
        assert len(data) == one.page_bytes and one.read(source, windowed=False) == data
        expected = two.memory._memory.copy()
        for (start, size), (to, _) in zip(runs_of(one, source), runs_of(two, target), strict=True):
            expected[to : to + size] = one.memory._memory[start : start + size]
        two.write(target, data, windowed=False)
        assert np.array_equal(two.memory._memory, expected)
        assert (
            two.read(target, windowed=False) == data and two.read(target - 1 if target else 1, windowed=False) != data
        )


def test_layers_with_a_window_read_alike_in_one_pool_and_in_two() -> None:
    shapes = [KVShape(3, 24, 24, window=9), KVShape(3, 24, 24), KVShape(3, 24, 24, window=5), KVShape(1, 8, 40)]
    one, two = filled("f16", 6, 1, shapes), KVCache(BACKEND, shapes, 40, n_window_pages=3)
    assert two.window_pool is not None
    two.allocate(40)
    two.window_pool.allocate(3)
    parts = {windowed: one.read(2, windowed) for windowed in (False, True)}
    assert {windowed: len(part) for windowed, part in parts.items()} == one.part_bytes == two.part_bytes
    assert two.page_bytes == one.part_bytes[False] and two.window_pool.page_bytes == one.part_bytes[True]
    two.write(7, parts[False], windowed=False)
    two.window_pool.write(1, parts[True], windowed=True)
    assert (two.read(7, windowed=False), two.window_pool.read(1, windowed=True)) == (parts[False], parts[True])
    one.write(5, two.read(7, windowed=False), windowed=False)
    assert one.read(5, windowed=False) == parts[False] and one.read(5, windowed=True) != parts[True]
    one.write(5, two.window_pool.read(1, windowed=True), windowed=True)
    for (start, size), (to, _) in zip(runs_of(one, 2), runs_of(one, 5), strict=True):
        assert np.array_equal(one.memory._memory[start : start + size], one.memory._memory[to : to + size])


def test_what_cannot_be_copied_read_or_written() -> None:
    kv = cache()
    assert kv.allocate(2) == [0, 1]
    data = kv.read(0, windowed=False)
    for wrong in (2, -1, 6):
        for call in (
            lambda page: kv.copy(0, page),
            lambda page: kv.copy(page, 0),
            lambda page: kv.read(page, windowed=False),
            lambda page: kv.write(page, data, windowed=False),
        ):
            with pytest.raises(EngineError, match=f"KV page {wrong} "):
                call(wrong)
    with pytest.raises(EngineError, match="KV page 0 "):
        kv.copy(0, 0)
    for size in (0, kv.page_bytes - 1, kv.page_bytes + 1):
        with pytest.raises(RequestError, match=rf"a KV page of {size} bytes: expected {kv.page_bytes}"):
            kv.write(0, bytes(size), windowed=False)
    assert not kv.memory._memory.any()
    kv.close()
    for closed in (
        lambda: kv.copy(0, 1),
        lambda: kv.read(0, windowed=False),
        lambda: kv.write(0, data, windowed=False),
        lambda: kv.allocate(1),
    ):
        with pytest.raises(EngineError, match="closed"):
            closed()
    kv.release([0, 1])


def test_a_page_is_free_when_its_last_owner_gives_it_back() -> None:
    kv = cache()
    pages = kv.allocate(3)
    kv.share(pages[:2])
    kv.share(pages[:1])
    assert [kv.owners(page) for page in range(6)] == [3, 2, 1, 0, 0, 0]
    kv.release(pages)
    assert [kv.owners(page) for page in range(3)] == [2, 1, 0] and kv.n_free == 4
    assert kv.owns(np.array(pages[:2])) and not kv.owns(np.array(pages[2:]))
    assert sorted(kv.allocate(4)) == [2, 3, 4, 5] and pages == [0, 1, 2]
    kv.release(pages[:2])
    assert kv.n_free == 1 and kv.owns(np.array(pages[:1])) and not kv.owns(np.array(pages[1:2]))
    kv.release(pages[:1])
    assert kv.n_free == 2
    with pytest.raises(EngineError):
        kv.release(pages[:1])


@pytest.mark.parametrize("wrong", [[-1], [6], [5], [0, 5], [0, 0]])
def test_only_taken_pages_are_shared(wrong: list[int]) -> None:
    """No owner is counted then, not even of the right ones among them."""
    kv = cache()
    kv.allocate(3)
    with pytest.raises(EngineError, match=str(wrong[-1])):
        kv.share(wrong)
    assert [kv.owners(page) for page in range(6)] == [1, 1, 1, 0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 9)), max_size=60))
def test_owners_are_counted(actions: list[tuple[str, int]]) -> None:
    """Whatever the order: as often as it was taken and shared, a page must be given back."""
    kv = cache(5)
    owners = [0] * 5
    for action, n in actions:
        page = n % 5
        if action == "allocate" and kv.n_free:
            (page,) = kv.allocate(1)
            assert owners[page] == 0, "a page is handed out that has an owner"
            owners[page] = 1
        elif action != "allocate" and not owners[page]:
            with pytest.raises(EngineError):
                getattr(kv, action)([page])
        elif action != "allocate":
            getattr(kv, action)([page])
            owners[page] += 1 if action == "share" else -1
        assert [kv.owners(page) for page in range(5)] == owners and kv.n_free == owners.count(0)
        assert kv.used.tolist() == [n > 0 for n in owners]


def test_q8_0_takes_34_bytes_for_32_elements() -> None:
    layout = cache(kv_type="q8_0").memory.layouts[0]  # head_dim 24: one block each
    assert layout.k_page == layout.v_page == 34 * 64


def test_fresh_memory_is_zero() -> None:
    kv = cache()
    assert not kv.memory._memory.any() and kv.memory._memory.ctypes.data == kv.memory.layouts[0].pages


def test_errors_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="'q1': expected one of bf16, f16, f32, q8_0"):
        cache(kv_type="q1")

    def nothing_left(n_bytes: int) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(cache_pages, "aligned_zeros", nothing_left)
    with pytest.raises(ResourceError, match="384 tokens"):
        cache()
