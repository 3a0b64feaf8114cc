"""The pool of KV pages: pages are handed out once, come back once, and memory is laid out as the kernels expect."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gumba import kv_cache
from gumba.errors import EngineError, RequestError, ResourceError
from gumba.kv_cache import KVCache


def cache(n_pages: int = 6, **options: str) -> KVCache:
    return KVCache(n_layers=2, n_kv_heads=3, head_dim=24, n_pages=n_pages, **options)


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
    with pytest.raises(ResourceError, match="3 KV pages wanted, 2 of 6 are free"):
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
    layout = kv.layout
    assert (layout.n_kv_heads, layout.head_dim, layout.kv_type) == (3, 24, kv_type)
    assert (layout.k_page, layout.v_page) == (24 * 64 * size, 32 * 64 * size)
    assert (layout.k_head, layout.v_head) == (6 * layout.k_page, 6 * layout.v_page)
    assert layout.v_offset == 3 * layout.k_head and layout.layer_bytes == layout.v_offset + 3 * layout.v_head
    assert layout.pages % 64 == layout.v_offset % 64 == layout.layer_bytes % 64 == layout.k_page % 64 == 0
    assert kv.page_bytes == 2 * 3 * (layout.k_page + layout.v_page)
    assert kv.n_bytes == 6 * kv.page_bytes == 2 * layout.layer_bytes and kv.page_tokens == 64


@pytest.mark.parametrize("n_pages", [1, 15, 16, 17, 40])
def test_every_page_has_memory_of_its_own(n_pages: int) -> None:
    """Each head's keys and values of each layer and page: disjoint, and inside what was allocated."""
    kv = KVCache(2, 3, 24, n_pages, "bf16")
    at, runs = kv.layout, []
    for page in range(n_pages):
        extent, place = divmod(page, at.extent_pages)
        for layer in range(2):
            first = extent * at.extent_bytes + layer * at.layer_bytes
            for head in range(3):
                runs.append((first + head * at.k_head + place * at.k_page, at.k_page))
                runs.append((first + at.v_offset + head * at.v_head + place * at.v_page, at.v_page))
    runs.sort()
    assert all(start + size <= following for (start, size), (following, _) in itertools.pairwise(runs))
    assert runs[0][0] == 0 and sum(runs[-1]) <= kv.n_bytes < (n_pages + 3) * kv.page_bytes


def test_q8_0_takes_34_bytes_for_32_elements() -> None:
    layout = cache(kv_type="q8_0").layout  # head_dim 24: one block each
    assert layout.k_page == layout.v_page == 34 * 64


def test_fresh_memory_is_zero() -> None:
    kv = cache()
    assert not kv._memory.any() and kv._memory.ctypes.data == kv.layout.pages


def test_errors_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="'q1': expected one of bf16, f16, f32, q8_0"):
        cache(kv_type="q1")

    def nothing_left(n_bytes: int) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(kv_cache, "aligned_zeros", nothing_left)
    with pytest.raises(ResourceError, match="384 tokens"):
        cache()
