"""Cancelling, interrupts, threads and forks: pages are always released, and the engine stays usable."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import random
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from gumba import BeamSearchParams, EngineError, SamplingParams
from gumba.engine.core import Signal
from support.fake_model import hashed_logits
from support.generation_oracle import GREEDY, oracle


def slow(model):
    time.sleep(0.001)


def free(llm):
    """Whether no request owns a page, after all commands so far."""
    return llm.kv_usage().in_use == 0


def test_closing_a_stream_frees_its_pages(make_llm):
    llm = make_llm(before=slow)
    stream = llm.stream(list(range(30)))
    assert free(llm)
    next(stream)
    assert not free(llm)
    stream.close()
    assert free(llm)
    for _ in llm.stream("abc"):
        break
    gc.collect()
    assert free(llm)


def test_a_stream_that_is_never_started_owns_no_pages(make_llm):
    llm = make_llm()
    stream = llm.stream("abc")
    assert free(llm)
    del stream


def test_two_streams_at_once_share_steps(make_llm):
    llm = make_llm(before=slow)
    one, two = llm.stream([1], GREEDY), llm.stream([2], GREEDY)
    pairs = [(a.token_id, b.token_id) for a, b in zip(one, two)]
    assert [a for a, _ in pairs] == oracle([1], GREEDY, 64)
    assert [b for _, b in pairs] == oracle([2], GREEDY, 64)
    one.close(), two.close()
    assert len(llm.model.steps) < 100


@pytest.mark.parametrize("at_step", [1, 2, 3, 4, 9])
def test_cancel_stops_within_one_step_in_prefill_too(make_llm, at_step):
    """The prompt of 40 tokens takes 5 steps of 8."""

    def cancel(model):
        if len(model.steps) == at_step - 1:
            thread = threading.Thread(target=llm.cancel)
            thread.start()
            thread.join()

    llm = make_llm(before=cancel, max_batch_tokens=8)
    (result,) = llm.generate([list(range(40))], GREEDY)
    assert result.finish_reason == "cancelled"
    assert len(llm.model.steps) == at_step and free(llm)
    assert len(result.token_ids) == max(0, at_step - 4)
    assert result.token_ids == oracle(range(40), GREEDY, at_step)[: max(0, at_step - 4)]
    assert llm.generate([[1]], SamplingParams(temperature=0, max_tokens=5))[0].token_ids == oracle([1], GREEDY, 5)


def test_cancelled_stream_ends_with_an_item_without_token(make_llm):
    llm = make_llm(before=slow)
    stream = llm.stream([1], GREEDY)
    first = next(stream)
    llm.cancel()
    assert free(llm)
    *more, last = stream  # the tokens delivered before
    tokens = [step.token_id for step in (first, *more)]
    assert tokens == oracle([1], GREEDY, 64)[: len(tokens)]
    assert (last.token_id, last.index, last.finish_reason) == (None, len(tokens), "cancelled")
    assert last.timings.generated_tokens == len(tokens) < 63
    assert list(stream) == []


def test_cancelled_logits_are_an_error(make_llm):
    llm = make_llm(before=lambda model: llm.cancel())
    with pytest.raises(EngineError, match="cancelled"):
        llm.logits(list(range(40)))
    assert free(llm) and len(llm.model.steps) == 1


def test_garbage_collected_in_the_middle_of_a_step(make_llm):
    """The garbage collector, in whichever thread it runs, closes a suspended stream in a reference cycle."""

    def collect(model):
        if left:
            gc.collect()

    left = []

    llm = make_llm(before=collect)

    def leave_behind():
        cycle = {"stream": llm.stream(list(range(20)), GREEDY)}
        cycle["self"] = cycle
        next(cycle["stream"])

    leave_behind()
    left.append(True)
    assert llm.generate([[1]], SamplingParams(temperature=0, max_tokens=9))[0].token_ids == oracle([1], GREEDY, 9)
    assert free(llm)


def test_a_request_cancelled_before_its_first_step_takes_no_part(make_llm):
    llm = make_llm()
    (generation,) = llm._inputs.generations([5], GREEDY)
    llm._engine.submit([generation])
    llm._engine.discard([generation])
    llm.generate([[1]], GREEDY)
    assert generation.finish_reason == "cancelled" and free(llm)
    assert max(map(len, llm.model.steps)) == 1


def test_many_threads(make_llm):
    """Random work from eight threads, with cancelled and abandoned streams: all get the right tokens."""
    llm = make_llm(n_pages=24, before=lambda model: time.sleep(0))
    problems = []

    def work(number):
        rng = random.Random(number)
        try:
            for _ in range(12):
                prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 30))]
                params = SamplingParams(seed=number, max_tokens=rng.randrange(1, 25))
                expected = oracle(prompt, params, params.max_tokens)
                kind = rng.randrange(4)
                if kind == 0:
                    assert llm.generate([prompt, prompt], params)[1].token_ids == expected
                elif kind == 1:
                    assert [step.token_id for step in llm.stream(prompt, params)] == expected
                elif kind == 2:
                    stream = llm.stream(prompt, params)
                    got = [step.token_id for step, _ in zip(stream, range(rng.randrange(1, 9)))]
                    stream.close()
                    assert got == expected[: len(got)]
                else:
                    assert (llm.logits(prompt)[-1] == hashed_logits(prompt)).all()
        except BaseException as error:
            problems.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        sys.setswitchinterval(interval)
    assert not problems and not any(thread.is_alive() for thread in threads)
    assert free(llm)
    assert max(map(len, llm.model.steps)) > 1, "threads never shared a step"


def test_close_from_another_thread(make_llm):
    llm = make_llm(n_ctx=4000, n_pages=1000, before=slow)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(llm.generate([[1]], GREEDY)[0].finish_reason))
    thread.start()
    while not llm.model.steps:
        time.sleep(0.001)
    llm.close()
    thread.join(10)
    assert ended == ["cancelled"] and llm.model.kv.n_free == llm.model.kv.n_pages


def _in_child(llm, stream, results):
    for call in (lambda: llm.generate(["a"]), lambda: llm.logits([1]), lambda: next(stream)):
        try:
            call()
            results.put("worked")
        except EngineError as error:
            results.put(str(error))
    stream.close()
    llm.close()
    results.put("done")


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_gets_a_clear_error(make_llm):
    llm = make_llm()
    stream = llm.stream([1], GREEDY)
    first = next(stream).token_id
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(llm, stream, results))
    child.start()
    answers = [results.get() for _ in range(4)]
    child.join(10)
    assert child.exitcode == 0
    assert all("forked" in answer or "fork" in answer for answer in answers[:3]) and answers[3] == "done"
    assert [first] + [step.token_id for step in stream] == oracle([1], GREEDY, 64)


@pytest.mark.parametrize("call", ["generate", "stream", "beams", "embed", "logits", "async"])
@pytest.mark.parametrize("where", ["processor", "progress"])
def test_a_request_from_within_the_engine_is_refused(make_llm, call, where):
    """It would wait for itself, and all other requests for it."""
    llm = make_llm()
    calls = {
        "generate": lambda: llm.generate([[1]]),
        "stream": lambda: next(llm.stream([1])),
        "beams": lambda: llm.beam_search([[1]], BeamSearchParams(beam_width=2, max_tokens=3)),
        "embed": lambda: llm.embed([[1]]),
        "logits": lambda: llm.logits([1]),
        "async": lambda: asyncio.run(llm.agenerate([[1]])),
    }

    def within(*_):
        calls[call]()

    params = SamplingParams(max_tokens=2, logits_processors=[within] if where == "processor" else [])
    with pytest.raises(EngineError, match="would wait for itself"):
        llm.generate([[1]], params, progress=within if where == "progress" else None)
    assert llm.generate([[1]], SamplingParams(temperature=0, max_tokens=5))[0].token_ids == oracle([1], GREEDY, 5)
    assert free(llm)


@pytest.mark.parametrize("how", ["agenerate", "generate", "usage"])
def test_a_message_that_the_engine_will_not_process_is_refused(make_llm, how):
    """A thread that saw the engine running puts it into the inbox after the engine has emptied that for the last time."""
    llm = make_llm()
    engine, put = llm._engine, llm._engine._inbox.put

    def late(order):
        put(Signal.CLOSE)
        engine._thread.join()
        put(order)

    engine._inbox = SimpleNamespace(put=late)
    calls = {
        "agenerate": lambda: asyncio.run(asyncio.wait_for(llm.agenerate([[1]]), 5)),
        "generate": lambda: llm.generate([[1]]),
        "usage": llm.kv_usage,
    }
    with pytest.raises(EngineError, match="thread has ended"):
        calls[how]()
    engine._inbox = engine._core.inbox
    llm.close()
