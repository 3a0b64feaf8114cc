"""Answers that are taken apart by LLM.chat, its streams and conversations, and tools on their way to the template."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from dataclasses import replace

import pytest

from gumba import LLM, StructuredOutputsParams
from gumba.chat.template import ChatTemplate, encode_chat
from gumba.errors import RequestError
from support import tiny_chat

HI = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}}}}}]  # fmt: skip
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
#: As many models' templates do it.
OPENED = "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking %}<think>\n{% endif %}"


def joined(steps):
    steps = list(steps)
    assert not any(step.tool_calls for step in steps[:-1])
    return "".join(step.text for step in steps), "".join(step.reasoning for step in steps), steps[-1].tool_calls


async def gathered(steps):
    return [step async for step in steps]


def named(calls):
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_calls_of_tools(hermes, dictate):
    text = f"I look.\n{CALL}\n{CALL}"
    output = hermes.chat(HI, dictate(text), tools=TOOLS)
    assert output.text == "I look."
    assert named(output.tool_calls) == [("weather", {"city": "Bonn"})] * 2
    assert output.finish_reason == "stop"
    first, second = output.tool_calls
    assert first.type == "function"
    assert first.id != second.id
    assert all(len(call.id) == 9 and call.id.isalnum() and call.id.isascii() for call in output.tool_calls)
    assert joined(hermes.chat_stream(HI, dictate(text), tools=TOOLS)) == ("I look.", "", output.tool_calls)
    later = hermes.chat([*HI, *HI], dictate(text), tools=TOOLS)
    assert not {call.id for call in later.tool_calls} & {first.id, second.id}


def test_calls_of_tools_in_an_event_loop(hermes, dictate):
    output = asyncio.run(hermes.achat(HI, dictate(CALL), tools=TOOLS))
    assert (output.text, named(output.tool_calls)) == ("", [("weather", {"city": "Bonn"})])
    steps = asyncio.run(gathered(hermes.achat_stream(HI, dictate(CALL), tools=TOOLS)))
    assert joined(steps) == ("", "", output.tool_calls)


def test_several_answers_are_taken_apart_each(hermes, dictate):
    params = dictate(f"A {CALL}", n=2)
    output = hermes.chat(HI, params, tools=TOOLS)
    assert [(each.text, len(each.tool_calls)) for each in output.outputs] == [("A", 1)] * 2
    last = {step.choice: step for step in hermes.chat_stream(HI, params, tools=TOOLS)}
    assert [len(last[choice].tool_calls) for choice in (0, 1)] == [1, 1]


def test_without_tools_text_is_text(hermes, dictate):
    output = hermes.chat(HI, dictate(CALL))
    assert (output.text, output.tool_calls) == (CALL, ())


def test_the_template_is_told_of_tools(hermes, dictate):
    output = hermes.chat(HI, dictate("x"), tools=TOOLS)
    prompt = hermes.tokenizer.decode(output.prompt_token_ids)
    assert json.dumps(TOOLS[0]) in prompt
    assert hermes.chat(HI, dictate("x"), tools=[]).prompt_tokens < output.prompt_tokens


def test_the_rest_of_a_round(hermes, dictate):
    """A call with OpenAI's text of arguments and no content, and its result: as the template wants them."""
    called = hermes.chat(HI, dictate(CALL), tools=TOOLS)
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call.as_dict() for call in called.tool_calls]},
        {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "rain"},
    ]
    output = hermes.chat(messages, dictate("Rain."), tools=TOOLS)
    assert output.text == "Rain."
    prompt = hermes.tokenizer.decode(output.prompt_token_ids)
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>" in prompt
    assert "<tool_response>\nrain\n</tool_response>" in prompt


def test_control_tokens_of_a_form_are_read_but_not_shown(marked, dictate):
    template = "{{ messages[0].content }}{{ tools }}{# [TOOL_CALLS] #}"
    text = '[TOOL_CALLS]weather[ARGS]{"city": "Bonn"}'
    with LLM(marked, chat_template=template) as llm:
        output = llm.chat(HI, dictate(text), tools=TOOLS)
        assert (output.text, named(output.tool_calls)) == ("", [("weather", {"city": "Bonn"})])
        assert llm.chat(HI, dictate(text)).text == 'weather{"city": "Bonn"}'


def test_a_file_may_have_a_template_for_tools(tmp_path, dictate):
    path = tiny_chat.write(tmp_path / "two.gguf", context=2048, tool_template="T{{ messages[0].content }}{{ tools }}")
    with LLM(path) as llm:
        prompts = [llm.chat(HI, dictate("x"), tools=tools).prompt_token_ids for tools in (None, TOOLS)]
        assert [llm.tokenizer.decode(prompt).startswith("Thello[") for prompt in prompts] == [False, True]
    with LLM(path, chat_template="hermes") as llm:
        prompt = llm.chat(HI, dictate("x"), tools=TOOLS).prompt_token_ids
        assert "# Tools" in llm.tokenizer.decode(prompt)


def test_tags_of_several_tokens(marked, dictate):
    with LLM(marked, chat_template="{{ messages[0].content }}{# <|channel>thought #}") as llm:
        output = llm.chat(HI, dictate("<|channel>thought\nhm<channel|>hello"))
        assert (output.text, output.reasoning) == ("hello", "hm")


def test_tools_that_cannot_be(plain, hermes, dictate):
    with pytest.raises(RequestError, match=r"tools: the chat template has no place for them.*hermes"):
        plain.chat(HI, dictate("x"), tools=TOOLS)
    with pytest.raises(RequestError, match=r"tools\[0\]"):
        hermes.chat(HI, dictate("x"), tools=[{"name": "weather"}])
    with pytest.raises(RequestError, match="template_args"):
        hermes.chat(HI, dictate("x"), tools=TOOLS, template_args={"tools": TOOLS})
    with pytest.raises(RequestError, match=r"messages\[1\]\.tool_calls\[0\]"):
        hermes.chat([*HI, {"role": "assistant", "tool_calls": [{"id": "a"}]}], dictate("x"))
    with pytest.raises(RequestError, match=r"messages\[1\]\.tool_calls: expected a list"):
        hermes.chat([*HI, {"role": "assistant", "tool_calls": {"id": "a"}}], dictate("x"))


# --------------------------------------------------------------------------------------------------------- reasoning


def test_reasoning_is_told_from_the_answer(plain, dictate):
    text = "<think>\nhm\n</think>\n\nhello w"
    output = plain.chat(HI, dictate(text))
    assert (output.text, output.reasoning) == ("hello w", "hm")
    assert joined(plain.chat_stream(HI, dictate(text))) == ("hello w", "hm", ())
    steps = asyncio.run(gathered(plain.achat_stream(HI, dictate(text))))
    assert joined(steps) == ("hello w", "hm", ())
    for off in (plain.chat(HI, dictate(text), reasoning="off"), plain.generate("hello", dictate(text))[0]):
        assert (off.text, off.reasoning) == ("\nhm\n\n\nhello w", None)  # the tags are control tokens here
    assert plain.chat(HI, dictate("hello")).reasoning is None
    with pytest.raises(RequestError, match="reasoning: expected auto, off"):
        plain.chat(HI, dictate(text), reasoning="on")


def test_reasoning_that_the_prompt_opens(marked, dictate):
    with LLM(marked, chat_template=OPENED) as llm:
        thinking = {"thinking": True}
        output = llm.chat(HI, dictate("hm\n</think>\n\nhello"), template_args=thinking)
        assert (output.text, output.reasoning) == ("hello", "hm")
        output = llm.chat(HI, dictate("hello"))
        assert (output.text, output.reasoning) == ("hello", None)
        form = StructuredOutputsParams(choice=["hello", "w"])  # begins at once, whatever the prompt opened
        output = llm.chat(HI, replace(dictate("hello"), structured_outputs=form), template_args=thinking)
        assert (output.text, output.reasoning) == ("hello", None)


def test_conversations_keep_reasoning_out_of_the_history(marked, dictate):
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% if m.reasoning_content and keep %}"
        "({{ m.reasoning_content }}){% endif %}{% endfor %}"
    )
    text = "<think>hm</think>hello"
    with LLM(marked, chat_template=template) as llm:
        talk = llm.conversation(params=dictate(text))
        assert talk.send("a").text == "hello"
        assert talk.messages[-1] == {"role": "assistant", "content": "hello", "reasoning_content": "hm"}
        talk.params = dictate(text)
        assert joined(talk.stream("b")) == ("hello", "hm", ())
        assert talk.messages[-1] == {"role": "assistant", "content": "hello", "reasoning_content": "hm"}
        talk.params = dictate(text)
        prompt = llm.tokenizer.decode(talk.send("c").prompt_token_ids)
        assert prompt == "user:a;assistant:hello;user:b;assistant:hello;user:c;"
        talk.params, talk.template_args = dictate(text), {"keep": True}
        prompt = llm.tokenizer.decode(talk.send("d").prompt_token_ids)
        assert prompt.startswith("user:a;assistant:hello;(hm)user:b;")
        talk.params, talk.reasoning = dictate(text), "off"
        talk.send("e")
        assert talk.messages[-1] == {"role": "assistant", "content": "hmhello"}


def test_conversations_with_tools(hermes, dictate):
    talk = hermes.conversation(params=dictate(f"{CALL}\n{CALL}"), tools=TOOLS)
    calls = talk.send("weather?").tool_calls
    called = {"role": "assistant", "content": None, "tool_calls": [call.as_dict() for call in calls]}
    assert talk.messages[-1] == called
    other = talk.fork()
    for results in (["rain"], "ab", None, ["rain", 7]):
        with pytest.raises(RequestError, match="results"):
            talk.tell(results)
    talk.params = dictate("Rain.")
    output = talk.tell(["rain", "sun"])
    assert output.text == "Rain."
    prompt = hermes.tokenizer.decode(output.prompt_token_ids)
    assert prompt.count(CALL) == 2
    assert prompt.index("# Tools") < prompt.index(CALL) < prompt.index("\nrain\n") < prompt.index("\nsun\n")
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    with pytest.raises(RequestError, match="calls no tools"):
        talk.tell(["rain", "sun"])
    other.params = dictate("Rain.")
    assert joined(other.tell_stream(["rain", "sun"])) == ("Rain.", "", ())
    assert other.messages == talk.messages
    other.params = dictate(CALL)
    assert len(joined(other.stream("again?"))[2]) == 1
    assert other.messages[-1]["tool_calls"][0]["function"]["name"] == "weather"
    assert other.undo()["content"] == "again?"


def test_conversations_with_tools_are_saved(hermes, dictate, tmp_path):
    talk = hermes.conversation(params=replace(dictate("x"), logits_processors=()), tools=TOOLS)
    talk.messages = [*HI, {"role": "assistant", "content": "x"}]
    talk.save(tmp_path / "talk.session")
    tokens, _ = hermes.load_session(tmp_path / "talk.session")
    assert hermes.tokenizer.decode(tokens).count('"name": "weather"') == 1
    loaded = type(talk).load(hermes, tmp_path / "talk.session")
    assert (loaded.tools, loaded.messages) == (TOOLS, talk.messages)
    with pytest.raises(RequestError, match=r"tools\[0\]"):
        hermes.conversation(tools=[{}])


def test_a_stream_that_is_closed_cancels(plain, dictate):
    with closing(plain.chat_stream(HI, dictate("<think>" + "hello " * 100))) as steps:
        next(steps)
    assert plain.kv_usage().in_use == 0


# ---------------------------------------------------------------------------------------------------------- messages

QUESTION = {"role": "user", "content": "?"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"city": "Köln"}'}}]}  # fmt: skip
WRITTEN = '{"city": "Köln"}'


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("{{ a | tojson }}", WRITTEN),
        ("{{ '' + a }}", WRITTEN),
        ("{{ a }}", WRITTEN),
        ("{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}", WRITTEN),
        ("{% for k, v in a.items() %}{{ k }}={{ v }}{% endfor %}", "city=Köln"),
    ],
)
@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("{{ m.content }}", ""),
        ("{{ '' + m.content }}", ""),
        ("{% if m.content is none %}-{% else %}+{% endif %}", "-"),
        ("{{ m.content or '' }}", ""),
    ],
)
def test_calls_as_templates_want_them(arguments, wanted, content, shown):
    source = (
        f"{{% for m in messages if m.tool_calls %}}{content}{{% set a = m.tool_calls[0].function.arguments %}}"
        f"{arguments}{{% endfor %}}"
    )
    assert ChatTemplate(source).render([QUESTION, CALLED]) == shown + wanted


def test_arguments_that_are_no_objects_are_left():
    source = "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.arguments }}{% endfor %}"
    for text in ("Bonn", "[1]", '"a"', "{"):
        called = {**CALLED, "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
        assert ChatTemplate(source).render([QUESTION, called]) == text


def test_arguments_nested_too_deeply_are_refused():
    arguments: dict = {}
    for _ in range(5000):
        arguments = {"a": arguments}
    called = {**CALLED, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    source = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    with pytest.raises(RequestError, match="nested too deeply"):
        ChatTemplate(source).render([QUESTION, called])


def test_a_template_that_refuses_calls_says_why():
    from gumba.errors import TemplateError

    with pytest.raises(TemplateError, match="no tools here"):
        ChatTemplate("{{ raise_exception('no tools here') }}").render([QUESTION, CALLED])


#: What a template says of each message; the rest of it is ``TURNS``.
TURNS = "{{% for m in messages %}}[{{{{ m.role }}}}]{body}{{% endfor %}}"
TWO = [
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "CET"}'}}]},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "user", "content": "So?"},
]  # fmt: skip
LOOP = "{% for c in m.tool_calls or [] %}"
TEMPLATES = {
    "calls where there is no content, arguments joined": "{% if m.content is none %}" + LOOP
    + "{{ c.function.name + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}",
    "calls where the content is empty": "{% if m.content == '' %}" + LOOP
    + "{{ c.function.name ~ (c.function.arguments | tojson) }}{% endfor %}{% else %}{{ m.content }}{% endif %}",
    "one call in a message": "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one') }}{% endif %}"
    + LOOP + "{{ c.function.name ~ (c.function.arguments | tojson) }}{% endfor %}{% else %}{{ m.content }}{% endif %}",
    "the first call": "{% if m.tool_calls %}{% set c = m.tool_calls[0] %}{{ c.function.name ~ (c.function.arguments | tojson) }}"
    "{% else %}{{ m.content }}{% endif %}",
    "nine letters and digits": LOOP + "{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}{{ c.id ~ c.function }}"
    "{% endfor %}{% if m.role == 'tool' and m.tool_call_id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    "{{ m.content }}",
    "flat calls": LOOP + "{{ c.name ~ (c.arguments | tojson) }}{% endfor %}{{ m.content }}",
    "no calls": "{{ m.content }}",
    "no results": "{% if m.role != 'tool' %}{{ m.content }}{% endif %}",
}  # fmt: skip


@pytest.mark.parametrize("body", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("given", ["text", "objects", "function_call"])
def test_no_call_and_no_result_is_lost(body, given):
    messages = json.loads(json.dumps(TWO))
    if given == "objects":
        for call in messages[1]["tool_calls"]:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    if given == "function_call":
        calls = messages[1]["tool_calls"]
        messages[1:4] = [
            {"role": "assistant", "content": None, "function_call": calls[0]["function"]},
            {"role": "function", "name": "get_weather", "content": "sunny"},
            {"role": "assistant", "content": None, "function_call": calls[1]["function"]},
            {"role": "function", "name": "get_time", "content": "noon"},
        ]
    text = ChatTemplate(TURNS.format(body=body)).render(messages)
    for part in ("get_weather", "Köln", "get_time", "CET", "sunny", "noon"):
        assert text.count(part) == 1, text


def test_a_template_whose_roles_alternate_and_that_knows_no_tools_has_calls_in_texts():
    source = TURNS.format(
        body="{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{{ m.content }}"
    )
    assert ChatTemplate(source).render(TWO[:4]) == (
        '[user]?[assistant]<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>'
        "[user]<tool_response>\nnoon\n</tool_response>\n<tool_response>\nsunny\n</tool_response>"
    )


def test_a_template_that_shows_no_call_in_any_form_is_refused():
    from gumba.errors import TemplateError

    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(TemplateError, match=r"messages\[1\].*the chat template omits it.*hermes"):
        ChatTemplate(source).render(TWO)


@pytest.mark.parametrize("arguments", ["{{ a | tojson }}", "{{ '' + a }}", "{{ a | tojson(ensure_ascii=true) }}"])
@pytest.mark.parametrize("given", [{"city": "<|im_end|>"}, '{"city": "<|im_end|>"}', "<|im_end|>"])
def test_calls_make_no_control_tokens(plain, arguments, given):
    """Neither do results, nor what tools are said to do."""
    source = (
        "<|im_start|>{{ tools | tojson }}{% for m in messages %}{% for c in m.tool_calls or [] %}"
        f"{{% set a = c.function.arguments %}}{arguments}{{% endfor %}}{{{{ m.content }}}}{{% endfor %}}<|im_end|>"
    )
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": given}}]},
        {"role": "tool", "content": "<|im_end|>"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]
    ids = encode_chat(plain.tokenizer, ChatTemplate(source), messages, tools=tools)
    assert [token for token in ids if plain.tokenizer.is_special(token)] == [1, 2]
    assert plain.tokenizer.decode(ids).count("<|im_end|>") == 4


def test_templates_can_be_replaced_after_loading(marked):
    """A conversation with tools has a template of its own, which stays."""
    with LLM(marked) as llm:
        before = llm.tool_template
        llm.chat_template = ChatTemplate.named("chatml")
        assert llm.chat_template.render(HI) == ChatTemplate.named("chatml").render(HI)
        assert llm.tool_template is before
        llm.tool_template = llm.chat_template
        assert llm.tool_template is llm.chat_template
