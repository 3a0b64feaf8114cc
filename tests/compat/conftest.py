"""A tiny chat model, as a file, as an LLM (the oracle) and behind the two look-alikes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gumba import LLM, SamplingParams
from gumba.compat.llama_cpp import Llama


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny, n_ctx=128) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def llama(tiny: Path) -> Iterator[Llama]:
    with Llama(tiny, n_ctx=128, seed=5, logits_all=True) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def ending(llm: LLM) -> list[int]:
    """A prompt after which the likeliest tokens soon are an end of generation, though not at once."""
    prompts = [[i] for i in range(3, 264)]
    for prompt, answer in zip(prompts, llm.generate(prompts, SamplingParams(temperature=0, max_tokens=30))):
        if answer.finish_reason == "stop" and len(answer.token_ids) > 2:
            return prompt
    raise AssertionError("no prompt ends")
