"""A thousand requests of every kind from several threads: none is lost or mixed up, and no object stays."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import zlib
from dataclasses import replace

import numpy as np
import pytest

from gumba import SamplingParams
from gumba.engine.prefix_tree import Node
from gumba.engine.sequence import Sequence
from gumba.sampling.sampler import Sampler, SamplerState, UniformStream
from support.fake_model import N_VOCAB

THREADS, REQUESTS = 6, 168
STEMS = [random.Random(i).choices(range(97, 123), k=24) for i in range(4)]

_table = np.random.default_rng(0).standard_normal((64, N_VOCAB)).astype(np.float32) * 3
_table[:, 256] = -30


def logits(history):
    """Mostly different for every history; often the token 7 places before, so that draft tokens are sometimes right."""
    number = zlib.crc32(bytes(token % 256 for token in history))
    row = _table[number % 64].copy()
    row[number // 64 % 200] += 9
    if number % 3 and len(history) > 7:
        row[history[-7]] += 15
    return row


def expected(prompt, params):
    """The answer without an engine."""
    history, numbers, sampler = list(prompt), UniformStream(params.seed), Sampler(N_VOCAB)
    state = SamplerState(params, N_VOCAB, prompt, seed=params.seed)
    for index in range(params.max_tokens):
        history.append(sampler.sample(logits(history), state, numbers[index]).token)
        state.accept(history[-1])
    return history[len(prompt) :]


def request(rng):
    """A prompt that often shares a prefix with others, and its parameters."""
    stem = rng.choice(STEMS)
    prompt = stem[: rng.randrange(len(stem) + 1)] + rng.choices(range(97, 123), k=rng.randrange(1, 8))
    params = SamplingParams(
        temperature=rng.choice([0, 0.8, 1.5]),
        seed=rng.randrange(1000),
        max_tokens=rng.randrange(1, 11),
        repetition_penalty=rng.choice([1.0, 1.3]),
        priority=rng.choice([0, 0, 1, -1]),
        prompt_lookup_tokens=rng.choice([0, 0, 6]),
        cache_prompt=rng.random() < 0.9,
        ignore_eos=True,
    )
    return prompt, params


def work(llm, rng):
    """Makes one request and checks its answer; returns its kind."""
    prompt, params = request(rng)
    right = expected(prompt, params)
    kind = rng.choice(
        ["generate", "batch", "stream", "closed", "dropped", "async", "given up", "logits", "cancelled task"]
    )
    if kind == "generate":
        (result,) = llm.generate([prompt], replace(params, n=2))
        assert result.outputs[0].token_ids == right and len(result.outputs[1].token_ids) == len(right)
        assert result.prompt_token_ids == prompt
    elif kind == "batch":
        other = request(rng)
        results = llm.generate([prompt, other[0]], [params, other[1]])
        assert [result.token_ids for result in results] == [right, expected(*other)]
    elif kind == "stream":
        steps = list(llm.stream(prompt, params))
        assert [step.token_id for step in steps] == right
        assert [step.finish_reason for step in steps] == [None] * (len(right) - 1) + ["length"]
    elif kind in ("closed", "dropped"):
        stream = llm.stream(prompt, params)
        got = [step.token_id for step, _ in zip(stream, range(rng.randrange(1, 5)))]
        assert got == right[: len(got)]
        if kind == "closed":
            stream.close()
    elif kind == "async":
        (result,) = asyncio.run(llm.agenerate([prompt], params))
        assert result.token_ids == right
    elif kind == "given up":
        generations = llm._inputs.generations(prompt, params)
        llm._engine.submit(generations)
        llm._engine.discard(generations)
        assert llm.kv_usage().pages
        (one,) = generations
        assert one.done and one.tokens[one.n_prompt :] == right[: len(one.tokens) - one.n_prompt]
    elif kind == "logits":
        assert np.array_equal(llm.logits(prompt), [logits(prompt[: i + 1]) for i in range(len(prompt))])
    else:

        async def main():
            task = asyncio.ensure_future(llm.agenerate([prompt], params))
            await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                return

        asyncio.run(main())
    return kind


def soak(llm, seed, requests):
    """Random work from all threads; returns how often every kind ran."""
    done, problems = [], []

    def run(number):
        rng = random.Random(100 * seed + number)
        try:
            for _ in range(requests):
                done.append(work(llm, rng))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not problems, problems
    assert not any(thread.is_alive() for thread in threads)
    return done


def left(llm):
    """Sizes, of the engine and of the interpreter, that must not grow with requests."""
    usage = llm.kv_usage()
    core, kv = llm._engine._core, llm.model.kv
    assert usage.in_use == 0 and usage.kept == core.scheduler.blocks.prefix_cache.n_pages == kv.n_pages - kv.n_free
    assert sum(kv.owner_counts) == usage.kept, "a request that has ended owns a page"
    if kv.window_pool is not None:
        assert (
            usage.window_in_use == 0
            and sum(kv.window_pool.owner_counts) == usage.window_kept == kv.window_pool.n_pages - kv.window_pool.n_free
        )
    llm.model.steps.clear()
    gc.collect()
    objects = gc.get_objects()
    # Not isinstance: an abstract class caches every class that was tested against it.
    assert not any(Sequence in type(entry).__mro__ for entry in objects), "a request that has ended still exists"
    assert not core._live and core.scheduler.idle and core.inbox.empty()
    nodes = sum(type(entry) is Node for entry in objects)
    assert nodes == core.scheduler.blocks.prefix_cache.n_pages + 1
    return len(objects)


@pytest.mark.parametrize("windows", [{}, {"window": 13, "n_window_pages": 15}, {"n_states": 9}, {"n_states": 2}])
def test_a_thousand_requests(make_llm, windows):
    llm = make_llm(n_ctx=60, n_pages=24, page_tokens=8, max_batch_tokens=24, max_sequences=5, logits=logits, **windows)
    soak(llm, 1, 20)  # creates everything that exists once
    threads, before = threading.active_count(), left(llm)
    done = soak(llm, 2, REQUESTS)
    after = left(llm)
    assert len(done) == THREADS * REQUESTS > 1000
    assert min(done.count(kind) for kind in set(done)) > 50 and len(set(done)) == 9
    assert threading.active_count() == threads
    assert after - before < 200, "objects that stay for every request"
