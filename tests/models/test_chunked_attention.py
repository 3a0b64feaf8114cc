"""Layers that see their own chunk only: their keys lie in the pool of pages that are given back behind a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gumba import LLM, SamplingParams
from support.arch_models import rewritten
from support.tiny_models import DATA, load, logits_of

SOURCE = DATA / "arch_llama4.gguf"


def test_pages_before_the_chunk_are_given_back_and_change_nothing(tmp_path: Path) -> None:
    """Many chunks of 40 tokens, which begin anywhere in a page; steps that end anywhere in a chunk."""
    path = rewritten(SOURCE, tmp_path / "long.gguf", "F32", dequantized=True, own={"context_length": 2048})
    prompts = [np.random.default_rng(i).integers(3, 130, n).tolist() for i, n in enumerate((300, 41, 199))]
    params = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)
    with LLM(path, n_ctx=1024, n_threads=1, max_batch_tokens=24, max_sequences=4) as llm:
        assert llm.model.kv.window_pool is not None and llm.model.kv.window_pool.n_pages < llm.model.kv.n_pages
        answers = [each.token_ids for each in llm.generate(prompts, params)]
        assert llm.generate([prompts[0]], params)[0].token_ids == answers[0]
    model = load(path, n_ctx=1024, n_threads=1)
    assert model.kv.window_pool is None
    for prompt, answer in zip(prompts, answers):
        rows = logits_of(model, [*prompt, *answer], 100)
        assert rows[len(prompt) - 1 : -1].argmax(axis=1).tolist() == answer
    model.close()
