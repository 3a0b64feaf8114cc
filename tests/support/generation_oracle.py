"""Token-by-token generation without an engine, on the fake model's logits."""

from __future__ import annotations

from gumba import SamplingParams
from gumba.sampling.sampler import Sampler, SamplerState, UniformStream
from support.fake_model import END, N_VOCAB, hashed_logits

GREEDY = SamplingParams(temperature=0)


def oracle(prompt, params, n, n_ctx=64):
    """Tokens sampled directly from ``hashed_logits``."""
    history, numbers, sampler = list(prompt), UniformStream(params.seed or 0), Sampler(N_VOCAB)
    state = SamplerState(params, N_VOCAB, prompt, seed=params.seed or 0)
    while len(history) < min(len(prompt) + n, n_ctx):
        index = len(history) - len(prompt)
        history.append(sampler.sample(hashed_logits(history), state, numbers[index]).token)
        state.accept(history[-1])
        if history[-1] == END:
            break
    return history[len(prompt) :]
