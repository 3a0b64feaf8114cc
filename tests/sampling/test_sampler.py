"""The compiled sampler against an obvious NumPy one, and the distribution of its draws."""

from __future__ import annotations

import numpy as np
import pytest

from gumba.errors import ModelError
from gumba.params import SamplingParams
from gumba.sampling.sampler import Sampler, UniformStream


def oracle_kept(logits, params):
    """Ids that the filters keep, ascending, by sorting everything."""
    logits = logits.astype(np.float64)
    order = np.lexsort((np.arange(logits.size), -logits))
    if 0 < params.top_k < logits.size:
        order = order[: params.top_k]
    weights = np.exp(logits[order] - logits[order[0]])
    if params.top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(weights), params.top_p * weights.sum())) + 1]
    if params.min_p > 0:
        order = order[logits[order] - logits[order[0]] >= np.log(params.min_p)]
    return np.sort(order)


def oracle(logits, params, history, uniform):
    logits = logits.copy()
    window = params.repetition_window
    for token in set(history[-window:] if window > 0 else history if window < 0 else []):
        value, penalty = logits[token], np.float32(params.repetition_penalty)
        logits[token] = value / penalty if value > 0 else value * penalty
    if params.temperature == 0:
        return int(np.argmax(logits))
    ids = oracle_kept(logits, params)
    with np.errstate(over="ignore"):
        weights = np.exp((logits[ids].astype(np.float64) - logits.max()) / params.temperature)
    cumulative = np.cumsum(weights)
    return int(ids[min(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), ids.size - 1)])


@pytest.mark.parametrize("size", [1, 2, 7, 255, 256, 257, 1000, 5000])
def test_same_token_as_the_oracle(size):
    rng = np.random.default_rng(size)
    sampler = Sampler(size)
    for case in range(400):
        logits = (rng.standard_normal(size) * rng.choice([0.01, 1, 3, 10, 30])).astype(np.float32)
        if case % 3 == 0:
            logits = np.round(logits)  # many ties, and -0.0
        params = SamplingParams(
            temperature=float(rng.choice([0, 1e-300, 0.1, 0.8, 1, 5])),
            top_k=int(rng.choice([0, 1, 2, 40, 300, size])),
            top_p=float(rng.choice([1, 0.95, 0.5, 0.05, 0])),
            min_p=float(rng.choice([0, 0.05, 0.5, 1])),
            repetition_penalty=float(rng.choice([1, 1.3, 0.5])),
            repetition_window=int(rng.choice([-1, 0, 3, 64])),
        )
        history = rng.integers(0, size, 20).tolist()
        before, uniform = logits.copy(), float(rng.random())
        found = sampler.sample(logits, params, history, uniform)
        assert found == oracle(logits, params, history, uniform), (params, uniform)
        assert np.array_equal(logits, before)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_draws_at_the_ends_stay_inside(uniform):
    logits = np.array([-5, 1, 1, -200, 0.5, -200], np.float32)
    params = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0)
    assert Sampler(6).sample(logits, params, [], uniform) == {0.0: 0, 0.5: 2, 1 - 2**-53: 4}[uniform]


def test_flat_logits_keep_exactly_the_share_of_top_p():
    logits = np.full(1000, 3.25, np.float32)
    params = SamplingParams(temperature=1, top_k=0, top_p=0.25, min_p=0)
    sampler = Sampler(1000)
    drawn = {sampler.sample(logits, params, [], uniform) for uniform in np.linspace(0, 1, 4001)[:-1]}
    assert drawn == set(range(250))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0),
        SamplingParams(temperature=0.7, top_k=10, top_p=0.9, min_p=0.02),
        SamplingParams(temperature=1.5, top_k=0, top_p=0.8, min_p=0),
        SamplingParams(temperature=1.5, top_k=0, top_p=1, min_p=0.1),
    ],
)
def test_draws_follow_the_distribution(params):
    """Chi-square of 40,000 draws from the filtered, tempered distribution; the bound is five sigma of chi-square."""
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal(300) * 2).astype(np.float32)
    ids = oracle_kept(logits, params)
    weights = np.exp((logits[ids].astype(np.float64) - logits.max()) / params.temperature)
    draws, sampler, numbers = 40_000, Sampler(300), UniformStream(11)
    counts = np.bincount([sampler.sample(logits, params, [], numbers[i]) for i in range(draws)], minlength=300)
    assert counts.sum() == counts[ids].sum()
    expected = weights / weights.sum() * draws
    common = expected >= 5
    observed = np.append(counts[ids][common], counts[ids][~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = observed.size - 1
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 255, 256, 700])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_an_error(value, at, temperature):
    logits = np.zeros(701, np.float32)
    logits[at] = value
    params = SamplingParams(temperature=temperature, repetition_penalty=1.2)
    with pytest.raises(ModelError, match=f"token {at} is .*expected a finite number"):
        Sampler(701).sample(logits, params, [0, at], 0.5)


def test_padding_past_the_vocabulary_is_never_chosen():
    logits = np.array([0, 1, 50, np.nan], np.float32)
    for uniform in (0.0, 0.9):
        assert Sampler(2).sample(logits, SamplingParams(), [], uniform) in (0, 1)


def test_uniform_numbers_depend_on_seed_and_index_alone():
    forwards, backwards = UniformStream(9), UniformStream(9)
    late = backwards[500]
    numbers = [forwards[i] for i in range(501)]
    assert numbers[500] == late and numbers[:64] == [backwards[i] for i in range(64)]
    assert numbers == np.random.Generator(np.random.Philox(key=9)).random(501).tolist()
    assert UniformStream(10)[0] != numbers[0]
    assert min(numbers) >= 0 and max(numbers) < 1
    assert 0 <= UniformStream(2**64 - 1)[0] < 1
