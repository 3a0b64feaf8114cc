"""Beam search against transformers on tiny models, and against a slow NumPy search on a model that checks its pages."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from gumba import BeamSearchParams, GGUFFile, ModelError, RequestError, SamplingParams
from gumba.engine.engine import Engine
from gumba.engine.search.base import top_k
from gumba.engine.search.beam import BeamSearch
from gumba.runner.load import LoadConfig, load_model
from support.fake_model import END, N_VOCAB, hashed_logits

DATA = Path(__file__).parent.parent / "data"
GOLDENS = json.loads((DATA / "beam_goldens.json").read_text())
STOPS = tuple(range(0, 256, 9))


def log_probs(history, n_prompt, params, ends, logits):
    """Log-probabilities of all tokens, after everything that the parameters change."""
    row = logits(history).astype(np.float64)
    if params.temperature:
        row = row / params.temperature
    row = row - np.logaddexp.reduce(row)
    for token in set(history):
        row[token] *= params.repetition_penalty
    size = params.no_repeat_ngram_size
    if size:
        seen = {tuple(history[i : i + size]) for i in range(len(history) - size + 1)}
        for token in range(len(row)):
            if tuple([*history, token][-size:]) in seen:
                row[token] = -np.inf
    if len(history) - n_prompt < params.min_tokens:
        row[list(ends)] = -np.inf
    return row


def slow_search(prompt, params, ends=(END, *STOPS), n_ctx=64, logits=hashed_logits):
    """Scores every continuation of every beam; (tokens, sum of log-probabilities, score, finish reason) of the best answers."""
    limit = n_ctx - len(prompt)
    limit = limit if params.max_tokens is None else min(limit, params.max_tokens)
    width = params.beam_width // params.num_groups
    groups = [{"beams": [((), 0.0, 0.0)], "answers": [], "open": True} for _ in range(params.num_groups)]
    for length in range(1, limit + 1):
        taken = np.zeros(N_VOCAB)
        for group in groups:
            if not group["open"]:
                continue
            every = []
            for tokens, total, score in group["beams"]:
                row = log_probs([*prompt, *tokens], len(prompt), params, ends, logits)
                for token in np.flatnonzero(row > -np.inf).tolist():
                    paid = score + row[token] - params.diversity_penalty * taken[token]
                    every.append(((*tokens, token), total + row[token], paid))
            every.sort(key=lambda beam: -beam[2])
            goes_on = [beam for beam in every if beam[0][-1] not in ends] if length < limit else []
            ended = [beam for beam in every[:width] if beam[0][-1] in ends or length == limit]
            for tokens, total, paid in ended:
                why = "stop" if tokens[-1] in ends else "length"
                group["answers"].append((tokens, total, paid / length**params.length_penalty, why))
            group["answers"] = sorted(group["answers"], key=lambda answer: -answer[2])[:width]
            group["beams"] = goes_on[:width]
            if not goes_on:
                group["open"] = False
            elif len(group["answers"]) == width:
                far = limit if params.early_stopping == "never" and params.length_penalty > 0 else length
                hope = goes_on[0][2] / far**params.length_penalty
                group["open"] = params.early_stopping is not True and hope > group["answers"][-1][2]
            if group["open"]:
                for beam in group["beams"]:
                    taken[beam[0][-1]] += 1
    answers = [answer for group in groups for answer in group["answers"]]
    return sorted(answers, key=lambda answer: -answer[2])[: params.n]


def check(output, expected):
    assert [sequence.token_ids for sequence in output.sequences] == [list(tokens) for tokens, *_ in expected]
    for sequence, (_, total, score, why) in zip(output.sequences, expected):
        assert sequence.cumulative_logprob == pytest.approx(total, rel=1e-9)
        assert sequence.score == pytest.approx(score, rel=1e-9)
        assert sequence.finish_reason == why


@pytest.mark.parametrize("index", range(len(GOLDENS)))
def test_answers_and_scores_are_those_of_transformers(index):
    case = GOLDENS[index]
    params = BeamSearchParams(**case["params"])
    with GGUFFile(DATA / f"model_{case['model']}.gguf") as file:
        model = load_model(file, LoadConfig(n_ctx=128, n_threads=1, max_batch_tokens=64, kv_type="f32"))
        engine = Engine(model, model.config.n_vocab, max_sequences=32)
        try:
            search = BeamSearch(case["prompt"], params, end_ids={2, *params.stop_token_ids}, n_ctx=engine.n_ctx)
            engine.finish([search])
            assert engine.kv_usage().in_use == 0
        finally:
            engine.close()
    assert [answer.tokens for answer in search.answers] == case["sequences"]
    assert [answer.score for answer in search.answers] == pytest.approx(case["scores"], rel=1e-4)
    for answer in search.answers:
        assert answer.logprob == pytest.approx(answer.score * len(answer.tokens) ** params.length_penalty)
        assert answer.reason == ("stop" if answer.tokens[-1] in (2, *params.stop_token_ids) else "length")


def test_the_goldens_cover_every_parameter():
    together = {name for case in GOLDENS for name, value in case["params"].items()}
    assert together >= {"length_penalty", "early_stopping", "min_tokens", "repetition_penalty", "no_repeat_ngram_size"}
    outputs = {json.dumps(case["sequences"]) for case in GOLDENS}
    assert len(outputs) == len(GOLDENS), "a parameter changes nothing"


PARAMS = [
    {"beam_width": 1, "max_tokens": 9},
    {"beam_width": 4, "n": 4, "max_tokens": 12},
    {"beam_width": 5, "n": 3, "length_penalty": 0.0},
    {"beam_width": 3, "n": 3, "length_penalty": 3.0, "early_stopping": "never"},
    {"beam_width": 3, "n": 3, "length_penalty": -2.0, "max_tokens": 20},
    {"beam_width": 2, "n": 2, "length_penalty": -0.2, "early_stopping": "never", "temperature": 0.5},
    {"beam_width": 4, "n": 4, "early_stopping": True, "temperature": 2.5},
    {"beam_width": 4, "n": 4, "min_tokens": 5, "max_tokens": 8, "early_stopping": True, "temperature": 0.7},
    {"beam_width": 3, "n": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "max_tokens": 10},
    {"beam_width": 40, "n": 40, "max_tokens": 5, "temperature": 2.0},
    {"beam_width": 4, "n": 4, "num_groups": 4, "diversity_penalty": 0.0, "max_tokens": 7},
    {"beam_width": 6, "n": 6, "num_groups": 3, "diversity_penalty": 1.3, "max_tokens": 12},
    {"beam_width": 6, "n": 6, "num_groups": 6, "diversity_penalty": 40.0, "max_tokens": 12},
    {"beam_width": 8, "n": 5, "num_groups": 2, "diversity_penalty": 0.4, "temperature": 3.0, "early_stopping": True},
]


@pytest.mark.parametrize("fields", PARAMS, ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items()))
def test_answers_are_those_of_the_slow_search(make_llm, fields):
    llm = make_llm(n_pages=2000)
    params = BeamSearchParams(stop_token_ids=STOPS, **fields)
    prompts = [[1, 2, 3], list(range(40)), [7] * 16]
    for prompt, output in zip(prompts, llm.beam_search(prompts, params)):
        assert output.prompt is None and output.prompt_token_ids == prompt
        check(output, slow_search(prompt, params))
        assert output.timings.generated_tokens == len(output.sequences[0].token_ids)


@pytest.mark.parametrize("n", [1, 5, 16, 17, 100, 263, 1000])
def test_top_k(n):
    rng = np.random.default_rng(n)
    for count in (1, 2, 6, 7, 20, 62, 63, 100, n, n + 3):
        for values in (rng.standard_normal(n), rng.integers(0, 4, n).astype(float), np.zeros(n)):
            values[rng.random(n) < 0.3] = -np.inf
            order = sorted(np.flatnonzero(values > -np.inf).tolist(), key=lambda i: -values[i])
            assert top_k(values, count).tolist() == order[:count]


def test_groups_choose_different_tokens(make_llm):
    """With a penalty that outweighs all, no two groups choose the same token in a step."""
    llm = make_llm(n_pages=500)
    params = BeamSearchParams(beam_width=6, n=6, num_groups=6, diversity_penalty=100, max_tokens=6)
    (output,) = llm.beam_search([[1, 2]], params)
    # An answer's last token does not continue, and costs no other group a penalty.
    for column in list(zip(*[sequence.token_ids for sequence in output.sequences]))[:-1]:
        assert len(set(column)) == 6


def test_text_and_ends(make_llm):
    def logits(history):  # "he" or "hi", then the end
        row = np.full(N_VOCAB, -20, np.float32)
        if len(history) == 1:
            row[ord("h")] = 5
        elif len(history) == 2:
            row[ord("e")], row[ord("i")] = 5, 4
        else:
            row[END] = 5
        return row

    llm = make_llm(logits=logits)
    for prompt in ("a", [ord("a")]):
        (output,) = llm.beam_search([prompt], BeamSearchParams(beam_width=2, n=2))
        assert [(sequence.text, sequence.finish_reason) for sequence in output.sequences] == [
            ("he", "stop"),
            ("hi", "stop"),
        ]
        assert output.sequences[0].token_ids == [ord("h"), ord("e"), END]
        assert output.prompt == (prompt if prompt == "a" else None)
    (output,) = llm.beam_search("a", BeamSearchParams(beam_width=2, n=1, ignore_eos=True, max_tokens=3))
    assert output.sequences[0].token_ids == [ord("h"), ord("e"), END]
    assert output.sequences[0].finish_reason == "length"


def test_to_the_end_of_the_context(make_llm):
    llm = make_llm(n_ctx=20, n_pages=60)
    params = BeamSearchParams(beam_width=3, n=3)
    (output,) = llm.beam_search([list(range(12))], params)
    assert [len(sequence.token_ids) for sequence in output.sequences] == [8, 8, 8]
    check(output, slow_search(list(range(12)), params, ends=(END,), n_ctx=20))


@pytest.mark.parametrize("n_prompt", [31, 32, 37])
def test_beams_share_the_pages_of_their_prompt(make_llm, n_prompt):
    held = []

    def count(model):
        held.append(sum(1 for owners in model.kv.owner_counts if owners))

    llm = make_llm(n_ctx=200, n_pages=100, page_tokens=16, before=count, max_batch_tokens=64)
    params = BeamSearchParams(beam_width=8, n=8, max_tokens=6)
    (output,) = llm.beam_search([list(range(n_prompt))], params)
    check(output, slow_search(list(range(n_prompt)), params, ends=(END,), n_ctx=200))
    # The prompt is computed once, then every beam one token a step.
    assert [[n for _, n in step] for step in llm.model.steps] == [[n_prompt]] + [[1] * 8] * 5
    # Its full pages exist once, and each beam has one or two of its own; a few cached ones are of beams that ended.
    assert held[1] <= n_prompt // 16 + 8 + 1
    assert max(held) <= n_prompt // 16 + 2 * 8 + 2


def test_beams_that_end_leave_their_places_to_others(make_llm):
    """With no more places than beams, no beam is recomputed for lack of a place."""
    llm = make_llm(n_pages=100, max_sequences=4)
    params = BeamSearchParams(beam_width=4, max_tokens=15)
    check(llm.beam_search([[1, 2, 3]], params)[0], slow_search([1, 2, 3], params, ends=(END,)))
    assert [[n for _, n in step] for step in llm.model.steps] == [[3]] + [[1] * 4] * 14


@pytest.mark.parametrize("max_sequences", [1, 2, 3, 32])
@pytest.mark.parametrize("n_pages", [16, 19, 26, 60])
@pytest.mark.parametrize("cached", [True, False])
def test_same_answers_when_pages_or_places_run_out(make_llm, max_sequences, n_pages, cached):
    """Beams run in turns, are preempted and recomputed, and the answers have the same bits."""
    llm = make_llm(n_pages=n_pages, max_sequences=max_sequences, max_batch_tokens=16)
    params = BeamSearchParams(beam_width=6, n=6, max_tokens=20, stop_token_ids=STOPS, cache_prompt=cached)
    prompts = [list(range(30)), [5, 6], list(range(30, 7, -1))]
    roomy = make_llm(n_pages=2000)
    alone = [roomy.beam_search([prompt], params)[0].sequences for prompt in prompts]
    together = llm.beam_search(prompts, params)
    assert [output.sequences for output in together] == alone
    assert max(map(len, llm.model.steps)) <= max_sequences
    assert llm.kv_usage().in_use == 0 and (cached or llm.kv_usage().kept == 0)
    check(together[1], slow_search([5, 6], params))


def test_beside_other_requests(make_llm):
    """Streams, answers and searches at once, from several threads, with few pages: all get what they would get alone."""
    rng = random.Random(1)
    llm, roomy = make_llm(n_pages=24, max_sequences=5), make_llm(n_pages=2000)
    jobs = []
    for _ in range(40):
        prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 40))]
        if rng.random() < 0.5:
            jobs.append(("generate", prompt, SamplingParams(seed=rng.randrange(9), max_tokens=rng.randrange(1, 20))))
        else:
            groups = rng.choice([1, 2])
            fields = {"beam_width": groups * rng.randrange(1, 4), "num_groups": groups, "diversity_penalty": 0.5}
            jobs.append(("beam_search", prompt, BeamSearchParams(max_tokens=rng.randrange(1, 20), **fields)))

    def run(llm, kind, prompt, params):
        (output,) = getattr(llm, kind)([prompt], params)
        return output.sequences if kind == "beam_search" else output.token_ids

    alone = [run(roomy, *job) for job in jobs]
    outputs = [None] * len(jobs)

    def work(first):
        for index in range(first, len(jobs), 8):
            outputs[index] = run(llm, *jobs[index])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert outputs == alone
    assert llm.kv_usage().in_use == 0


def test_cancelled(make_llm):
    """It returns the answers so far, and all pages are free."""

    def cancel(model):
        if len(model.steps) == 6:
            llm.cancel()

    llm = make_llm(before=cancel, n_pages=200)
    params = BeamSearchParams(beam_width=4, n=4, max_tokens=20)
    (output,) = llm.beam_search([[1, 2, 3]], params)
    assert [sequence.finish_reason for sequence in output.sequences] == ["cancelled"] * 4
    # The prompt's step was the first; the step in which it was cancelled still counts.
    shorter = slow_search([1, 2, 3], BeamSearchParams(beam_width=4, n=4, max_tokens=7), ends=(END,))
    assert [sequence.token_ids for sequence in output.sequences] == [list(tokens) for tokens, *_ in shorter]
    assert [sequence.score for sequence in output.sequences] == pytest.approx([score for _, _, score, _ in shorter])
    assert llm.kv_usage().in_use == 0
    check(llm.beam_search([[1, 2, 3]], params)[0], slow_search([1, 2, 3], params, ends=(END,)))


def test_beams_are_removed_in_the_order_of_the_search(make_llm):
    """Which pages become free first must not depend on the order that the beams' parents happened to have."""
    orders = []

    def compare(model):
        live = list(llm._engine._core._live)
        for search in live:
            if isinstance(search, BeamSearch):
                orders.append(([live.index(beam) for beam in search.branches], len(search.branches)))

    llm = make_llm(before=compare, n_pages=200)
    llm.beam_search([[1, 2, 3], [9, 8, 7, 6]], BeamSearchParams(beam_width=5, n=5, max_tokens=20))
    assert len(orders) > 30 and max(count for _, count in orders) == 5
    for places, _ in orders:
        assert places == sorted(places)


def test_cancelled_before_it_began(make_llm):
    llm = make_llm(before=lambda model: llm.cancel())
    (output,) = llm.beam_search([list(range(30))], BeamSearchParams(beam_width=2, n=2, num_groups=2))
    assert [(sequence.token_ids, sequence.finish_reason) for sequence in output.sequences] == [([], "cancelled")]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_beam_that_fails_ends_all(make_llm, bad):
    def logits(history):
        row = hashed_logits(history)
        if len(history) == 8:
            row[5] = bad
        return row

    llm = make_llm(logits=logits, n_pages=200)
    with pytest.raises(ModelError, match="token 5"):
        llm.beam_search([[1, 2, 3]], BeamSearchParams(beam_width=4, max_tokens=20))
    assert llm.kv_usage().in_use == 0
    params = BeamSearchParams(beam_width=4, max_tokens=4)
    check(llm.beam_search([[1, 2, 3]], params)[0], slow_search([1, 2, 3], params, ends=(END,)))


def test_the_model_fails(make_llm):
    def fail(model):
        if len(model.steps) == 4:
            model.steps.append([])
            raise OSError("the disk is gone")

    llm = make_llm(before=fail, n_pages=200)
    with pytest.raises(OSError, match="disk"):
        llm.beam_search([[1, 2, 3]], BeamSearchParams(beam_width=4, max_tokens=20))
    assert llm.kv_usage().in_use == 0


def test_no_token_is_left(make_llm):
    llm = make_llm(n_ctx=400, n_pages=400)
    everything = list(range(N_VOCAB))
    with pytest.raises(RequestError, match="no token is left"):
        llm.beam_search([everything], BeamSearchParams(beam_width=3, no_repeat_ngram_size=1))
    # Three tokens are left, then two, one and none: fewer answers than requested, and none is a repetition.
    few = BeamSearchParams(beam_width=2, n=2, no_repeat_ngram_size=1, stop_token_ids=[everything[-1]], ignore_eos=True)
    (output,) = llm.beam_search([everything[:-3]], few)
    check(output, slow_search(everything[:-3], few, ends=everything[-1:], n_ctx=400))


def test_extreme_length_penalties(make_llm):
    llm = make_llm(n_ctx=2000, n_pages=2000)
    for penalty in (100.0, -100.0):
        params = BeamSearchParams(beam_width=2, n=2, max_tokens=1250, length_penalty=penalty, stop_token_ids=STOPS)
        (output,) = llm.beam_search([[1, 2]], params)
        assert len(output.sequences) == 2
        assert not any(np.isnan(sequence.score) for sequence in output.sequences)

    def certain(history):
        return np.where(np.arange(N_VOCAB) == (1 if len(history) < 1900 else END), 1e4, 0).astype(np.float32)

    llm = make_llm(n_ctx=2000, n_pages=2000, logits=certain)
    (output,) = llm.beam_search([[1, 2]], BeamSearchParams(beam_width=1, length_penalty=-100.0))
    assert [sequence.score for sequence in output.sequences] == [0] and len(output.sequences[0].token_ids) == 1899


def test_requests_are_checked(make_llm):
    llm = make_llm()
    for params in (None, SamplingParams(), {"beam_width": 2}):
        with pytest.raises(RequestError, match="BeamSearchParams"):
            llm.beam_search(["a"], params)
    with pytest.raises(RequestError, match="n_vocab"):
        llm.beam_search(["a"], BeamSearchParams(beam_width=2, stop_token_ids=[N_VOCAB]))
    with pytest.raises(RequestError, match="leave no room"):
        llm.beam_search([[1] * 64], BeamSearchParams(beam_width=2))
    with pytest.raises(RequestError, match="in that list"):
        llm.beam_search([1, 2], BeamSearchParams(beam_width=2))
    assert llm.beam_search([], BeamSearchParams(beam_width=2)) == []


def test_abeam_search(make_llm):
    llm = make_llm(n_pages=200)
    params = BeamSearchParams(beam_width=3, n=3, max_tokens=5)
    (output,) = asyncio.run(llm.abeam_search([[1, 2]], params))
    check(output, slow_search([1, 2], params, ends=(END,)))


def test_closing_ends_a_search(make_llm):
    started = threading.Event()
    llm = make_llm(n_ctx=4000, n_pages=4000, before=lambda model: started.set())
    outputs = []
    params = BeamSearchParams(beam_width=3, n=1)
    thread = threading.Thread(target=lambda: outputs.extend(llm.beam_search([[1, 2]], params)))
    thread.start()
    assert started.wait(10)
    llm.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [sequence.finish_reason for sequence in outputs[0].sequences] == ["cancelled"]
