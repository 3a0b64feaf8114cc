"""Chat completions have OpenAI's form, and say what LLM.chat says."""

from __future__ import annotations

import json

import pytest

from gumba import GumbaError, SamplingParams, UnsupportedError
from gumba.chat.template import ChatTemplate
from gumba.compat.llama_cpp import Llama, LlamaGrammar, llama_chat_format
from gumba.compat.llama_cpp.llama_chat_format import CHAT_FORMATS

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
    # As llama-cpp-python 0.3.36 writes them too.
    "baichuan": "S<reserved_102>U<reserved_103>A<reserved_102>V<reserved_103>",
    "baichuan-2": "S<reserved_106>U<reserved_107>A<reserved_106>V<reserved_107>",
    "chatglm3": "<|system|>\nS<|user|>\n U<|assistant|>\n A<|user|>\n V<|assistant|>",
    "oasst_llama": "[INST] <<SYS>>\nS\n<</SYS>>\n\n<|prompter|>U</s><|assistant|>A</s><|prompter|>V</s><|assistant|>",
    "redpajama-incite": "S\n<human>: U\n<bot>: A\n<human>: V\n<bot>:",
    "snoozy": "S\n### Prompt: U\n### Response: A\n### Prompt: V\n### Response:",
    # There with a system prompt of its own in the place of the messages' one.
    "vicuna": "S USER: U ASSISTANT: A</s>USER: V ASSISTANT:",
    "openbuddy": "S\n\nUser: U\nAssistant: A\nUser: V\nAssistant:",
    # As their models were trained; there messages, line breaks or the opening of the answer differ.
    "alpaca": "S\n\n### Instruction:\nU\n\n### Response:\nA</s>### Instruction:\nV\n\n### Response:\n",
    "phind": "### System Prompt\nS\n\n### User Message\nU\n\n### Assistant\nA\n\n### User Message\nV\n\n### Assistant\n",
    "intel": "### System:\nS\n### User:\nU\n### Assistant:\nA\n### User:\nV\n### Assistant:\n",
    "open-orca": "S<|end_of_turn|>\nUser: U<|end_of_turn|>\nAssistant: A<|end_of_turn|>\nUser: V<|end_of_turn|>\nAssistant:",
    "mistrallite": "<|system|>S</s><|prompter|>U</s><|assistant|>A</s><|prompter|>V</s><|assistant|>",
    "pygmalion": "<|system|>S<|user|>U<|model|>A<|user|>V<|model|>",
    "openchat": "S<|end_of_turn|>GPT4 Correct User: U<|end_of_turn|>GPT4 Correct Assistant: A<|end_of_turn|>"
    "GPT4 Correct User: V<|end_of_turn|>GPT4 Correct Assistant:",
    "saiga": "<s>system\nS</s><s>user\nU</s><s>bot\nA</s><s>user\nV</s><s>bot\n",
}
#: llama-cpp-python 0.3.36 registers these.
NAMES = [
    "llama-2", "llama-3", "alpaca", "qwen", "vicuna", "oasst_llama", "baichuan-2", "baichuan", "openbuddy",
    "redpajama-incite", "snoozy", "phind", "intel", "open-orca", "mistrallite", "zephyr", "pygmalion", "chatml",
    "mistral-instruct", "chatglm3", "openchat", "saiga", "gemma", "functionary", "functionary-v2",
    "functionary-v1", "chatml-function-calling",
]  # fmt: skip
#: Of the tiny model, which has random weights and may write nothing else.
NO_BLANKS = {12: -100, 13: -100, 35: -100}


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_formats_by_name(name):
    assert ChatTemplate(CHAT_FORMATS[name][0]).render(TURNS) == RENDERED["chatml" if name == "qwen" else name]


@pytest.mark.parametrize("name", NAMES)
def test_each_registered_name_answers(llama, name):
    handler = llama_chat_format.get_chat_completion_handler(name)
    answer = handler(llama=llama, messages=MESSAGES, max_tokens=2, temperature=0)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


WEATHER = {"type": "function", "function": {"name": "w", "parameters": {
    "properties": {"c": {"const": 1}}, "required": ["c"]}}}  # fmt: skip


def is_call(answer, names):
    """Whether an answer is calls of ``names`` alone, whose arguments are JSON objects."""
    message = answer["choices"][0]["message"]
    found = [call["function"] for call in message["tool_calls"]]
    assert answer["choices"][0]["finish_reason"] == "tool_calls" and message["content"] is None and found
    return all(each["name"] in names and isinstance(json.loads(each["arguments"]), dict) for each in found)


@pytest.mark.parametrize("name", [None, "chatml-function-calling", "functionary-v1", "functionary-v2"])
def test_forced_calls(tiny, name):
    choice = {"type": "function", "function": {"name": "w"}}
    with Llama(tiny, n_ctx=256, chat_format=name) as model:
        options = {
            "messages": [{"role": "user", "content": "h"}],
            "temperature": 0,
            "max_tokens": 40,
            "logit_bias": NO_BLANKS,
        }
        answer = model.create_chat_completion(tools=[WEATHER], tool_choice=choice, **options)
        assert is_call(answer, ["w"])
        assert set(json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])) == {"c"}
        assert is_call(model.create_chat_completion(tools=[WEATHER], tool_choice="required", **options), ["w"])
        chunks = list(model.create_chat_completion(tools=[WEATHER], tool_choice="required", stream=True, **options))
        pieces = [each["choices"][0]["delta"].get("tool_calls") or [] for each in chunks]
        text = "".join(call["function"]["arguments"] for calls in pieces for call in calls if call["index"] == 0)
        assert set(json.loads(text)) == {"c"} and chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        with pytest.raises(
            ValueError, match="tool_choice: expected 'none', 'auto', 'required' or a function, found 'any'"
        ):
            model.create_chat_completion(tools=[WEATHER], tool_choice="any", **options)


def test_required_picks_one_of_several_functions(llama):
    tools = [
        WEATHER,
        {"type": "function", "function": {"name": "other", "parameters": WEATHER["function"]["parameters"]}},
    ]
    answer = llama.create_chat_completion(
        MESSAGES, tools=tools, tool_choice="required", temperature=0, max_tokens=30, logit_bias=NO_BLANKS
    )
    assert is_call(answer, ["w", "other"])


def test_a_schema_without_additional_properties_has_no_others(llama, monkeypatch):
    """As llama.cpp's converter reads it; llama-cpp-python 0.3.36 holds to it."""
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "null"}}}}}
    closed = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "null"}}}}}
    closed["additionalProperties"] = closed["properties"]["a"]["additionalProperties"] = False
    assert json.loads(LlamaGrammar.from_json_schema(json.dumps(schema)).structured_outputs().json) == closed
    for free in ({"type": "object"}, {"properties": {"a": {}}, "additionalProperties": True}):
        assert json.loads(LlamaGrammar.from_json_schema(json.dumps(free)).structured_outputs().json) == free
    union = {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {}}}], "$defs": {"A": {"properties": {"a": {}}}}}
    found = json.loads(LlamaGrammar.from_json_schema(json.dumps(union)).structured_outputs().json)
    assert found["properties"] == {"a": True, "b": True} and found["additionalProperties"] is False
    assert found["allOf"][0]["allOf"] == [{"properties": {"a": {}}}], "a part must not exclude the other's"
    assert found["$defs"]["A"]["additionalProperties"] is False


@pytest.mark.parametrize("name", [None, "chatml-function-calling", "vicuna"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": 5}, "tools: expected a list"),
        ({"tools": [{"function": {}}], "tool_choice": "required"}, r"tools\[0\]"),
        ({"tools": [WEATHER], "tool_choice": 5}, "tool_choice: expected a text or a function, found 5"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "x"}}}, "tool_choice: 'x' is not among the tools"),
        ({"functions": 5}, "functions: expected a list of functions, found 5"),
        ({"functions": [5]}, r"tools\[0\]: expected"),
        ({"response_format": 5}, "response_format: expected an object with a type, found 5"),
        (
            {"response_format": {"type": "json_schema", "json_schema": 5}},
            "response_format.json_schema: expected an object",
        ),
        ({"stop": 5}, "stop: expected a string or a list of strings, found 5"),
        ({"messages": b"x"}, "messages: expected a list of messages, found b'x'"),
        ({"messages": [5]}, r"messages\[0\]: expected a mapping with a role and a content, found 5"),
    ],
)
def test_malformed_requests_name_what_is_wrong(llama, name, options, message):
    handler = llama_chat_format.get_chat_completion_handler(name)
    with pytest.raises(GumbaError, match=message):
        handler(llama=llama, **{"messages": MESSAGES, "max_tokens": 1, **options})


def test_a_tool_choice_without_tools_is_told(llama, caplog):
    llama.create_chat_completion(MESSAGES, tool_choice="required", max_tokens=1)
    assert "tool_choice has no effect: no tools are offered" in caplog.text


@pytest.fixture
def registry():
    handlers = llama_chat_format.LlamaChatCompletionHandlerRegistry._chat_handlers
    before = dict(handlers)
    yield llama_chat_format.LlamaChatCompletionHandlerRegistry()
    handlers.clear()
    handlers.update(before)


def test_formats_of_ones_own(tiny, llama, registry):
    @llama_chat_format.register_chat_format("mine")
    def mine(messages, **kwargs):
        return llama_chat_format.ChatFormatterResponse(prompt="Q " + messages[0]["content"], stop=["\0"])

    @llama_chat_format.register_chat_completion_handler("echo")
    def echo(*, llama, messages, **kwargs):
        return {"echo": messages}

    with Llama(tiny, n_ctx=128, chat_format="mine") as model:
        answer = model.create_chat_completion(MESSAGES, temperature=0, max_tokens=4)
        assert answer["usage"]["prompt_tokens"] == len(model.tokenize(b"Q hello", special=True))
    with Llama(tiny, n_ctx=128, chat_format="echo") as model:
        assert model.create_chat_completion(MESSAGES) == {"echo": MESSAGES}
    with pytest.raises(ValueError, match="'mine' is already registered"):
        llama_chat_format.register_chat_format("mine")(mine)
    registry.unregister_chat_handler("mine")
    with pytest.raises(ValueError, match="found 'mine'"):
        registry.get_chat_completion_handler_by_name("mine")


def test_a_formatter_of_a_template(tiny):
    source = "{{ bos_token }}{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    formatter = llama_chat_format.Jinja2ChatFormatter(source, eos_token="</s>", bos_token="<s>", stop_token_ids=[7])
    made = formatter(messages=MESSAGES)
    assert (made.prompt, made.stop, made.added_special) == ("<s>[hello]", ["</s>"], True)
    assert made.stopping_criteria([1, 7], None) and not made.stopping_criteria([7, 1], None)
    config = {"chat_template": source, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    same = llama_chat_format.hf_tokenizer_config_to_chat_formatter(config)
    assert same(messages=MESSAGES).prompt == made.prompt
    with pytest.raises(ValueError, match="tokenizer_config: eos_token: expected text, found None"):
        llama_chat_format.hf_tokenizer_config_to_chat_formatter({**config, "eos_token": None})
    with Llama(tiny, n_ctx=64, chat_handler=formatter.to_chat_handler()) as model:
        answer = model.create_chat_completion(MESSAGES, temperature=0, max_tokens=2)
        assert answer["usage"]["prompt_tokens"] == len(model.tokenize(b"<s>[hello]", add_bos=False, special=True))
    with pytest.raises(ValueError, match="the chat template is wrong"):
        llama_chat_format.Jinja2ChatFormatter("{% if %}", "", "")


def test_handlers_of_images_answer_text_and_refuse_images_by_name(tiny):
    image = [{"type": "text", "text": "h"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    handler = llama_chat_format.Llava15ChatHandler(clip_model_path="none.gguf", verbose=False)
    with Llama(tiny, n_ctx=128, chat_handler=handler) as model:
        assert model.create_chat_completion(MESSAGES, max_tokens=1)["choices"]
        with pytest.raises(UnsupportedError, match=r"messages\[0\]: Llava15ChatHandler has no vision.*'image_url'"):
            model.create_chat_completion([{"role": "user", "content": image}])


def test_templates_of_a_file_by_name(llama, tiny):
    expected = pytest.raises(ValueError, match="no chat template named 'tool_use'")
    with Llama(tiny, n_ctx=128, chat_format="chat_template.tool_use") as model, expected:
        model.create_chat_completion(MESSAGES)


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
