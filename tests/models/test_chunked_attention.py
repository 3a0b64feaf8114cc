"""Chunked attention: keys lie in the window pool, whose pages are freed before the current chunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gumba import LLM, SamplingParams
from support.arch_models import rewritten
from support.tiny_models import DATA, load, logits_of

SOURCE = DATA / "arch_llama4.gguf"


def test_freeing_pages_before_the_chunk_changes_no_token(tmp_path: Path) -> None:
    """Chunks of 40 tokens begin anywhere in a page, and steps end anywhere in a chunk."""
    path = rewritten(SOURCE, tmp_path / "long.gguf", "F32", dequantized=True, own={"context_length": 2048})
    prompts = [np.random.default_rng(i).integers(3, 130, n).tolist() for i, n in enumerate((300, 41, 199))]
    params = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)
    with LLM(path, n_ctx=1024, n_threads=1, max_batch_tokens=24, max_sequences=4) as llm:
        assert llm.model.kv.window_pool is not None and llm.model.kv.window_pool.n_pages < llm.model.kv.n_pages
        answers = [output.token_ids for output in llm.generate(prompts, params)]
        assert llm.generate([prompts[0]], params)[0].token_ids == answers[0]
    model = load(path, n_ctx=1024, n_threads=1)
    assert model.kv.window_pool is None
    for prompt, answer in zip(prompts, answers):
        rows = logits_of(model, [*prompt, *answer], 100)
        assert rows[len(prompt) - 1 : -1].argmax(axis=1).tolist() == answer
    model.close()
