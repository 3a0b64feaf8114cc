"""Chat completions have OpenAI's form, and say what LLM.chat says."""

from __future__ import annotations

import json

import pytest

from gumba import GumbaError, SamplingParams, UnsupportedError
from gumba.compat.llama_cpp import Llama, LlamaGrammar
from gumba.compat.llama_cpp.llama_chat_format import CHAT_FORMATS
from gumba.text import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def expected(llm, n=10):
    """LLM's answer, and its text as bytes that make no character are left out."""
    result = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=n))
    return result, llm.tokenizer.decode_bytes(result.token_ids, True).decode("utf-8", "ignore")


def test_answer(llama, llm):
    answer = llama.create_chat_completion(MESSAGES, temperature=0, max_tokens=10)
    result, text = expected(llm)
    tokens = len([token for token in result.token_ids if token not in llm.tokenizer.eog_ids])
    n_prompt = len(result.prompt_token_ids)
    assert answer == {
        "id": answer["id"],
        "object": "chat.completion",
        "created": answer["created"],
        "model": llama.model_path,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": result.finish_reason,
            }
        ],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": tokens, "total_tokens": n_prompt + tokens},
    }
    assert answer["id"].startswith("chatcmpl-")


def test_stream(llama, llm):
    chunks = list(llama.create_chat_completion(MESSAGES, temperature=0, max_tokens=10, stream=True))
    result, text = expected(llm)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and len(
        {chunk["id"] for chunk in chunks}
    ) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant"} and choices[-1]["delta"] == {}
    assert "".join(choice["delta"]["content"] for choice in choices[1:-1]) == text
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [result.finish_reason]


def test_text_comes_in_parts(llama):
    whole = llama.create_chat_completion(MESSAGES, temperature=0, max_tokens=5)
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    answer = llama.create_chat_completion([{"role": "user", "content": parts}], temperature=0, max_tokens=5)
    assert answer["choices"] == whole["choices"] and answer["usage"] == whole["usage"]
    image = [{"type": "image_url", "image_url": "http://x/y.png"}]
    with pytest.raises(UnsupportedError, match="image_url"):
        llama.create_chat_completion([{"role": "user", "content": image}])


def test_tool_calls_have_the_form_of_calls(llama, monkeypatch):
    """The text is made up here: holding it to the schema is the engine's business."""
    seen = {}

    def create_completion(prompt, *, grammar, stream, **options):
        seen["schema"] = grammar.structured_outputs().json
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
        parts = [("{", None), ("}", None), ("", "stop")]
        chunks = [
            {**head, "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason}]}
            for text, reason in parts
        ]
        whole = {"text": "{}", "index": 0, "logprobs": None, "finish_reason": "stop"}
        return iter(chunks) if stream else {**head, "choices": [whole], "usage": {}}

    monkeypatch.setattr(llama, "create_completion", create_completion)
    choice = {"type": "function", "function": {"name": "look"}}
    answer = llama.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice=choice)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["type"] == "function" and call["function"] == {"name": "look", "arguments": "{}"}
    assert answer["choices"][0]["message"]["content"] is None
    assert answer["choices"][0]["message"]["function_call"] == call["function"]
    assert answer["choices"][0]["message"]["function_call"] is not call["function"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls" and seen["schema"] == '{"type": "object"}'
    old = llama.create_chat_completion(MESSAGES, functions=[TOOLS[0]["function"]], function_call={"name": "look"})
    assert old["choices"] == answer["choices"]
    chunks = list(llama.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice=choice, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant" and deltas[0]["tool_calls"] is None
    assert "".join(each["tool_calls"][0]["function"]["arguments"] for each in deltas[1:-1]) == "{}"
    assert {each["tool_calls"][0]["id"] for each in deltas[1:-1]} == {call["id"]}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_unknown_tools_and_response_formats(llama):
    with pytest.raises(ValueError, match="nothing"):
        llama.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice={"function": {"name": "nothing"}})
    with pytest.raises(ValueError, match="yaml"):
        llama.create_chat_completion(MESSAGES, response_format={"type": "yaml"})
    answer = llama.create_chat_completion(MESSAGES, response_format={"type": "text"}, max_tokens=1)
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_messages_that_the_template_refuses(llama):
    for messages in ([{"content": "no role"}], "hello", [{"role": "user"}]):
        with pytest.raises(ValueError) as error:
            llama.create_chat_completion(messages)
        assert isinstance(error.value, GumbaError)
    with pytest.raises(GumbaError, match="there is no content"):
        llama.create_chat_completion([{"role": "user"}])


def test_handlers_and_formats(tiny, llama):
    with Llama(tiny, n_ctx=64, chat_handler=lambda *, llama, messages, **options: (llama, messages, options)) as model:
        found, messages, options = model.create_chat_completion(MESSAGES, top_k=3)
        assert found is model and messages is MESSAGES and options["top_k"] == 3
    with Llama(tiny, n_ctx=64, chat_format="nonsense") as model, pytest.raises(ValueError, match=r"chatml.*nonsense"):
        model.create_chat_completion(MESSAGES)
    with Llama(tiny, n_ctx=128, chat_format="chatml") as model:  # the file's own template is ChatML too
        answer = model.create_chat_completion(MESSAGES, temperature=0, max_tokens=6)
        assert answer["choices"] == llama.create_chat_completion(MESSAGES, temperature=0, max_tokens=6)["choices"]
    with Llama(tiny, n_ctx=128, chat_format="zephyr") as model:
        answer = model.create_chat_completion(MESSAGES, temperature=0, max_tokens=1)
        assert answer["usage"]["prompt_tokens"] == len(model.tokenize(b"<|user|>\nhello</s>\n<|assistant|>\n"))


TURNS = [
    {"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]  # fmt: skip
RENDERED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<start_of_turn>user\nS<end_of_turn>\n<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
    "llama-2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]",
    "llama-3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral-instruct": "[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n",
}


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_formats_by_name(name):
    assert ChatTemplate(CHAT_FORMATS[name][0]).render(TURNS) == RENDERED["chatml" if name == "qwen" else name]


CALLED = '<tool_call>\n{"name": "look", "arguments": {"a": "é"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "n_calls"),
    [(CALLED, None, 1), ("Hm. " + CALLED, "Hm.", 1), ("<tool_call> hm", "<tool_call> hm", 0)],
)
def test_calls_in_the_answers_text(llama, text, content, n_calls):
    grammar = LlamaGrammar.from_string("root ::= " + json.dumps(text, ensure_ascii=False))
    options = {"tools": TOOLS, "grammar": grammar, "temperature": 0}
    for choice in (None, "auto"):
        [answer] = llama.create_chat_completion(MESSAGES, tool_choice=choice, **options)["choices"]
        calls = answer["message"].get("tool_calls", [])
        assert answer["message"]["content"] == content
        assert answer["finish_reason"] == ("tool_calls" if n_calls else "stop")
        assert [(call["type"], call["function"]) for call in calls] == [
            ("function", {"name": "look", "arguments": '{"a": "é"}'})
        ] * n_calls
    [plain] = llama.create_chat_completion(MESSAGES, tool_choice="none", **options)["choices"]
    assert plain["message"] == {"role": "assistant", "content": text}
    choices = [each["choices"][0] for each in llama.create_chat_completion(MESSAGES, stream=True, **options)]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == (content or "")
    streamed = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert streamed == [{"index": i, **call} for i, call in enumerate(calls)]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [answer["finish_reason"]]
