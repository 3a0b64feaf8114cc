"""The scheduler alone: which sequences take part in a step, with how many tokens, and which own the pages."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from gumba import BeamSearchParams, QueueFullError, SamplingParams
from gumba.engine.prefix_cache import MIN_COPIED
from gumba.engine.scheduler import FIRST_PREFILL_CHUNK, MIN_PREFILL_CHUNK, STEP_SECONDS
from gumba.errors import ResourceError
from support.generation_oracle import oracle
from support.scheduler_steps import SIZE, Job, Steps, prompt
from support.threads import in_thread


def test_in_order_of_priority_then_of_arrival():
    steps = Steps(most=1)
    jobs = [Job(prompt(5, i), priority=p, name=f"{p} {i}") for i, p in enumerate((0, 2, -1, 0, 2, -1))]
    steps.add(*jobs)
    assert [job.name for job in steps.run()] == ["-1 2", "-1 5", "0 0", "0 3", "2 1", "2 4"]


def test_a_running_sequence_is_not_preempted_by_a_higher_priority():
    steps = Steps(most=1)
    first = steps.add(Job(prompt(5), 9))
    steps.step()
    second = steps.add(Job(prompt(5, 1), 2, priority=-5))
    assert steps.run() == [first, second]


def test_decoding_comes_first_and_prompts_share_the_rest():
    steps = Steps(budget=20)
    one = steps.add(Job(prompt(4), 30))
    steps.step()
    two, three = Job(prompt(30, 1)), Job(prompt(30, 2))
    steps.add(two, three)
    assert steps.step() == [(one, 1), (two, 19)]
    assert steps.step() == [(one, 1), (two, 11), (three, 8)]
    assert steps.step() == [(one, 1), (two, 1), (three, 18)]
    assert steps.step() == [(one, 1), (two, 1), (three, 4)]
    assert steps.step() == [(one, 1), (two, 1), (three, 1)]


def test_a_prompt_of_higher_priority_takes_what_is_left_first():
    steps = Steps(budget=16)
    low, high = Job(prompt(60)), Job(prompt(20, 1), priority=-1)
    steps.add(low)
    steps.step()
    steps.add(high)
    assert steps.step() == [(low, 16)], "a prefill that has begun continues"
    assert steps.step()[0] == (low, 16)


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_than_allowed_run_at_once(most):
    steps = Steps(most=most)
    steps.add(*(Job(prompt(3, i)) for i in range(7)))
    steps.run()
    assert max(map(len, steps.history)) == most


def test_every_decoding_sequence_has_a_token_of_every_step():
    steps = Steps(budget=4, most=32)
    steps.add(*(Job(prompt(3, i), 5) for i in range(9)))
    steps.run()
    assert max(map(len, steps.history)) == 4


def test_the_last_in_order_is_preempted_when_pages_run_out_and_recomputed():
    steps = Steps(n_pages=6)
    first = steps.add(Job(prompt(8), 33, name="first"))
    second = steps.add(Job(prompt(8, 1), 20, name="second"))
    taking_part = {first: [], second: []}
    while not steps.scheduler.idle:
        for job, tokens in steps.step():
            taking_part[job].append((len(steps.history), tokens))
    assert steps.ended == [first, second]
    assert [tokens for _, tokens in taking_part[first]] == [8] + [1] * 32, "the first was delayed"
    pauses = [a for (a, _), (b, _) in zip(taking_part[second], taking_part[second][1:]) if b - a > 1]
    assert len(pauses) == 1, "the second was not preempted once"
    alone = Steps()
    other = alone.add(Job(prompt(8, 1), 20))
    alone.run()
    assert other.tokens == second.tokens


def test_cached_pages_of_a_preempted_sequence_are_not_recomputed():
    """The last of two is preempted, and admitted again when the first has ended: most of its full pages are cached."""
    steps = Steps(n_pages=9)
    first, second = Job(prompt(14), 30), Job(prompt(14, 1), 40)
    steps.add(first, second)
    while second.remaining == second.n_prompt or second.pages:
        steps.step()
    assert first in steps.here and len(second.tokens) > 4 * SIZE
    while not second.pages:
        length = len(second.tokens)
        steps.step()
    assert steps.ended == [first]
    assert 1 < dict(steps.history[-1])[second] == length - 3 * SIZE
    steps.run()


@pytest.mark.parametrize("more", range(1, 12))
def test_the_next_turn_of_a_chat_starts_where_the_last_one_ended(more):
    """All computed tokens are cached, except fewer at the end than are worth a copy."""
    steps = Steps()
    steps.add(one := Job(prompt(13), more))
    steps.run()
    computed = 13 + more - 1
    steps.add(two := Job(one.tokens + prompt(5, 1), 2))
    steps.run()
    assert two.n_reused == (computed if computed % SIZE >= MIN_COPIED else computed // SIZE * SIZE)


def test_reused_tokens_are_counted_at_the_first_admission():
    """Not when a preempted sequence is admitted again."""
    steps = Steps(n_pages=6)
    steps.add(Job(prompt(8), 33), second := Job(prompt(8, 1), 20))
    steps.run()
    assert second.n_reused == 0
    steps.add(third := Job(prompt(8, 1), 4))
    steps.run()
    assert third.n_reused == 7


def test_admission_leaves_running_sequences_a_page_to_grow():
    steps = Steps(n_pages=5)
    steps.add(Job(prompt(8), 6), Job(prompt(17, 1), 2), Job(prompt(8, 2), 2))
    assert [tokens for _, tokens in steps.step()] == [8, 17]
    while len(steps.ended) < 1:
        assert len(steps.step()) <= 2
    steps.run()


def test_one_that_waits_for_pages_is_not_overtaken():
    steps = Steps(n_pages=6)
    first = steps.add(Job(prompt(20), 12))
    steps.step()
    large, small = Job(prompt(40, 1), 2, name="large"), Job(prompt(3, 2), 2, name="small")
    steps.add(large, small)
    assert steps.run()[:2] == [first, large]


def test_more_pages_than_there_are_is_an_error_of_that_request_alone():
    steps = Steps(n_pages=4)
    large = steps.add(Job(prompt(33), 2))
    assert steps.scheduler.schedule() == [] and isinstance(large.error, ResourceError)
    assert "5 KV pages are needed, 4 are free" in str(large.error)
    steps.remove(large)
    steps.add(Job(prompt(3)))
    steps.run()


@pytest.mark.parametrize("n", range(4 * SIZE - 7, 4 * SIZE + 1))
def test_a_page_to_copy_is_evicted_when_there_is_no_other(n):
    """The same prompt again, of as many pages as exist: its last page cannot be both cached and copied."""
    steps = Steps(n_pages=4)
    steps.add(one := Job(prompt(n), 0))
    steps.run()
    steps.add(two := Job(prompt(n), 0))
    steps.run()
    assert one.tokens == two.tokens and two.n_reused == 3 * SIZE


def test_followers_wait_for_the_prompt_of_their_leader():
    steps = Steps(budget=16)
    leader = Job(prompt(46), 3)
    followers = [Job(prompt(46), 3), Job(prompt(46), 3)]
    for follower in followers:
        follower.leader = leader
    other = Job(prompt(2, 1), 2)
    steps.add(leader, *followers, other)
    assert steps.step() == [(leader, 16)]
    assert steps.step() == [(leader, 16)]
    assert steps.step() == [(leader, 14), (other, 2)], "a sequence without a leader need not wait"
    assert [tokens for job, tokens in steps.step() if job in followers] == [1, 1]
    steps.run()
    assert [job.n_reused for job in (leader, *followers)] == [0, 45, 45]
    assert leader.tokens == followers[0].tokens == followers[1].tokens


def test_followers_of_a_cancelled_leader_compute_the_prompt():
    steps = Steps(budget=16)
    leader, follower = Job(prompt(40), 3), Job(prompt(40), 3)
    follower.leader = leader
    steps.add(leader, follower)
    steps.step()
    leader.cancel()
    steps.remove(leader)
    assert steps.step() == [(follower, 16)]
    steps.run()
    assert follower.n_reused == 16


class Machine:
    """Invented times: the duration of a step depends on its number of prompt tokens."""

    def __init__(self, decode, token):
        self.decode, self.token = decode, token

    def __call__(self, prompt, decoding):
        return (self.decode if decoding else 0.0) + self.token * prompt


def parts_of(steps, job):
    return [tokens for plan in steps.history for other, tokens in plan if other is job and tokens > 1]


def test_prefill_chunks_keep_streams_fluent():
    machine = Machine(0.01, 0.001)
    steps = Steps(n_pages=700, budget=512, seconds=machine)
    stream = steps.add(Job(prompt(3), 300, streaming=True))
    for _ in range(5):
        steps.step()
    steps.add(reading := Job(prompt(4000, 1), 2))
    steps.step()
    assert parts_of(steps, reading) == [FIRST_PREFILL_CHUNK], "nothing was measured yet"
    for _ in range(8):
        steps.step()
    fits = round((STEP_SECONDS - machine.decode) / machine.token)
    assert all(abs(part - fits) <= 1 for part in parts_of(steps, reading)[2:])
    # When the machine becomes slower, chunks shrink at once; when it becomes faster, they grow step by step.
    machine.token = 0.003
    for _ in range(3):
        steps.step()
    assert abs(parts_of(steps, reading)[-1] - fits / 3) <= 1
    machine.token = 0.5
    for _ in range(3):
        steps.step()
    assert parts_of(steps, reading)[-2:] == [MIN_PREFILL_CHUNK] * 2
    machine.token = 0.001
    before = len(parts_of(steps, reading))
    for _ in range(20):
        steps.step()
    later = parts_of(steps, reading)[before:]
    assert later == sorted(later) and later[0] < fits / 2 < fits - 3 < later[-1] <= fits
    assert all(job is stream for job, _ in (plan[0] for plan in steps.history)), "the stream missed a step"
    # When the stream has ended, prompts take the whole step.
    stream.cancel()
    steps.remove(stream)
    assert steps.step() == [(reading, 512)]


@pytest.mark.parametrize("decode", [0.05, 0.08, 3.0])
def test_there_is_a_minimum_chunk(decode):
    """Decoding may take the whole target time; a prompt must be computed nevertheless."""
    steps = Steps(n_pages=400, budget=512, seconds=Machine(decode, 0.01))
    steps.add(Job(prompt(3), 900, streaming=True))
    steps.step()
    steps.step()
    steps.add(reading := Job(prompt(200, 1), 2))
    while reading in steps.here:
        steps.step()
    assert set(parts_of(steps, reading)[1:-1]) == {MIN_PREFILL_CHUNK}


def test_without_streams_steps_are_full():
    steps = Steps(n_pages=400, budget=100, seconds=Machine(0.01, 0.1))
    steps.add(Job(prompt(3), 50), reading := Job(prompt(350, 1), 2))
    steps.run()
    assert parts_of(steps, reading) == [97, 99, 99, 55]


def test_a_step_that_was_not_computed_is_scheduled_again():
    steps = Steps(budget=16)
    steps.add(Job(prompt(20), 9), Job(prompt(9, 1), 9))
    for _ in range(12):
        assert steps.scheduler.schedule() == steps.scheduler.schedule() == steps.scheduler.schedule()
        steps.step()
    steps.run()


@pytest.mark.parametrize("window, n_states", [(0, 0), (1, 0), (7, 0), (30, 0), (0, 1), (0, 4), (0, 60), (7, 12)])
@pytest.mark.parametrize("seed", range(12))
def test_no_sequence_starves_and_no_page_is_lost(seed, window, n_states):
    """Random requests come and go, with few pages: the first in order takes part in every step, and all end with the tokens
    that they would have alone."""
    rng = random.Random(seed)
    sizes = {"n_pages": rng.choice([9, 12, 30]), "budget": rng.choice([8, 17, 64]), "most": rng.choice([3, 10])}
    steps = Steps(**sizes, window=window, n_states=n_states)
    stems = [prompt(40, i) for i in range(3)]
    gone = []
    for _ in range(250):
        if rng.random() < 0.35:
            start = rng.choice(stems)[: rng.randrange(40)]
            job = Job(
                start + prompt(rng.randrange(1, 9), rng.random()), rng.randrange(25), priority=rng.choice([-1, 0, 0, 3])
            )
            job.streaming, job.uses_prefix_cache = rng.random() < 0.2, rng.random() < 0.9
            if rng.random() < 0.2:
                job.max_cached = 0
            steps.add(job)
            if rng.random() < 0.3:
                other = Job(job.tokens, rng.randrange(9), priority=job.priority)
                other.leader = job
                steps.add(other)
        if steps.here and rng.random() < 0.08:
            job = rng.choice(steps.here)
            job.cancel()
            steps.remove(job)
            gone.append(job)
        if steps.here:
            running = [job for job in steps.here if job.pages]
            part = [job for job, _ in steps.step()]
            if running:
                assert part and min(running, key=lambda job: job.rank) in part, "the first in order was delayed"
            assert part
    steps.run(5000)
    assert len(steps.ended) > 40 and gone
    for job in steps.ended:
        alone = Job(job.tokens[: job.n_prompt], job.end - job.n_prompt)
        while not alone.done:
            alone.advance(alone.remaining, [], None)
        assert job.tokens == alone.tokens
    assert steps.scheduler.blocks.prefix_cache.evict(steps.kv.n_pages)
    assert steps.states is None or steps.states.n_free == n_states
    assert steps.kv.window_pool is None or steps.kv.window_pool.n_free == steps.kv.window_pool.n_pages


def test_a_page_that_fills_a_gap_is_in_the_tree_once():
    """Requests that end within a page and continue, repeated after some of their pages were evicted: no page is lost."""
    steps = Steps(n_pages=300, budget=16, window=10)
    questions = [prompt(5, i) for i in range(40)]
    for _ in range(3):
        for question in questions:
            steps.add(Job(question, 12))
            steps.run(5000)


def test_pages_before_the_window_are_released():
    """A long sequence owns few window pages, and cached ones are evicted for others."""
    steps = Steps(n_pages=200, budget=16, window=20)
    job = steps.add(Job(prompt(600), 300))
    most = -(-(20 + 16) // SIZE) + 1
    while not job.done:
        steps.step()
        assert sum(page >= 0 for page in job.window_pages) <= most
    assert steps.kv.window_pool.n_pages == 4 * most
    steps.run()


@pytest.mark.parametrize("window", [1, 9, 16, 17, 40])
def test_a_cached_prefix_needs_the_pages_that_the_window_reaches(window):
    """A prefix matches to its end; to its middle only as long as the window pages before that are cached."""
    steps = Steps(n_pages=200, budget=16, window=window)
    tokens = prompt(400)
    steps.add(Job(tokens, 1))
    steps.run()
    again = steps.add(Job([*tokens, 1, 2], 1))
    steps.run()
    assert again.n_reused == 400
    middle = steps.add(Job([*tokens[:100], 1, 2], 1))
    steps.run()
    assert middle.n_reused == (96 if window == 1 else 0), "all window pages but the last have been evicted"
    other = steps.add(Job([*tokens[:100], 3, 4], 1))
    steps.run()
    assert other.n_reused == 100, "the gap was filled"
    last = steps.add(Job([*tokens, 1, 3], 1))
    steps.run()
    assert last.n_reused == 400, "pages where a request ended are evicted after those that others passed through"


SHORT = SamplingParams(temperature=0, max_tokens=3)


@pytest.fixture
def busy_llm(make_llm):
    """An LLM with two places, where three more may wait; an event that its steps wait for, and one that says it has begun."""
    go, begun = threading.Event(), threading.Event()

    def wait(model):
        begun.set()
        assert go.wait(20)

    llm = make_llm(max_sequences=2, max_queue=3, before=wait)
    yield llm, go, begun
    go.set()


def test_a_full_queue_refuses_requests(busy_llm):
    """Requests that fit are all computed, and no others, however many are submitted during a step."""
    llm, go, begun = busy_llm
    first = in_thread(lambda: llm.generate([[1]], SHORT))
    assert begun.wait(20)
    others = [in_thread(lambda i=i: llm.generate([[i], [i, 0]], SHORT)) for i in range(2, 9)]
    while llm._engine._inbox.qsize() < len(others):
        time.sleep(0.001)
    go.set()
    results = [other() for other in others]
    assert [item.token_ids for item in first()] == [oracle([1], SHORT, 3)]
    full = [result for result in results if isinstance(result, QueueFullError)]
    assert len(results) - len(full) == 2, "five places, one of them taken: two of the pairs fit"
    assert all("5 requests are running or waiting, the maximum is 5" in str(error) for error in full)
    for i, result in enumerate(results, 2):
        if result not in full:
            assert [item.token_ids for item in result] == [oracle([i], SHORT, 3), oracle([i, 0], SHORT, 3)]
    assert sum(count for step in llm.model.steps for _, count in step) == 3 + 2 * (3 + 4), (
        "a refused request was computed"
    )
    # When they have ended, new ones fit again.
    assert [item.token_ids for item in llm.generate([[7]] * 5, SHORT)] == [oracle([7], SHORT, 3)] * 5


def test_more_at_once_than_will_ever_fit(busy_llm):
    llm, go, _ = busy_llm
    go.set()
    with pytest.raises(QueueFullError, match="0 requests are running or waiting, the maximum is 5"):
        llm.generate([[7]] * 6, SHORT)
    with pytest.raises(QueueFullError):
        llm.generate([[7]], SamplingParams(n=6))
    with pytest.raises(QueueFullError):
        list(llm.stream([7], SamplingParams(n=6)))
    with pytest.raises(QueueFullError):
        asyncio.run(llm.agenerate([[7]] * 6, SHORT))
    assert llm.model.steps == []


def test_cancelled_requests_leave_the_queue(busy_llm):
    llm, go, begun = busy_llm
    first = in_thread(lambda: llm.generate([[1]], SHORT))
    assert begun.wait(20)
    generations = llm._inputs.generations([2], SamplingParams(temperature=0, n=4))
    llm._engine.submit(generations)
    llm._engine.discard(generations)
    second = in_thread(lambda: llm.generate([[3]] * 4, SHORT))
    go.set()
    assert [len(first()), len(second())] == [1, 4]
    assert {item.finish_reason for item in generations} == {"cancelled"}


def test_a_search_counts_once(busy_llm):
    """However many branches it has."""
    llm, go, begun = busy_llm
    first = in_thread(lambda: llm.generate([[1]], SHORT))
    assert begun.wait(20)
    search = in_thread(lambda: llm.beam_search([[2]], BeamSearchParams(beam_width=8, max_tokens=30)))
    while llm._engine._inbox.qsize() < 1:
        time.sleep(0.001)
    go.set()
    assert len(first()) == 1
    deadline = time.monotonic() + 20
    while len(llm._engine._core._live) < 8 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(llm.generate([[3]] * 4, SHORT)) == 4
    assert not isinstance(search(), Exception)


def test_a_source_is_in_one_step() -> None:
    """Also while it delays streams; the tokens after it come in chunks again."""
    steps = Steps(budget=80, seconds=lambda prompt, decoding: 0.01)
    steps.add(Job(prompt(3), 30, streaming=True))
    steps.step()
    job = Job(prompt(76, seed=1), 3)
    job.n_source, job.uses_prefix_cache = 60, False
    other = Job(prompt(40, seed=2), 3)
    steps.add(job, other)
    assert steps.step()[1:] == [(job, 60)]
    steps.run()
    assert sum(count for plan in steps.history for item, count in plan if item is job) == 78


def test_a_source_waits_until_all_of_it_fits() -> None:
    steps = Steps(budget=80)
    steps.add(*(Job(prompt(3, seed=i), more) for i, more in enumerate((9, 9, 9, 5))))
    steps.step()
    job = Job(prompt(78), 3)
    job.n_source, job.uses_prefix_cache = 77, False
    steps.add(job)
    steps.run()
    first = next(plan for plan in steps.history if job in dict(plan))
    assert dict(first)[job] == 77 and len(first) == 4
