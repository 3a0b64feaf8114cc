"""Models with recurrent layers: which sequence continues from which state. ``FakeStates`` remember all their tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gumba import BeamSearchParams, ContrastiveSearchParams, SamplingParams
from gumba.engine import state_checkpoints
from gumba.engine.prefix_tree import Node
from gumba.engine.state_checkpoints import StateCheckpoints
from support.fake_model import FakeStates, echo, prompts_of
from support.scheduler_steps import SIZE, Job, Steps, prompt

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def run(steps, tokens, more=1):
    """Runs a new request to its end; returns how many of its tokens were cached."""
    steps.add(job := Job(tokens, more))
    steps.run()
    return job.n_reused


def test_the_same_prompt_again_starts_at_its_last_full_page():
    for n in (1, SIZE, SIZE + 1, 5 * SIZE, 5 * SIZE + 3):
        steps = Steps(n_states=9)
        tokens = prompt(n)
        assert [run(steps, tokens), run(steps, tokens)] == [0, (n - 1) // SIZE * SIZE]
        # The last request left its state where it ended: after the end of a shorter prompt.
        assert run(steps, tokens[:-1] + [7, 7]) == max((n - 1) // SIZE * SIZE, 0)


@pytest.mark.parametrize("more", range(1, 12))
def test_the_next_turn_of_a_chat_starts_exactly_where_the_last_one_ended(more):
    steps = Steps(n_states=9)
    steps.add(one := Job(prompt(13), more))
    steps.run()
    assert run(steps, one.tokens + prompt(5, 1)) == 13 + more - 1


def test_a_checkpoint_is_made_where_requests_diverge():
    """The first cannot know where others will differ; the second computes all and stops there; the others start there."""
    steps = Steps(n_states=20)
    common = prompt(3 * SIZE + 2)
    actual = [run(steps, common + prompt(2 * SIZE, 10 + i)) for i in range(4)]
    assert actual == [0, 0, 3 * SIZE, 3 * SIZE]


def test_long_prompts_have_checkpoints_at_intervals():
    steps = Steps(n_pages=200, n_states=30)
    every = state_checkpoints.MIN_PAGES_BETWEEN * SIZE
    tokens = prompt(3 * every + SIZE)
    assert run(steps, tokens) == 0
    for n in (every + 3, 2 * every + 1, 3 * every + 1):
        assert run(steps, tokens[:n] + prompt(50, n)) == n // every * every
    longer = prompt(20 * every, 1)
    assert run(steps, longer) == 0
    assert steps.scheduler.blocks.checkpoints.n_checkpoints <= state_checkpoints.MAX_CHECKPOINTS
    assert run(steps, longer[: 10 * every] + [7]) >= 7 * every


def test_steps_end_where_a_checkpoint_is_made():
    steps = Steps(budget=20, n_states=9)
    run(steps, prompt(43))
    assert [count for ((_, count),) in steps.history] == [20, 20, 3]
    steps = Steps(budget=32, n_states=9)
    run(steps, prompt(43))
    assert [count for ((_, count),) in steps.history] == [32, 8, 3]


def test_without_the_prefix_cache_there_are_no_checkpoints():
    steps = Steps(n_states=3)
    tokens = prompt(30)
    for _ in range(2):
        job = Job(tokens, 1)
        job.uses_prefix_cache = False
        steps.add(job)
        steps.run()
        assert job.n_reused == 0
    assert steps.states.n_free == 3 and [len(plan) for plan in steps.history] == [1, 1]


def test_no_more_run_than_there_are_slots():
    steps = Steps(n_states=2)
    jobs = [Job(prompt(10, i), 6) for i in range(5)]
    steps.add(*jobs)
    steps.run()
    assert max(len(plan) for plan in steps.history) == 2
    assert steps.ended == jobs


def test_the_least_recently_used_checkpoint_is_evicted_first():
    states = FakeStates(4)
    checkpoints, nodes = StateCheckpoints(states, SIZE), [Node() for _ in range(5)]
    jobs = [Job([1]) for _ in nodes]
    assert checkpoints.allocate(jobs[0])
    for node in nodes[:3]:
        checkpoints.add(node, jobs[0])
    checkpoints.touch(nodes[0])
    assert checkpoints.allocate(jobs[1])  # in the place of a checkpoint
    assert [node.state >= 0 for node in nodes] == [True, False, True, False, False]
    checkpoints.add(nodes[3], jobs[1])
    assert [node.state >= 0 for node in nodes] == [True, False, False, True, False]
    checkpoints.move(jobs[1], nodes[4])
    assert jobs[1].state < 0 and checkpoints.n_checkpoints == 3
    checkpoints.move(jobs[0], nodes[4])  # it has one
    assert jobs[0].state >= 0 and checkpoints.n_checkpoints == 3 and states.n_free == 0
    assert (
        checkpoints.allocate(jobs[1])
        and checkpoints.allocate(jobs[2])
        and checkpoints.allocate(jobs[3])
        and not checkpoints.allocate(jobs[4])
    )
    assert checkpoints.n_checkpoints == 0
    checkpoints.add(nodes[0], jobs[0])
    assert checkpoints.n_checkpoints == 0


@pytest.mark.parametrize("n_states, most", [(100, state_checkpoints.MAX_CHECKPOINTS), (400, 100)])
def test_the_number_of_checkpoints_is_limited(n_states, most):
    checkpoints, job = StateCheckpoints(FakeStates(n_states), SIZE), Job([1])
    assert checkpoints.allocate(job)
    nodes = [Node() for _ in range(most + 5)]
    for node in nodes:
        checkpoints.add(node, job)
    assert [node.state >= 0 for node in nodes] == [False] * 5 + [True] * most


def test_a_preempted_sequence_continues_from_its_own_state():
    steps = Steps(n_pages=9, n_states=9)
    first, second = Job(prompt(14), 30), Job(prompt(14, 1), 40)
    steps.add(first, second)
    while second.remaining == second.n_prompt or second.pages:
        steps.step()
    assert second.state < 0
    steps.run()
    assert steps.ended == [first, second]
    alone = Steps()
    run(alone, prompt(14, 1), 40)
    assert second.tokens == alone.ended[0].tokens


def test_checkpoints_are_dropped_with_their_pages():
    steps = Steps(n_pages=8, n_states=9)
    run(steps, prompt(30))
    kept = steps.scheduler.blocks.checkpoints.n_checkpoints
    assert kept > 0 and steps.states.n_free == 9 - kept
    assert steps.scheduler.blocks.prefix_cache.evict(8)
    assert steps.scheduler.blocks.checkpoints.n_checkpoints == 0 and steps.states.n_free == 9
    run(steps, prompt(30))
    steps.scheduler.blocks.prefix_cache.clear()
    assert steps.scheduler.blocks.checkpoints.n_checkpoints == 0 and steps.states.n_free == 9


def test_a_state_after_too_many_tokens_is_no_checkpoint():
    """As after a step that failed once it was computed."""
    steps = Steps(n_states=4)
    steps.add(job := Job(prompt(2 * SIZE), 9))
    while job.n_cached < 2 * SIZE + 3:
        steps.step()
    steps.states.taken[job.state] += [1]
    kept = steps.scheduler.blocks.checkpoints.n_checkpoints
    steps.remove(job)
    assert steps.scheduler.blocks.checkpoints.n_checkpoints == kept and steps.states.n_free == 4 - kept


def test_a_partial_page_does_not_get_the_state_of_a_longer_one():
    steps = Steps(n_states=9)
    tokens = prompt(14)
    run(steps, tokens)
    (part,) = steps.scheduler.blocks.prefix_cache.root.full[tuple(tokens[:SIZE])].partial
    steps.scheduler.blocks.checkpoints.drop(part)
    run(steps, tokens[:11])
    assert part.tokens == tuple(tokens[SIZE:14]) and part.state < 0
    assert run(steps, tokens + [7]) == SIZE


def test_a_partial_page_that_grows_loses_its_checkpoint():
    steps = Steps(n_states=9)
    cache, checkpoints = steps.scheduler.blocks.prefix_cache, steps.scheduler.blocks.checkpoints
    (page,) = steps.kv.allocate(1)
    checkpoints.allocate(job := Job([1, 2, 3]))
    part = cache.add(cache.root, (1, 2, 3), page)
    steps.states.take_in(job.state, 0, [1, 2, 3], [1, 2, 3])
    job.n_cached = 3
    checkpoints.move(job, part)
    assert part.state >= 0 and cache.add(cache.root, (1, 2), page) is part and part.state >= 0
    assert cache.add(cache.root, (1, 2, 3, 4), page) is part and part.state < 0 and steps.states.n_free == 9


def test_a_cleared_tree_takes_nothing_from_running_sequences():
    steps = Steps(n_states=9)
    steps.add(Job(prompt(3 * SIZE), 9))
    for _ in range(3):
        steps.step()
    steps.scheduler.blocks.prefix_cache.clear()
    steps.run()
    assert steps.scheduler.blocks.checkpoints.n_checkpoints == 0 and steps.states.n_free == 9


# Through the engine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(make_llm):
    """An LLM on a model with recurrent layers and few slots, and one without."""
    return lambda n_states=40, **sizes: (make_llm(n_states=n_states, **sizes), make_llm(**sizes))


def without_timings(results):
    return [replace(completion, timings=None) for result in results for completion in result.outputs]


@pytest.mark.parametrize("n_states", [1, 3, 40])
def test_several_answers_and_searches_are_those_without_states(both, n_states):
    prompts = [[100 + i for i in range(n)] for n in (1, 9, 23)]
    several = SamplingParams(n=3, seed=4, max_tokens=9)
    beams, contrastive = (
        BeamSearchParams(beam_width=4, n=2, max_tokens=9),
        ContrastiveSearchParams(top_k=3, max_tokens=6),
    )
    actual = []
    for llm in both(n_states):
        for _ in range(2):
            answers = [llm.generate(prompts, several), llm.contrastive_search(prompts, contrastive)]
            ranked = [
                (completion.token_ids, completion.score)
                for one in llm.beam_search(prompts, beams)
                for completion in one.sequences
            ]
            actual.append([*map(without_timings, answers), ranked])
    assert actual == [actual[0]] * 4


@pytest.mark.parametrize("wrong", [1, 3, 10**9])
@pytest.mark.parametrize("n_states", [1, 4, 40])
def test_wrong_drafts_are_rolled_back(make_llm, n_states, wrong):
    """Draft tokens that are never, often and always right; without a slot for a copy there are none."""
    recurrent, plain = (make_llm(n_states=n, logits=echo(5, wrong)) for n in (n_states, 0))
    params = SamplingParams(temperature=0, max_tokens=40)
    prompts = prompts_of(wrong)
    assert without_timings(recurrent.generate(prompts, replace(params, prompt_lookup_tokens=9))) == without_timings(
        plain.generate(prompts, params)
    )
    guessed = any(count > 1 for step in recurrent.model.steps for position, count in step if position > 30)
    assert guessed == (n_states > 1 and wrong > 1)
    if n_states == 40:
        assert len(recurrent.model.steps) <= len(plain.model.steps) * (0.6 if wrong > 3 else 1)


def test_a_full_context_is_shifted(both):
    recurrent, plain = both(n_ctx=24)
    params = replace(GREEDY, max_tokens=50, context_shift=True, n_keep=3)
    assert without_timings(recurrent.generate([[100, 101, 102, 103]], params)) == without_timings(
        plain.generate([[100, 101, 102, 103]], params)
    )


def test_the_logits_of_all_positions(both):
    recurrent, plain = both()
    tokens = list(range(100, 140))
    for _ in range(2):
        assert (recurrent.logits(tokens) == plain.logits(tokens)).all()
        recurrent.generate([tokens], GREEDY)


def test_a_lease_has_a_slot_of_its_own(both):
    recurrent, plain = both(n_states=4)
    tokens = list(range(100, 140))
    for llm, expected in ((recurrent, 36), (plain, 40)):  # of a prompt, its last full page; or all of it
        llm.generate([tokens], GREEDY)
        held = llm._engine.lease(tokens)
        assert held.n_cached == expected
        if llm is recurrent:
            assert llm.model.states.taken[held.state] == tokens[:36]
            others = [llm._engine.lease(tokens) for _ in range(3)]
            assert [completion.n_cached for completion in others] == [
                36,
                36,
                0,
            ]  # no checkpoint is left when all slots are leased
            for completion in others:
                llm._engine.release_lease(completion)
        llm._engine.release_lease(held)


def test_the_fake_pool_detects_mistakes():
    states = FakeStates(2)
    slot = states.allocate()
    states.take_in(slot, 0, [1, 2], [1, 2])
    with pytest.raises(AssertionError):
        states.take_in(slot, 1, [2], [1, 2])
