"""The compiled samplers against their own source, interpreted, with arrays that refuse indices out of range.

Compiled code checks no index and types every number by itself. Interpreted, the same source must choose the same tokens and
stay within its arrays, for logits and parameters as hostile as they may be, and for the smallest vocabularies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gumba.errors import ModelError, RequestError
from gumba.jit.jit import Entry
from gumba.sampling import candidates, row_edits
from gumba.sampling import sampler as sampler_module
from gumba.sampling.kernels import filters, penalties
from gumba.sampling.sampler import Sampler, SamplerState
from gumba.sampling_params import SAMPLERS, SamplingParams
from support import sampling_oracle

LARGEST = float(np.finfo(np.float32).max)
SIZES = [1, 2, 3, 31, 32, 33, 65, 100, 255, 256, 257, 513, 700]


class Strict(np.ndarray):
    """Refuses to count from the end; numpy itself refuses what lies beyond it."""

    @staticmethod
    def _check(key: Any) -> None:
        places = (key.start, key.stop) if isinstance(key, slice) else (key,)
        if any(place is not None and place < 0 for place in places):
            raise IndexError(f"{key} is negative")

    def __getitem__(self, key: Any) -> Any:
        self._check(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check(key)
        super().__setitem__(key, value)


def interpreted(function: Entry) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return function.py_func(*(a.view(Strict) if isinstance(a, np.ndarray) else a for a in args))

    return call


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Have ``Sampler`` call the source of its kernels."""
    for caller, kernels in ((row_edits, penalties), (candidates, filters)):
        twins = {key: interpreted(value) if isinstance(value, Entry) else value for key, value in vars(kernels).items()}
        patch.setattr(caller, "kernels", SimpleNamespace(**twins))
    for name in ("sample_all", "sample_top_k", "log_softmax"):
        patch.setattr(sampler_module, name, interpreted(getattr(sampler_module, name)))


def hostile_logits(r: random.Random, n: int) -> np.ndarray:
    rng = np.random.default_rng(r.getrandbits(32))
    x = rng.standard_normal(n) * r.choice([0, 1e-42, 1e-30, 0.1, 1, 4, 30, 1e4])
    coins = rng.random(n) < 0.5
    x = r.choice(
        [
            x,
            np.round(x),
            np.full(n, r.choice([0.0, -0.0, 3e38, -3e38, 1e-40, -LARGEST])),
            np.where(coins, LARGEST, -LARGEST),
            np.where(coins, 0.0, -0.0),
            coins * r.choice([-1.0, 1.0]),
            np.where(np.arange(n) == r.randrange(n), r.choice([LARGEST, -LARGEST]), x),
        ]
    )
    row: np.ndarray = x.astype(np.float32)
    if r.random() < 0.05:
        row[r.randrange(n)] = r.choice([math.nan, math.inf, -math.inf])
    return row


def hostile_params(r: random.Random, n: int) -> SamplingParams:
    given: dict[str, Any] = {
        "temperature": r.choice([0, 1e-300, 1e-5, 0.3, 1, 2, 100]),
        "top_k": r.choice([0, 1, 2, 5, 40, n, max(n - 1, 1), 2000]),
        "top_p": r.choice([0, 1e-9, 0.3, 0.95, 1]),
        "min_p": r.choice([0, 1e-300, 0.05, 1]),
    }
    for chosen in [
        {"mirostat": r.choice([1, 2]), "mirostat_tau": r.choice([0, 5, 100]), "mirostat_eta": r.choice([0, 0.1, 10])},
        *(r.choice(o.extreme) for name, o in sampling_oracle.FILTERS.items() if name not in ("top_k", "top_p", "min_p")),
        {"dynatemp_range": r.choice([0.3, 100]), "dynatemp_exponent": r.choice([0, 1, 100])},
        {"repetition_penalty": r.choice([0.01, 1.2, 100]), "frequency_penalty": r.choice([-100, 0, 100]),
         "presence_penalty": r.choice([-100, 0, 100]), "repetition_window": r.choice([-1, 3, 0])},
        {"dry_multiplier": r.choice([0.8, 100]), "dry_base": r.choice([1, 1.75, 100]),
         "dry_allowed_length": r.choice([0, 1, 2])},
        {"no_repeat_ngram_size": r.randint(1, 4)},
        {"logit_bias": {r.randrange(n): r.choice([-1e6, 1e6, 5.0, -math.inf])}},
        {"min_keep": r.choice([1, 3, n, 10 * n])},
        {"allowed_token_ids": [r.randrange(n) for _ in range(r.randint(1, 5))]},
        {"samplers": r.sample(SAMPLERS, r.randint(0, len(SAMPLERS)))},
        {"logprobs": r.choice([0, 1, n])},
    ]:  # fmt: skip
        if r.random() < 0.2:
            given |= chosen
    return SamplingParams(**given)


def answer(logits: np.ndarray, params: SamplingParams, prompt: list[int], uniforms: list[float]) -> list[int | str]:
    """The tokens chosen, then the error if there is one."""
    chosen: list[int | str] = []
    sampler = Sampler(logits.size)
    state = SamplerState(params, logits.size, prompt, seed=7)
    try:
        for uniform in uniforms:
            token = sampler.sample(logits, state, uniform).token
            state.accept(token)
            chosen.append(token)
    except (ModelError, RequestError) as error:
        chosen.append(str(error))
    return chosen


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's scalars tell of what kernels mean to do
@pytest.mark.parametrize("part", range(12))
def test_compiled_chooses_as_interpreted(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(10):
        r = random.Random(1000 * part + seed)
        n = r.choice(SIZES)
        logits, params = hostile_logits(r, n), hostile_params(r, n)
        prompt = [r.randrange(min(n, 4)) for _ in range(r.randint(0, 40))]
        uniforms = [r.choice([0.0, r.random(), 1 - 2.0**-53]) for _ in range(3)]
        compiled = answer(logits, params, prompt, uniforms)
        with monkeypatch.context() as patch:
            interpret(patch)
            assert answer(logits, params, prompt, uniforms) == compiled, (part, seed, n, params)
        assert all(isinstance(token, str) or 0 <= token < n for token in compiled)
