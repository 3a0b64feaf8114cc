"""The compiled samplers against reference ones (``sampling_oracle``), and the distribution of their draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gumba.errors import ModelError, RequestError
from gumba.sampling.filters import FILTERS
from gumba.sampling.sampler import Sampler, SamplerState, UniformStream
from gumba.sampling_params import SAMPLERS, SamplingParams
from support import sampling_oracle
from support.sampling_oracle import Situation

DEFAULT = SamplingParams()
#: All filters off.
BARE = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
SIZES = [1, 2, 7, 255, 256, 257, 1000, 5000]


def bits(allowed):
    """The bit mask of bool [n]."""
    words = np.zeros(-(-allowed.size // 32), np.uint32)
    for token in np.flatnonzero(allowed):
        words[token // 32] |= np.uint32(1 << (token % 32))
    return words


def state_of(params, n, at, seed=0):
    """The state of a sequence in this situation; its coin is the situation's from now on."""
    n_prompt = len(at.history) - at.n_generated
    state = SamplerState(
        params, n, at.history[:n_prompt], seed=seed, end_ids=at.end_ids, bad_words=at.bad_words, breakers=at.breakers
    )
    for token in at.history[n_prompt:]:
        state.accept(token)
    at.coin = UniformStream(seed, stream=1)[at.n_generated]
    if at.mu is not None:
        state.mu = at.mu
    return state


def logits_of(rng, size, case):
    logits = (rng.standard_normal(size) * rng.choice([0.01, 1, 3, 10, 30])).astype(np.float32)
    return np.round(logits) if case % 3 == 0 else logits  # many ties, and -0.0


def pick(rng, *values):
    return values[rng.integers(len(values))]


def compare(cases):
    """Sample in each case as the oracle does; returns how many were decided beyond doubt."""
    samplers: dict[int, Sampler] = {}
    certain = 0
    for number, (logits, params, at) in enumerate(cases):
        state, before = state_of(params, logits.size, at, seed=number), logits.copy()
        sampler = samplers.setdefault(logits.size, Sampler(logits.size))
        mask = None if at.allowed is None else bits(at.allowed)
        expected = sampling_oracle.choices(logits, params, at)
        found = sampler.sample(logits, state, at.uniform, mask).token
        assert found in expected, [f"{k}={v}" for k, v in vars(params).items() if v != getattr(DEFAULT, k)] + [at]
        assert sampler.sample(logits, state, at.uniform, mask).token == found
        assert np.array_equal(logits, before)
        certain += len(expected) == 1
    return certain


@pytest.mark.parametrize("size", SIZES)
def test_the_usual_samplers(size):
    rng = np.random.default_rng(size)
    cases = []
    for case in range(120):
        params = SamplingParams(
            temperature=pick(rng, 0, 1e-300, 0.1, 0.8, 1, 5),
            top_k=pick(rng, 0, 1, 2, 40, 300, size),
            top_p=pick(rng, 1, 0.95, 0.5, 0.05, 0),
            min_p=pick(rng, 0, 0.05, 0.5, 1),
            repetition_penalty=pick(rng, 1, 1.3, 0.5),
            repetition_window=pick(rng, -1, 0, 3, 64),
        )
        at = Situation(history=rng.integers(0, size, 20).tolist(), uniform=rng.random())
        cases.append((logits_of(rng, size, case), params, at))
    assert compare(cases) > 110


ONE_BY_ONE = {name: oracle.typical for name, oracle in sampling_oracle.FILTERS.items()}
ONE_BY_ONE["temperature"] = [{"dynatemp_range": r, "dynatemp_exponent": e} for r in (0.3, 2) for e in (0, 0.5, 1, 3)]


def test_every_filter_has_an_oracle():
    assert set(sampling_oracle.FILTERS) == set(FILTERS)
    assert {*FILTERS, *sampling_oracle.EDITS, "temperature"} == set(SAMPLERS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_filter_alone_and_after_top_k(name, size):
    """Alone it works on the whole vocabulary; XTC in ``samplers`` keeps them from the usual compiled call."""
    rng = np.random.default_rng(size)
    cases = []
    for case in range(30):
        chosen = ONE_BY_ONE[name][case % len(ONE_BY_ONE[name])]
        params = SamplingParams(
            **{
                **BARE,
                "min_keep": pick(rng, 0, 2, 5),
                **chosen,
                "samplers": (name, "xtc") if name != "xtc" else (name,),
            }
        )
        if name == "temperature":
            params = SamplingParams(**{**BARE, "temperature": pick(rng, 0.1, 1, 1.5), **chosen})
        if case % 2 and name != "top_k":
            params = SamplingParams(**{**BARE, **chosen, "top_k": 40})
        cases.append((logits_of(rng, size, case), params, Situation(uniform=rng.random())))
    assert compare(cases) >= 25


#: The filters whose values ``random_params`` lists; of others it takes those of the oracle.
IN_COMBINATIONS = ("top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "epsilon_cutoff", "eta_cutoff", "xtc")


def random_params(rng, size):
    """Any combination, in any order."""
    names = [name for name in SAMPLERS if rng.random() < 0.8]
    rng.shuffle(names)
    others = [oracle for name, oracle in sampling_oracle.FILTERS.items() if name not in IN_COMBINATIONS]
    return {
        **{field: value for oracle in others for field, value in pick(rng, oracle.off, *oracle.typical).items()},
        "temperature": pick(rng, 0, 0.3, 0.8, 1, 2),
        "dynatemp_range": pick(rng, 0, 0, 0.5),
        "top_k": pick(rng, 0, 0, 5, 40, 2000),
        "top_p": pick(rng, 1, 0.95, 0.6),
        "min_p": pick(rng, 0, 0.02, 0.2),
        "typical_p": pick(rng, 1, 1, 0.9, 0.4),
        "top_n_sigma": pick(rng, -1, 0, 1.5),
        "epsilon_cutoff": pick(rng, 0, 0, 0.001),
        "eta_cutoff": pick(rng, 0, 0, 0.001),
        "xtc_probability": pick(rng, 0, 0.5),
        "xtc_threshold": pick(rng, 0.05, 0.1),
        "mirostat": pick(rng, 0, 0, 0, 1, 2),
        "mirostat_tau": pick(rng, 1, 3, 5),
        "min_keep": pick(rng, 0, 0, 3),
        "repetition_penalty": pick(rng, 1, 1.3, 0.7),
        "frequency_penalty": pick(rng, 0, 0.4, -0.5),
        "presence_penalty": pick(rng, 0, 0.7, -0.2),
        "repetition_window": pick(rng, -1, 0, 5, 64),
        "dry_multiplier": pick(rng, 0, 0.8, 3),
        "dry_base": pick(rng, 1, 1.75),
        "dry_allowed_length": pick(rng, 0, 1, 2, 3),
        "dry_range": pick(rng, -1, 0, 6),
        "no_repeat_ngram_size": pick(rng, 0, 0, 2, 3),
        "logit_bias": pick(rng, {}, {0: 2.5, size - 1: -1}, {0: -math.inf} if size > 30 else {}),
        "allowed_token_ids": pick(rng, None, None, sorted({*range(0, size, 2)})),
        "min_tokens": pick(rng, 0, 2, 12),
        "samplers": pick(rng, None, names),
    }


@pytest.mark.parametrize("size", SIZES)
def test_any_combination_in_any_order(size):
    rng = np.random.default_rng(size + 1)
    cases = []
    while len(cases) < 100:
        params = SamplingParams(**random_params(rng, size))
        variety = pick(rng, 2, 5, size)  # few different tokens make repetitions
        history = rng.integers(0, min(variety, size), pick(rng, 0, 1, 30)).tolist()
        at = Situation(
            history=history,
            n_generated=min(pick(rng, 0, 5), len(history)),
            uniform=rng.random(),
            mu=pick(rng, None, 0.5, 4.0),
            allowed=pick(rng, None, rng.random(size) < 0.5),
            end_ids=frozenset({size // 2}),
            bad_words=tuple(
                tuple(rng.integers(0, min(variety, size), k).tolist()) for k in pick(rng, (), (1, 2, 3, 2))
            ),
            breakers=tuple(tuple(rng.integers(0, size, k).tolist()) for k in pick(rng, (), (1,), (1, 2, 2))),
        )
        logits = logits_of(rng, size, len(cases))
        if sampling_oracle.ruled_out(size, params, at).all():
            with pytest.raises(RequestError, match="no token is left"):
                Sampler(size).sample(
                    logits, state_of(params, size, at), at.uniform, None if at.allowed is None else bits(at.allowed)
                )
        cases.append((logits, params, at))
    possible = [case for case in cases if not sampling_oracle.ruled_out(size, case[1], case[2]).all()]
    assert compare(possible) >= len(possible) * 0.95
    assert len(possible) > (60 if size > 7 else 5)


def test_a_large_vocabulary():
    """As wide as real ones, where cuts go through several rounds."""
    rng, size = np.random.default_rng(0), 151_936
    cases = []
    for scale in (0.001, 2.0, 12.0):
        logits = (rng.standard_normal(size) * scale).astype(np.float32)
        for name, chosen in ONE_BY_ONE.items():
            params = SamplingParams(**{**BARE, "min_keep": 2, **chosen[len(chosen) // 2], "samplers": (name,)})
            cases.append((logits, params, Situation(uniform=rng.random())))
        for mirostat in (1, 2):
            cases.append((logits, SamplingParams(**BARE, mirostat=mirostat), Situation(uniform=rng.random())))
    # 1e-6 to either side is more than a token of a flat distribution.
    assert compare(cases) >= len(cases) // 2


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_equal_tokens_are_kept_from_the_lowest_id(name):
    for size in (50, 1000):
        params = SamplingParams(**{**BARE, name: 0.25, "samplers": (name, "xtc") if name != "xtc" else (name,)})
        sampler, state = Sampler(size), SamplerState(params, size)
        logits = np.full(size, 3.25, np.float32)
        drawn = {sampler.sample(logits, state, uniform).token for uniform in np.linspace(0, 1, 4001)[:-1]}
        assert drawn == set(range(math.ceil(size / 4)))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("more", [{}, {"typical_p": 0.999999}])
def test_draws_at_the_ends_stay_inside(uniform, more):
    logits = np.array([-5, 1, 1, -200, 0.5, -200], np.float32)
    state = SamplerState(SamplingParams(**BARE, min_keep=6 if more else 0, **more), 6)
    found = Sampler(6).sample(logits, state, uniform).token
    assert found == {0.0: 0, 0.5: 2, 1 - 2**-53: 4}[uniform]


def test_flat_logits_keep_exactly_the_share_of_top_p():
    logits = np.full(1000, 3.25, np.float32)
    sampler, state = Sampler(1000), SamplerState(SamplingParams(temperature=1, top_k=0, top_p=0.25, min_p=0), 1000)
    drawn = {sampler.sample(logits, state, uniform).token for uniform in np.linspace(0, 1, 4001)[:-1]}
    assert drawn == set(range(250))


CHI_SQUARE = {
    "none": {},
    "usual": {"temperature": 0.7, "top_k": 10, "top_p": 0.9, "min_p": 0.02},
    "top_p": {"temperature": 1.5, "top_p": 0.8},
    "min_p": {"temperature": 1.5, "min_p": 0.1},
    "typical": {"typical_p": 0.7},
    "top_n_sigma": {"top_n_sigma": 1.5, "temperature": 1.3},
    "epsilon": {"epsilon_cutoff": 0.005},
    "eta": {"eta_cutoff": 0.01},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    "dynatemp": {"dynatemp_range": 0.5},
    "penalties": {"repetition_penalty": 1.5, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "dry": {"dry_multiplier": 2.0, "dry_allowed_length": 1},
    "mirostat1": {"mirostat": 1, "mirostat_tau": 3.0},
    "mirostat2": {"mirostat": 2, "mirostat_tau": 3.0},
    "masked": {"allowed_token_ids": range(0, 300, 7)},
}


@pytest.mark.parametrize("name", CHI_SQUARE)
def test_draws_follow_the_distribution(name):
    """Chi-square of 10,000 draws from the oracle's distribution; the bound is five sigma of chi-square."""
    rng, n, draws = np.random.default_rng(5), 300, 10_000
    logits = (rng.standard_normal(n) * 2).astype(np.float32)
    params = SamplingParams(**{**BARE, **CHI_SQUARE[name]})
    at = Situation(history=[int(np.argmax(logits)), 5, int(np.argmax(logits))])
    sampler, state, numbers = Sampler(n), state_of(params, n, at), UniformStream(11)
    ids, p = sampling_oracle.distribution(logits, params, at)
    tokens = [sampler.sample(logits, state, numbers[i]).token for i in range(draws)]
    counts = np.bincount(tokens, minlength=n)
    assert counts.sum() == counts[ids].sum()
    expected = p * draws
    common = expected >= 5
    observed = np.append(counts[ids][common], counts[ids][~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = observed.size - 1
    assert freedom > 3
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_xtc_acts_at_its_probability():
    """The coin is another number than the draw's, and depends on seed and index alone."""
    logits = np.array([5, 4, 0, 0, 0, 0], np.float32)
    params = SamplingParams(**BARE, xtc_probability=0.3, xtc_threshold=0.05)
    sampler, state, numbers = Sampler(6), SamplerState(params, 6, seed=4), UniformStream(4)
    tokens = []
    for i in range(4000):
        tokens.append(sampler.sample(logits, state, numbers[i]).token)
        state.accept(tokens[-1])
    # Without the likeliest token the second holds nearly all.
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    assert abs(tokens.count(0) / 4000 - 0.7 * p[0]) < 5 * np.sqrt(0.25 / 4000)
    again = SamplerState(params, 6, seed=4)
    for i, token in enumerate(tokens[:50]):
        assert sampler.sample(logits, again, numbers[i]).token == token
        again.accept(token)
    coins = [SamplerState(params, 6, seed=4).coin(), SamplerState(params, 6, seed=5).coin(), numbers[0]]
    assert len(set(coins)) == 3


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_steers_the_surprise_to_its_target(version):
    rng, n = np.random.default_rng(2), 5000
    logits = (-1.1 * np.log(np.arange(1, n + 1)) + rng.standard_normal(n) * 0.1).astype(np.float32)
    logp = logits - np.log(np.exp(logits.astype(float)).sum())
    sampler, numbers, means = Sampler(n), UniformStream(3), []
    for tau in (2.0, 4.0, 6.0):
        state = SamplerState(SamplingParams(**BARE, mirostat=version, mirostat_tau=tau), n)
        surprises = []
        for i in range(600):
            mu, token = state.mu, sampler.sample(logits, state, numbers[i]).token
            ids, p = sampling_oracle.distribution(logits, state.params, Situation(mu=mu))
            surprise = -np.log2(p[list(ids).index(token)])
            state.accept(token)
            assert state.mu == pytest.approx(mu - 0.1 * (surprise - tau), abs=1e-9)
            surprises.append(surprise)
        means.append(np.mean(surprises[100:]))
    assert means == pytest.approx([2.0, 4.0, 6.0], abs=0.25)
    assert logp[0] > logp[-1]


def test_mirostat_learns_only_from_the_token_drawn():
    logits = np.arange(10, dtype=np.float32)
    sampler, state = Sampler(10), SamplerState(SamplingParams(**BARE, mirostat=2, mirostat_tau=1.0), 10)
    token = sampler.sample(logits, state, 0.99).token
    other = state.fork()
    other.accept((token + 1) % 10)
    assert other.mu == 2.0
    state.accept(token)
    assert state.mu != 2.0
    mu = state.mu
    state.accept(token)  # not drawn: given
    assert state.mu == mu


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 255, 256, 700])
@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.0},
        {"repetition_penalty": 1.2},
        {},
        {"top_k": 0},
        {"typical_p": 0.5},
        {"typical_p": 0.5, "top_k": 0},
        {"allowed_token_ids": [3]},
        {"logits_processors": [lambda ids, logits: np.zeros(701)]},
    ],
)
def test_logits_that_are_not_finite_are_an_error(value, at, more):
    logits = np.zeros(701, np.float32)
    logits[at] = value
    state = SamplerState(SamplingParams(**more), 701, [0, at])
    with pytest.raises(ModelError, match=f"token {at} is .*expected a finite number"):
        Sampler(701).sample(logits, state, 0.5)


def test_padding_past_the_vocabulary_is_never_chosen():
    logits = np.array([0, 1, 50, np.nan], np.float32)
    for params in (
        SamplingParams(logprobs=2),
        SamplingParams(logprobs=2, typical_p=0.9),
        SamplingParams(presence_penalty=1),
    ):
        for uniform in (0.0, 0.9):
            choice = Sampler(2).sample(logits, SamplerState(params, 2, [0]), uniform)
            assert choice.token in (0, 1) and {token for token, _ in choice.top} <= {0, 1}


def test_uniform_numbers_depend_on_seed_and_index_alone():
    forwards, backwards = UniformStream(9), UniformStream(9)
    late = backwards[500]
    numbers = [forwards[i] for i in range(501)]
    assert numbers[500] == late and numbers[:64] == [backwards[i] for i in range(64)]
    assert numbers == np.random.Generator(np.random.Philox(key=9)).random(501).tolist()
    assert UniformStream(10)[0] != numbers[0] != UniformStream(9, stream=1)[0]
    assert min(numbers) >= 0 and max(numbers) < 1
    assert 0 <= UniformStream(2**64 - 1, stream=1)[0] < 1
