"""Log-probabilities, what is ruled out, processors, forks, and texts as token sequences."""

from __future__ import annotations

import gc
import math
import threading
import weakref

import numpy as np
import pytest

from gumba.errors import ModelError, RequestError
from gumba.sampling.sampler import Sampler, SamplerState, UniformStream
from gumba.sampling.token_sequences import bad_word_sequences, breaker_sequences
from gumba.sampling_params import SamplingParams

GREEDY = {"temperature": 0}


def log_softmax(logits):
    x = logits.astype(np.float64)
    return x - x.max() - math.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 5000])
@pytest.mark.parametrize(
    "more", [{}, GREEDY, {"typical_p": 0.5, "repetition_penalty": 1.5}, {"temperature": 3, "top_k": 0}]
)
def test_log_probabilities_are_those_of_the_models_logits(size, more):
    rng, sampler = np.random.default_rng(size), Sampler(size)
    for case in range(30):
        logits = (rng.standard_normal(size) * rng.choice([0.01, 3, 40])).astype(np.float32)
        if case % 3 == 0:
            logits = np.round(logits)
        expected = log_softmax(logits)
        order = np.lexsort((np.arange(size), -logits))
        for count in (0, 1, 20, 1000):
            state = SamplerState(SamplingParams(logprobs=count, **more), size, [0, 0])
            choice = sampler.sample(logits, state, rng.random())
            assert choice.logprob == pytest.approx(expected[choice.token], abs=1e-12, rel=1e-12)
            assert choice.rank == list(order).index(choice.token) + 1
            assert [token for token, _ in choice.top] == order[:count].tolist()
            assert [value for _, value in choice.top] == pytest.approx(expected[order[:count]], abs=1e-12, rel=1e-12)


def test_log_probabilities_alone():
    logits = np.array([1, 2, 3], np.float32)
    sampler = Sampler(3)
    choice = sampler.sample(logits, SamplerState(SamplingParams(), 3), 0.5)
    assert (choice.logprob, choice.top, choice.rank) == (None, (), None)
    choice = sampler.sample(logits, SamplerState(SamplingParams(**GREEDY), 3, logprobs=1), 0.5)
    assert choice.token == 2 and choice.rank == 1 and choice.top == ((2, choice.logprob),)
    assert sampler.sample(logits, SamplerState(SamplingParams(logprobs=2), 3, logprobs=None), 0.5).logprob is None
    measured = sampler.logprobs(logits, 0, 2)
    assert measured.rank == 3 and measured.logprob == pytest.approx(log_softmax(logits)[0])
    assert [token for token, _ in measured.top] == [2, 1]
    with pytest.raises(ModelError, match="token 1 is nan"):
        sampler.logprobs(np.array([1, np.nan, 3], np.float32), 0, 2)


def test_logits_far_apart():
    logits = np.array([3e38, -3e38, 0, 3e38], np.float32)
    found = Sampler(4).logprobs(logits, 1, 4)
    assert found.top[0] == (0, pytest.approx(-math.log(2))) and found.rank == 4 and found.logprob < -1e38
    for more in ({}, {"top_k": 0}, {"typical_p": 0.9}, {"mirostat": 1}, {"mirostat": 2}, {"dynatemp_range": 0.5}):
        for uniform in (0.0, 0.999):
            state = SamplerState(SamplingParams(**more, min_keep=4 if "typical_p" in more else 0), 4)
            assert Sampler(4).sample(logits, state, uniform).token in (0, 3)


def mask(n, *tokens):
    words = np.zeros(-(-n // 32), np.uint32)
    for token in tokens:
        words[token // 32] |= np.uint32(1 << (token % 32))
    return words


@pytest.mark.parametrize("more", [GREEDY, {}, {"top_k": 0, "top_p": 1, "min_p": 0}, {"top_k": 0}, {"typical_p": 0.9}])
@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53])
def test_only_tokens_of_the_mask_are_chosen(more, uniform):
    rng, n = np.random.default_rng(1), 1000
    logits = (rng.standard_normal(n) * 5).astype(np.float32)
    logits[[0, 999]] = 40, 41
    for allowed in ([3], [31, 32, 700], range(500, 600), [998]):
        state = SamplerState(SamplingParams(**more), n)
        assert Sampler(n).sample(logits, state, uniform, mask(n, *allowed)).token in allowed
        # What the parameters allow is allowed within that.
        state = SamplerState(SamplingParams(**more, allowed_token_ids=[*list(allowed)[:1], 999]), n)
        assert Sampler(n).sample(logits, state, uniform, mask(n, *allowed)).token == next(iter(allowed))


def test_a_mask_may_be_longer_and_must_fit():
    logits = np.arange(40, dtype=np.float32)
    state = SamplerState(SamplingParams(**GREEDY), 40)
    assert Sampler(40).sample(logits, state, 0.5, mask(100, 7, 99)).token == 7
    for wrong in (np.zeros(1, np.uint32), np.zeros(2, np.int64), np.zeros((2, 2), np.uint32)):
        with pytest.raises(RequestError, match=r"mask: expected uint32 \[2\], found"):
            Sampler(40).sample(logits, state, 0.5, wrong)


@pytest.mark.parametrize("more", [GREEDY, {}, {"top_k": 0}, {"typical_p": 0.5}, {"mirostat": 2}])
def test_no_token_left_is_an_error(more):
    logits, sampler = np.zeros(50, np.float32), Sampler(50)
    with pytest.raises(RequestError, match="no token is left to choose from"):
        sampler.sample(logits, SamplerState(SamplingParams(**more), 50), 0.5, mask(50))
    banned = SamplingParams(**more, logit_bias=dict.fromkeys(range(50), -math.inf))
    with pytest.raises(RequestError, match="no token is left to choose from"):
        sampler.sample(logits, SamplerState(banned, 50), 0.5)
    with pytest.raises(RequestError, match="no token is left"):
        state = SamplerState(SamplingParams(**more, allowed_token_ids=[4], min_tokens=1), 50, end_ids={4})
        sampler.sample(logits, state, 0.5)
    state.accept(0)
    assert sampler.sample(logits, state, 0.5).token == 4


def test_what_is_ruled_out_stays_so_under_bias_and_penalties():
    logits = np.array([5, -5, 1], np.float32)
    params = SamplingParams(
        **GREEDY, allowed_token_ids=[1], logit_bias={0: 1e6, 2: 1e6}, repetition_penalty=0.01, presence_penalty=-100.0
    )
    assert Sampler(3).sample(logits, SamplerState(params, 3, [0, 2]), 0.5).token == 1


def test_min_tokens_and_bad_words_follow_the_answer():
    logits = np.array([0, 5, 4, 3, 2], np.float32)
    state = SamplerState(SamplingParams(**GREEDY, min_tokens=2), 5, [4], end_ids={1}, bad_words=[(2, 3), (3, 3, 2)])
    sampler, tokens = Sampler(5), []
    for _ in range(4):
        tokens.append(sampler.sample(logits, state, 0.5).token)
        state.accept(tokens[-1])
    assert tokens == [2, 2, 1, 1]
    state = SamplerState(SamplingParams(**GREEDY), 5, [2], bad_words=[(1,), (2, 3), (3, 4, 2)])
    for token, expected in ((2, 2), (3, 2), (4, 3)):
        state.accept(token)
        assert sampler.sample(np.array([0, 9, 4, 5, 1], np.float32), state, 0.5).token == (
            expected if token != 3 else 3
        )


def test_ids_beyond_the_vocabulary_are_errors():
    for field, more in (
        ("logit_bias", {"logit_bias": {7: 1.0}}),
        ("allowed_token_ids", {"allowed_token_ids": [1, 7]}),
    ):
        with pytest.raises(RequestError, match=f"{field}: expected token ids below n_vocab 7, found 7"):
            SamplerState(SamplingParams(**more), 7)
    with pytest.raises(RequestError, match="bad_words: expected token ids below n_vocab 7, found 9"):
        SamplerState(SamplingParams(), 7, bad_words=[(1, 9)])


def test_extreme_bias_and_penalties_leave_finite_logits():
    logits = np.array([3.4e38, -3.4e38, 1, 2], np.float32)
    for more in ({"logit_bias": {0: 1e6, 1: -1e6}}, {"repetition_penalty": 100.0}, {"repetition_penalty": 0.01}):
        state = SamplerState(SamplingParams(**GREEDY, **more), 4, [0, 1, 2, 3])
        assert Sampler(4).sample(logits, state, 0.5).token == 0
    tokens = [1, 2] * 600  # powers of the base end where floats do
    state = SamplerState(SamplingParams(**GREEDY, dry_multiplier=100.0, dry_base=100.0), 4, tokens)
    assert Sampler(4).sample(np.array([0, 9, 5, 1], np.float32), state, 0.5).token == 2


def test_processors_see_tokens_and_change_logits():
    seen = []

    def note(ids, logits):
        seen.append((ids, logits.copy()))
        logits[2] = -math.inf
        return logits

    def push(ids, logits):
        return logits.astype(np.float64) + np.array([0, 0, 100, 3.0])

    logits = np.array([0, 1, 9, 0], np.float32)
    state = SamplerState(SamplingParams(**GREEDY, logits_processors=[note, push], logprobs=1), 4, [1, 2])
    state.accept(3)
    choice = Sampler(4).sample(logits, state, 0.5)
    assert choice.token == 3 and choice.rank == 4 and choice.top[0][0] == 2
    assert seen[0][0] == [1, 2, 3] and np.array_equal(seen[0][1], [0, 1, 9, 0]) and logits[2] == 9


@pytest.mark.parametrize(
    "returned, message",
    [
        (None, "expected an array of 3 numbers, found NoneType"),
        (np.zeros(4), r"expected an array of 3 numbers, found float64 \[4\]"),
        (np.array(["a"] * 3), "expected an array of 3 numbers, found <U1"),
        (np.array([0, np.nan, 0]), "expected finite logits or -inf, found nan of token 1"),
        (np.array([0, 0, 1e300]), "expected finite logits or -inf, found inf of token 2"),
    ],
)
def test_processors_that_return_no_logits(returned, message):
    state = SamplerState(SamplingParams(logits_processors=[lambda ids, logits: returned]), 3)
    with pytest.raises(RequestError, match=f"logits_processors: {message}"):
        Sampler(3).sample(np.zeros(3, np.float32), state, 0.5)


def test_errors_of_processors_come_through():
    def fail(ids, logits):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Sampler(3).sample(np.zeros(3, np.float32), SamplerState(SamplingParams(logits_processors=[fail]), 3), 0.5)


WILD = {
    "temperature": 1.5,
    "top_k": 0,
    "repetition_penalty": 1.2,
    "dry_multiplier": 0.5,
    "no_repeat_ngram_size": 3,
    "xtc_probability": 0.5,
    "presence_penalty": 0.3,
    "mirostat": 0,
}


@pytest.mark.parametrize("more", [WILD, dict(mirostat=2, **{k: v for k, v in WILD.items() if k != "mirostat"})])
def test_forks_go_on_by_themselves(more):
    rng, n = np.random.default_rng(8), 40
    rows = (rng.standard_normal((60, n)) * 2).astype(np.float32)
    sampler, numbers = Sampler(n), UniformStream(6)

    def run(state, start, stop, out):
        for i in range(start, stop):
            out.append(sampler.sample(rows[i], state, numbers[i]).token)
            state.accept(out[-1])
        return out

    plain = run(SamplerState(SamplingParams(**more), n, [1, 2], seed=6, breakers=[(5,)]), 0, 60, [])
    state = SamplerState(SamplingParams(**more), n, [1, 2], seed=6, breakers=[(5,)])
    first = run(state, 0, 30, [])
    twin, other = state.fork(), state.fork(seed=7)
    assert run(other, 30, 60, []) is not None and run(twin, 30, 60, list(first)) == plain
    assert run(state, 30, 60, list(first)) == plain
    assert state.tokens.tolist() == [1, 2, *plain]
    if not more["mirostat"]:
        assert state.fork(seed=7).coin() != state.coin() == twin.coin()


def test_recent_tokens_alone_count_in_the_window():
    logits = np.array([5, 4, 3], np.float32)
    params = SamplingParams(**GREEDY, presence_penalty=3.0, repetition_window=2)
    state, sampler, tokens = SamplerState(params, 3), Sampler(3), []
    for _ in range(5):
        tokens.append(sampler.sample(logits, state, 0.5).token)
        state.accept(tokens[-1])
    assert tokens == [0, 1, 2, 0, 1]


def test_states_of_different_threads_do_not_touch():
    """One sampler per thread, states of their own: the same tokens as alone."""
    rng, n = np.random.default_rng(3), 500
    rows = (rng.standard_normal((40, n)) * 2).astype(np.float32)

    def run(seed, out):
        sampler, state, numbers = Sampler(n), SamplerState(SamplingParams(**WILD), n, seed=seed), UniformStream(seed)
        for i, row in enumerate(rows):
            out.append(sampler.sample(row, state, numbers[i]).token)
            state.accept(out[-1])

    expected: list[list[int]] = [[] for _ in range(4)]
    for seed in range(4):
        run(seed, expected[seed])
    found: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=run, args=(seed, found[seed])) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


class Letters:
    """A tokenizer of letters and a few pairs."""

    texts = (*"abc \n:", "ab", "c\n")
    n_vocab = len(texts)

    def encode(self, text, add_special=True, parse_special=True):
        assert not add_special and not parse_special
        ids = []
        while text:
            token = max((t for t in self.texts if text.startswith(t)), key=len)
            ids.append(self.texts.index(token))
            text = text[len(token) :]
        return ids

    def pieces(self, ids):
        return [self.texts[i].encode() for i in ids]


def test_bad_words_are_encoded_with_and_without_a_space():
    assert bad_word_sequences(Letters(), ["ab", "ca"]) == [(6,), (3, 6), (2, 0), (3, 2, 0)]
    assert bad_word_sequences(Letters(), [" c"]) == [(3, 2)]
    assert bad_word_sequences(Letters(), []) == []


def test_breakers_are_all_tokens_that_hold_one():
    tokenizer = Letters()
    assert breaker_sequences(tokenizer, ("\n", ":")) == ((4,), (5,), (7,))
    assert breaker_sequences(tokenizer, ("c:",)) == ((2, 5),)
    assert breaker_sequences(tokenizer, ()) == ()


def test_breakers_are_looked_for_once_and_go_with_their_tokenizer():
    tokenizer, looked = Letters(), []
    tokenizer.pieces = lambda ids: looked.append(1) or [text.encode() for text in Letters.texts]
    for _ in range(3):
        breaker_sequences(tokenizer, ("\n",))
    assert len(looked) == 1
    for text in "abc :":
        breaker_sequences(tokenizer, (text,))
    assert breaker_sequences(tokenizer, ("\n",)) == ((4,), (7,)) and len(looked) == 7
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_dry_sees_no_repetition_across_a_breaker():
    logits = np.array([8, 0, 0, 10, 0, 0], np.float32)
    params = SamplingParams(**GREEDY, dry_multiplier=1.0, dry_base=4.0)
    # The last three tokens were there before: a penalty of 4 for a fourth; of 1 where only two of them count.
    for breakers, expected in (((), 0), ([(5,)], 3), ([(1, 2)], 3), ([(4, 1)], 0)):
        state = SamplerState(params, 6, [5, 1, 2, 3, 5, 1, 2], breakers=breakers)
        assert Sampler(6).sample(logits, state, 0.5).token == expected
