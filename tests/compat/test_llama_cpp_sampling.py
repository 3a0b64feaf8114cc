"""What shapes an answer through Llama: log-probabilities, processors, criteria, penalties, grammars."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gumba import RequestError, SamplingParams
from gumba.compat.llama_cpp import (
    Llama,
    LlamaGrammar,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteriaList,
)

PROMPT = "hello world"


def text_of(llama, tokens):
    return llama.detokenize(tokens).decode("utf-8", "ignore")


def answer(llama, prompt=PROMPT, n=8, **options):
    return llama(prompt, max_tokens=n, temperature=0, **options)["choices"][0]


def force(*tokens):
    """A processor that makes the answer ``tokens``."""
    start = []

    def processor(input_ids, scores):
        start.append(len(input_ids))
        at = min(len(input_ids) - start[0], len(tokens) - 1)
        scores[:] = -100
        scores[tokens[at]] = 100
        return scores

    return LogitsProcessorList([processor])


# ------------------------------------------------------------------------------------------------ log-probabilities


def oracle(llama, llm, tokens, first, n_top):
    """Of tokens from ``first`` on: their texts, log-probabilities, and the likeliest ones."""
    rows = llm.logits(tokens).astype(float)
    rows -= rows.max(-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
    texts, values, tops = [], [], []
    for i in range(first, len(tokens)):
        row = rows[i - 1]
        likeliest = np.argsort(-row, kind="stable")[:n_top].tolist()
        texts.append(text_of(llama, [tokens[i]]))
        values.append(pytest.approx(row[tokens[i]], abs=1e-4))
        tops.append({text_of(llama, [each]): pytest.approx(row[each], abs=1e-4) for each in [*likeliest, tokens[i]]})
    return texts, values, tops


def test_logprobs_are_those_of_the_logits(llama, llm):
    prompt = llama.tokenize(PROMPT.encode())
    found = answer(llama, n=6, logprobs=3)["logprobs"]
    tokens = [*prompt, *llm.generate([prompt], SamplingParams(temperature=0, max_tokens=6))[0].token_ids]
    texts, values, tops = oracle(llama, llm, tokens, len(prompt), 3)
    assert found["tokens"] == texts and found["token_logprobs"] == values and found["top_logprobs"] == tops
    offsets = np.cumsum([len(PROMPT), *map(len, texts)])[:-1].tolist()
    assert found["text_offset"] == offsets
    chunks = list(llama(PROMPT, max_tokens=6, temperature=0, logprobs=3, stream=True))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert len(streamed) == 6
    for name, column in found.items():
        assert [each[name][0] for each in streamed] == column
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer(llama, n=6)["text"]


def test_logprobs_of_an_echoed_prompt(llama, llm):
    prompt = llama.tokenize(PROMPT.encode())
    found = answer(llama, n=3, logprobs=2, echo=True)["logprobs"]
    tokens = [*prompt, *llm.generate([prompt], SamplingParams(temperature=0, max_tokens=3))[0].token_ids]
    texts, values, tops = oracle(llama, llm, tokens, 1, 2)
    assert found["tokens"] == [text_of(llama, prompt[:1]), *texts]
    assert found["token_logprobs"] == [None, *values] and found["top_logprobs"] == [None, *tops]
    assert found["text_offset"][0] == 0
    # A leading BOS is not shown.
    with_bos = llama([1, *prompt], max_tokens=1, temperature=0, logprobs=0, echo=True)["choices"][0]["logprobs"]
    assert len(with_bos["tokens"]) == len(prompt) + 1 and with_bos["token_logprobs"][0] is None


def test_logprobs_of_a_chat(llama):
    messages = [{"role": "user", "content": "hello"}]
    options = {"temperature": 0, "max_tokens": 3, "logprobs": True}
    choice = llama.create_chat_completion(messages, top_logprobs=2, **options)["choices"][0]
    assert len(choice["logprobs"]["content"]) == 3 and choice["logprobs"]["refusal"] is None
    for each in choice["logprobs"]["content"]:
        assert each["bytes"] is None and each["top_logprobs"][0]["logprob"] == each["logprob"]  # greedy
    chunks = list(llama.create_chat_completion(messages, top_logprobs=2, stream=True, **options))
    streamed = [each for chunk in chunks for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == choice["logprobs"]["content"]
    alone = llama.create_chat_completion(messages, **options)["choices"][0]["logprobs"]["content"]
    assert [each["logprob"] for each in alone] == [each["logprob"] for each in choice["logprobs"]["content"]]


def test_logprobs_need_logits_all(tiny):
    with Llama(tiny, n_ctx=64) as model, pytest.raises(ValueError, match="logits_all=False"):
        model(PROMPT, logprobs=1)


# ------------------------------------------------------------------------------------------- processors and criteria


def test_logits_processors_see_and_change_the_logits(llama, llm):
    prompt = llama.tokenize(PROMPT.encode())
    seen = []

    def processor(input_ids, scores):
        seen.append((input_ids.tolist(), input_ids.dtype, scores.copy()))
        scores[scores.argmax()] = -np.inf
        return scores

    tokens = llama.generate(prompt, temp=0, logits_processor=LogitsProcessorList([processor]))
    found = [next(tokens) for _ in range(3)]
    tokens.close()
    assert [each[0] for each in seen[:3]] == [prompt, [*prompt, *found[:1]], [*prompt, *found[:2]]]
    for ids, dtype, scores in seen[:3]:
        np.testing.assert_array_equal(scores, llm.logits(ids)[-1])
        assert dtype == np.intc
    assert found == [int(np.argsort(-scores)[1]) for _, _, scores in seen[:3]]


def test_bytes_of_a_character_come_together(llama):
    tokens = llama.tokenize("é€😀".encode())
    whole = answer(llama, n=len(tokens), logits_processor=force(*tokens))
    assert whole["text"] == "é€😀"
    stream = llama(PROMPT, max_tokens=len(tokens), temperature=0, stream=True, logits_processor=force(*tokens))
    assert [chunk["choices"][0]["text"] for chunk in stream] == ["é", "€", "😀", ""]
    assert answer(llama, n=len(tokens) - 1, logits_processor=force(*tokens))["text"] == "é€"


def test_min_tokens(llama, llm, ending):
    eos = llm.generate([ending], SamplingParams(temperature=0, max_tokens=40))[0].token_ids[-1]
    n = llama(ending, max_tokens=40, temperature=0)["usage"]["completion_tokens"]
    processor = LogitsProcessorList([MinTokensLogitsProcessor(n + 5, eos)])
    assert (
        llama(ending, max_tokens=40, temperature=0, logits_processor=processor)["usage"]["completion_tokens"] >= n + 5
    )


def test_logit_bias(llama):
    (token,) = llama.tokenize(b"hello")
    for bias in ({token: 1000.0}, {str(token): 1000.0}):
        assert answer(llama, n=3, logit_bias=bias)["text"] == "hellohellohello"
    with pytest.raises(ValueError, match="logit_bias"):
        llama(PROMPT, logit_bias={"hello": 1.0})


def test_stopping_criteria(llama, llm):
    prompt = llama.tokenize(PROMPT.encode())
    seen = []

    def criterion(input_ids, logits):
        seen.append(input_ids.tolist())
        np.testing.assert_array_equal(logits, llm.logits(seen[-1])[-1])
        return len(input_ids) >= len(prompt) + 3

    criteria = StoppingCriteriaList([criterion])
    expected = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))[0].token_ids
    assert list(llama.generate(prompt, temp=0, stopping_criteria=criteria)) == expected
    assert seen == [[*prompt, *expected[:i]] for i in range(4)]
    done = llama(PROMPT, max_tokens=20, temperature=0, stopping_criteria=criteria)
    assert done["choices"][0]["text"] == text_of(llama, expected)
    assert done["choices"][0]["finish_reason"] == "stop" and done["usage"]["completion_tokens"] == 3


# ---------------------------------------------------------------------------------------------- samplers and grammars


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"frequency_penalty": 2.0}, {"frequency_penalty": 2.0}),
        ({"presence_penalty": 2.0}, {"presence_penalty": 2.0}),
        ({"typical_p": 0.3}, {"typical_p": 0.3}),
        ({"mirostat_mode": 1, "mirostat_tau": 2.0}, {"mirostat": 1, "mirostat_tau": 2.0, "temperature": 1.0}),
        ({"mirostat_mode": 2, "mirostat_eta": 0.5}, {"mirostat": 2, "mirostat_eta": 0.5, "temperature": 1.0}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.1}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1}),
        ({"temperature": -1.0}, {"temperature": 1.0, "samplers": ("penalties",)}),
    ],
)
def test_samplers_are_those_of_the_engine(llama, llm, theirs, ours):
    ids = llama.tokenize(PROMPT.encode())
    options = {"temperature": 0.7, **theirs}
    params = SamplingParams(**{"temperature": 0.7, "seed": 11, "max_tokens": 12, **ours})
    expected = llm.generate([ids], params)[0]
    tokens = [token for token in expected.token_ids if token not in llm.tokenizer.eog_ids]
    assert llama(ids, max_tokens=12, seed=11, **options)["choices"][0]["text"] == text_of(llama, tokens)


def test_the_window_of_the_penalties(tiny, llm):
    with Llama(tiny, n_ctx=64, last_n_tokens_size=2) as model:
        ids = model.tokenize(PROMPT.encode())
        params = SamplingParams(temperature=0, max_tokens=12, repetition_penalty=2.0, repetition_window=2)
        expected = llm.generate([ids], params)[0].token_ids
        assert answer(model, n=12, repeat_penalty=2.0)["text"] == text_of(model, expected)


def test_grammars(llama):
    grammar = LlamaGrammar.from_string('root ::= "he" [a-c]{2} ("!" | "?")')
    found = answer(llama, n=20, grammar=grammar)
    assert found["text"][:2] == "he" and set(found["text"][2:4]) <= set("abc") and found["text"][4:] in ("!", "?")
    assert found["finish_reason"] == "stop"
    with pytest.raises(RequestError):
        llama(PROMPT, grammar=LlamaGrammar.from_string("root ::= nothing"))


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


def test_json_schemas(llama):
    messages = [{"role": "user", "content": "hello"}]
    schemas = [
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}},
    ]
    for seed, response_format in enumerate(schemas):
        reply = llama.create_chat_completion(messages, response_format=response_format, max_tokens=100, seed=seed)
        assert json.loads(reply["choices"][0]["message"]["content"])["a"] in ("x", "y")
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    choice = {"type": "function", "function": {"name": "look"}}
    reply = llama.create_chat_completion(messages, tools=tools, tool_choice=choice, max_tokens=100, seed=1)
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["a"] in ("x", "y")


def test_any_json_object(llama):
    messages = [{"role": "user", "content": "hello"}]
    reply = llama.create_chat_completion(messages, response_format={"type": "json_object"}, max_tokens=40, seed=1)
    text = reply["choices"][0]["message"]["content"]
    assert text.lstrip().startswith("{")
    assert reply["choices"][0]["finish_reason"] == "length" or isinstance(json.loads(text), dict)


def test_a_stop_string_inside_a_form_cuts_it_with_a_warning(llama, caplog):
    """As llama-cpp-python 0.3.36, which says nothing about it."""
    grammar = LlamaGrammar.from_json_schema('{"const": {"a": 1}}')
    choice = llama("h", grammar=grammar, stop=["}"], temperature=0, max_tokens=30)["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"].startswith("{") and "}" not in choice["text"]
    assert "a stop string ended a grammar-constrained answer" in caplog.text
    caplog.clear()
    choice = llama("h", grammar=grammar, stop=["z"], temperature=0, max_tokens=30)["choices"][0]
    assert json.loads(choice["text"]) == {"a": 1} and "cut" not in caplog.text
