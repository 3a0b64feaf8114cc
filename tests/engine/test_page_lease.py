"""Page leases, held while a session is written or read: requests wait for their pages, and the engine does not spin."""

from __future__ import annotations

import time

import pytest

from gumba import SamplingParams
from gumba.engine.page_lease import PageLease
from gumba.engine.prefix_tree import Node
from support.generation_oracle import GREEDY, oracle
from support.threads import in_thread

SHORT = SamplingParams(temperature=0, max_tokens=6)


def lease_pages(llm, count):
    return [llm._engine.call(llm._engine._core.leases.allocate_page) for _ in range(count)]


def test_a_request_waits_for_leased_pages(make_llm):
    llm = make_llm(n_pages=8)
    pages = lease_pages(llm, 7)
    expected = oracle(range(12), SHORT, 6)
    result = in_thread(lambda: llm.generate([list(range(12))], SHORT)[0].token_ids)
    time.sleep(0.05)
    assert llm.model.steps == [], "there was no page for it"
    llm._engine.release_lease(PageLease(pages[:3]))
    time.sleep(0.02)
    llm._engine.release_lease(PageLease(pages[3:]))
    assert result() == expected


def test_a_stream_that_runs_out_of_pages_continues_after_the_lease(make_llm):
    llm = make_llm(n_pages=8, before=lambda model: time.sleep(0.005))
    stream = llm.stream([1], GREEDY)
    first = next(stream).token_id
    pages = lease_pages(llm, 5)
    rest = in_thread(lambda: [step.token_id for step in stream])
    deadline = time.monotonic() + 20
    while not llm._engine._core.scheduler.blocked_on_lease and time.monotonic() < deadline:
        time.sleep(0.001)
    assert llm.kv_usage().in_use == 5, "the stream owns none any more"
    llm._engine.release_lease(PageLease(pages))
    assert [first, *rest()] == oracle([1], GREEDY, 31)


def test_waiting_requests_can_be_cancelled(make_llm):
    llm = make_llm(n_pages=8)
    pages = lease_pages(llm, 7)
    result = in_thread(lambda: llm.generate([list(range(12))], SHORT)[0].finish_reason)
    time.sleep(0.02)
    llm.cancel()
    assert result() == "cancelled"
    llm._engine.release_lease(PageLease(pages))


@pytest.mark.parametrize("waiting", [False, True])
def test_the_engine_does_not_spin(make_llm, monkeypatch, waiting):
    llm = make_llm(n_pages=8)
    core = llm._engine._core
    pages = lease_pages(llm, 7)
    looks = []
    usage, schedule = core.kv_usage, core.scheduler.schedule
    monkeypatch.setattr(core, "kv_usage", lambda: looks.append(1) or usage())
    monkeypatch.setattr(core.scheduler, "schedule", lambda: looks.append(1) or schedule())
    monkeypatch.setattr(core, "_idle_timeout", 0.0)
    llm.generate([[1]], SamplingParams(max_tokens=1))
    looks.clear()
    result = in_thread(lambda: llm.generate([list(range(12))], SHORT)[0].token_ids) if waiting else None
    llm._engine.call(lambda: None)  # wakes the engine
    time.sleep(0.2)
    seen = len(looks)
    monkeypatch.undo()
    llm._engine.release_lease(PageLease(pages))
    assert seen < 8
    if result is not None:
        assert result() == oracle(range(12), SHORT, 6)


def test_cached_pages_are_evicted_before_a_request_waits_forever(make_llm):
    """A page that is in the cache twice, as a mistake would leave it, looks like a leased page."""
    llm = make_llm(n_pages=8)
    llm.generate([list(range(12))], SHORT)
    cache = llm._engine._core.scheduler.blocks.prefix_cache

    def twice():
        node = next(iter(cache._nodes))
        llm.model.kv.share([node.page])
        cache._nodes[Node(node.tokens, node.page, node.parent)] = None

    llm._engine.call(twice)
    result = in_thread(lambda: llm.generate([list(range(40, 66))], SHORT)[0].token_ids)
    assert result() == oracle(range(40, 66), SHORT, 6)
