"""The engine on SmolLM2: right answers, the same bits however requests are grouped, and a real Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest

from gumba import LLM, SamplingParams

pytestmark = pytest.mark.model
GREEDY = SamplingParams(temperature=0, max_tokens=16)
PROMPTS = ["The capital of France is", "def fibonacci(n):", "1, 2, 3, 5, 8,", "Once upon a time " * 20]


@pytest.fixture(scope="module")
def llm(real_model):
    with LLM(real_model, n_ctx=1024) as loaded:
        yield loaded
        assert loaded.kv_usage().in_use == 0


def test_the_capital_of_france(llm):
    (result,) = llm.generate("The capital of France is", GREEDY)
    assert "Paris" in result.text
    assert "".join(step.text for step in llm.stream("The capital of France is", GREEDY)) == result.text
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = llm.chat(messages, GREEDY)
    assert llm.tokenizer.decode(answer.prompt_token_ids).endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    assert "".join(step.text for step in llm.chat_stream(messages, GREEDY)) == answer.text != ""


def test_same_tokens_alone_and_together(llm):
    params = [SamplingParams(seed=seed, max_tokens=24) for seed in range(len(PROMPTS))]
    together = [result.token_ids for result in llm.generate(PROMPTS, params)]
    alone = [llm.generate([prompt], one)[0].token_ids for prompt, one in zip(PROMPTS, params)]
    assert together == alone


def test_same_bits_however_the_prompt_is_cut(llm, real_model):
    tokens = llm.tokenizer.encode(PROMPTS[-1])
    whole = llm.logits(tokens)
    assert whole.shape == (len(tokens), llm.model.config.n_vocab)
    with LLM(real_model, n_ctx=1024, max_batch_tokens=7, n_threads=1) as small:
        assert np.array_equal(small.logits(tokens), whole)


@pytest.mark.skipif(os.name == "nt", reason="signals are sent to the process otherwise there")
def test_interrupt(llm):
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS * 8, SamplingParams(ignore_eos=True))
    timer.join()
    assert llm.kv_usage().in_use == 0
    assert "Paris" in llm.generate("The capital of France is", GREEDY)[0].text
