"""Sequences and steps for a scheduler without a model."""

from __future__ import annotations

import random

from gumba.engine.scheduler import Scheduler
from gumba.engine.sequence import Sequence
from support.fake_model import FakeKV, FakeStates

SIZE = 8


class Job(Sequence):
    """A sequence whose next token is a function of all tokens before; it ends after ``more`` of them."""

    def __init__(self, prompt, more=4, *, priority=0, streaming=False, name=""):
        super().__init__(prompt)
        self.priority, self.streaming, self.end = priority, streaming, self.n_prompt + more
        self.name = name

    def __repr__(self):
        return self.name or f"Job({self.n_prompt})"

    def next_tokens(self, budget):
        count = min(self.remaining, budget)
        return self.tokens[self.n_cached :][:count], "last" if count == self.remaining else "none"

    def advance(self, count, rows, sampler):
        self.n_cached += count
        self.prompt_done = self.prompt_done or self.n_cached >= self.n_prompt
        if self.n_cached == len(self.tokens):
            self.tokens.append(hash(tuple(self.tokens)) % 1000)
            if len(self.tokens) >= self.end:
                self.finish_reason = "length"


class Steps:
    """A scheduler and the engine's steps around it; checks every step."""

    def __init__(self, *, n_pages=64, budget=32, most=8, seconds=lambda prompt, decoding: 0.0, window=0, n_states=0):
        n_window_pages = 4 * (-(-(window + budget) // SIZE) + 1) if window else 0
        self.kv = FakeKV(n_pages, SIZE, n_window_pages=n_window_pages, window=window)
        self.states = FakeStates(n_states) if n_states else None
        self.scheduler = Scheduler(self.kv, max_batch_tokens=budget, max_sequences=most, states=self.states)
        self.budget, self.most, self.seconds = budget, most, seconds
        self.here, self.ended = [], []
        self.history = []

    def add(self, *jobs):
        for job in jobs:
            self.scheduler.add(job)
            self.here.append(job)
        return jobs[0]

    def remove(self, job):
        self.scheduler.remove(job)
        self.here.remove(job)

    def step(self):
        """Runs one step; returns (job, number of tokens) of all that took part."""
        scheduled = self.scheduler.schedule()
        self.check(scheduled)
        for job, tokens, _ in scheduled:
            for i, token in enumerate(tokens):
                at = job.n_cached + i
                page = job.pages[at // SIZE]
                held = sum(page in other.pages for other in self.here)
                assert held == 1, "a page of several sequences is written"
                self.kv.store[page, at % SIZE] = token
                if self.kv.window_pool is not None:
                    page = job.window_pages[at // SIZE]
                    assert sum(page in other.window_pages for other in self.here) == 1, (
                        "a page of several sequences is written"
                    )
                    self.kv.window_pool.store[page, at % SIZE] = token
            if self.states is not None:
                assert sum(job.state == other.state for other in self.here) == 1, "two sequences have the same slot"
                self.states.take_in(job.state, job.n_cached, tokens, job.tokens)
        prompt = sum(len(tokens) for job, tokens, _ in scheduled if len(tokens) > 1)
        for job, tokens, _ in scheduled:
            job.advance(len(tokens), [], None)
            self.scheduler.blocks.on_computed(job)
        self.scheduler.observe(self.seconds(prompt, any(len(tokens) == 1 for _, tokens, _ in scheduled)))
        for job in [job for job in self.here if job.done]:
            self.remove(job)
            self.ended.append(job)
        step = [(job, len(tokens)) for job, tokens, _ in scheduled]
        self.history.append(step)
        return step

    def check(self, scheduled):
        assert sum(len(tokens) for _, tokens, _ in scheduled) <= self.budget and len(scheduled) <= self.most
        assert len({job for job, _, _ in scheduled}) == len(scheduled)
        for job, tokens, _ in scheduled:
            assert tokens and tokens == job.tokens[job.n_cached : job.n_cached + len(tokens)]
            assert len(job.pages) * SIZE >= job.n_cached + len(tokens)
        for job in self.here:
            stored = self.kv.store[job.pages].ravel()[: job.n_cached].tolist() if job.pages else []
            assert stored == job.tokens[: job.n_cached], "its pages hold other tokens"
            if self.kv.window_pool is not None:
                first = max(0, job.n_cached - self.kv.window + 1)
                stored = [
                    int(self.kv.window_pool.store[job.window_pages[at // SIZE], at % SIZE])
                    for at in range(first, job.n_cached)
                ]
                assert stored == job.tokens[first : job.n_cached], "its window pages hold other tokens"
                assert -1 not in job.window_pages[first // SIZE :] and set(job.window_pages[: first // SIZE]) <= {-1}

    def run(self, most=1000):
        while not self.scheduler.idle:
            assert self.step() and len(self.history) < most, "the scheduler is stuck"
        cache, pool = self.scheduler.blocks.prefix_cache, self.kv.window_pool
        leaked = self.kv.n_pages - self.kv.n_free - cache.evictable()
        assert leaked == 0, f"{leaked} pages have no owner"
        assert pool is None or pool.n_pages - pool.n_free == cache.window_evictable()
        return self.ended


def prompt(n, seed=0):
    return random.Random(seed).choices(range(1000), k=n)
