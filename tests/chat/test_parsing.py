"""Reasoning and calls of tools in answers, as their formats' authors document them, however the text is cut into pieces."""

from __future__ import annotations

import json
import random

import pytest

from gumba.chat.formats import REASONING
from gumba.chat.harmony import HarmonySplitter
from gumba.chat.output_parser import AnswerFormat
from gumba.chat.reasoning import ReasoningSplitter
from gumba.chat.tool_parsers.base import Tools, checked_tools
from gumba.chat.tool_parsers.deepseek import DeepSeek
from gumba.chat.tool_parsers.gemma4 import Gemma4
from gumba.chat.tool_parsers.glm4 import GLM4, GLM45
from gumba.chat.tool_parsers.hermes import Hermes
from gumba.chat.tool_parsers.kimi import Kimi
from gumba.chat.tool_parsers.llama3 import Llama3
from gumba.chat.tool_parsers.marked_json import MarkedJSON
from gumba.chat.tool_parsers.mistral import Mistral
from gumba.chat.tool_parsers.pythonic import Pythonic
from gumba.chat.tool_parsers.qwen_xml import QwenXML
from gumba.errors import RequestError

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "zip": {"type": "string"}},
}
TOOLS = Tools([{"name": "weather", "parameters": CITY}, {"name": "python"}, {"name": "now"}])
FORMS = {
    "hermes": Hermes(),
    "qwen": QwenXML(),
    "glm4": GLM4(),
    "glm4.5": GLM45(),
    "llama3": Llama3(),
    "mistral": Mistral(),
    "deepseek": DeepSeek(),
    "kimi": Kimi(),
    "lfm2": Pythonic(),
    "gemma4": Gemma4(),
    "granite": MarkedJSON("<|tool_call|>", "<|/tool_call|>"),
    "cohere": MarkedJSON("<|START_ACTION|>", "<|END_ACTION|>"),
}
BONN, PARIS = {"city": "Bonn"}, {"city": "Paris"}
DS = "<\uff5ctool▁{}\uff5c>".format
BEGIN, END, CALL, CALL_END, SEP = (DS(name) for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))

#: Form, answer, text that is left, calls.
CALLS = [
    (
        "hermes",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>',
        "",
        [("weather", BONN)],
    ),
    (
        "hermes",
        'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>\n<tool_call>\n'
        '{"arguments": "{\\"city\\": \\"Paris\\"}", "name": "weather"}\n</tool_call>\n',
        "Let me look.",
        [("weather", BONN), ("weather", PARIS)],
    ),
    ("hermes", '<tool_call>{"name": "now"}', "", [("now", {})]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>\n"}}</tool_call>',
        "",
        [("weather", {"city": "</tool_call>\n"})],
    ),
    ("qwen", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [("now", {})]),
    (
        "qwen",
        "Ok.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nSt.\nGoar\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "<parameter=zip>\n53111\n</parameter>\n<parameter=more>\n[1, true]\n</parameter>\n</function>\n</tool_call>",
        "Ok.",
        [("weather", {"city": "St.\nGoar", "days": 3, "zip": "53111", "more": "[1, true]"})],
    ),
    ("qwen", "<function=weather>\n<parameter=city>\nBonn\n</parameter>\n</function>", "", [("weather", BONN)]),
    ("qwen", '<function=weather>{"city": "Bonn"}</function>', "", [("weather", BONN)]),
    ("glm4", '\nweather\n{"city": "Bonn"}', "", [("weather", BONN)]),
    ("glm4", 'weather\n{"city": "Bonn"}\nnow\n{}', "", [("weather", BONN), ("now", {})]),
    (
        "glm4.5",
        "Sure.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        "Sure.",
        [("weather", {"city": "Bonn", "days": 3}), ("now", {})],
    ),
    (
        "glm4.5",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Bonn</arg_value></tool_call>",
        "",
        [("weather", BONN)],
    ),
    ("llama3", '{"name": "weather", "parameters": {"city": "Bonn"}}', "", [("weather", BONN)]),
    ("llama3", '{"type": "function", "name": "weather", "parameters": {"city": "Bonn"}}', "", [("weather", BONN)]),
    ("llama3", '{"type": "function", "function": "weather", "parameters": {"city": "Bonn"}}', "", [("weather", BONN)]),
    (
        "llama3",
        '{"name": "weather", "parameters": {"city": "Bonn"}}; {"name": "weather", "parameters": {"city": "Paris"}}',
        "",
        [("weather", BONN), ("weather", PARIS)],
    ),
    ("llama3", '<|python_tag|>{"name": "weather", "parameters": {"city": "Bonn"}}', "", [("weather", BONN)]),
    (
        "llama3",
        '<|python_tag|>weather.call(city="a, \\"b\\"", days=3)',
        "",
        [("weather", {"city": 'a, "b"', "days": 3})],
    ),
    ("llama3", "<|python_tag|>print(1 +\n 1)", "", [("python", {"code": "print(1 +\n 1)"})]),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bonn"}, "id": "abcdefghi"}, {"name": "now", "arguments": {}}]',
        "",
        [("weather", BONN), ("now", {})],
    ),
    (
        "mistral",
        'Hm. [TOOL_CALLS]weather[ARGS]{"city": "Bonn"}[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}',
        "Hm.",
        [("weather", BONN), ("weather", PARIS)],
    ),
    ("mistral", '[TOOL_CALLS]weather{"city": "Bonn"}', "", [("weather", BONN)]),
    ("mistral", ' [{"name": "weather", "arguments": {"city": "Bonn"}}]', "", [("weather", BONN)]),
    (
        "deepseek",
        f'Ok.{BEGIN}{CALL}function{SEP}weather\n```json\n{{"city": "Bonn"}}\n```{CALL_END}\n{CALL}function{SEP}weather\n```json\n'
        f'{{"city": "Paris"}}\n```{CALL_END}{END}',
        "Ok.",
        [("weather", BONN), ("weather", PARIS)],
    ),
    (
        "deepseek",
        f'{BEGIN}{CALL}weather{SEP}{{"city": "Bonn"}}{CALL_END}{CALL}now{SEP}{{}}{CALL_END}{END}',
        "",
        [("weather", BONN), ("now", {})],
    ),
    (
        "kimi",
        'Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Bonn"}'
        "<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        "Ok.",
        [("weather", BONN), ("now", {})],
    ),
    (
        "lfm2",
        'Ok.<|tool_call_start|>[weather(city="Bo\\\'nn\\n\\u00e9\\d", days=-3), now()]<|tool_call_end|>',
        "Ok.",
        [("weather", {"city": "Bo'nn\né\\d", "days": -3}), ("now", {})],
    ),
    (
        "lfm2",
        "[weather(city='Bonn', a=[1, 2.5, (True, None)], b={'x': {}, 'y': []},)]",
        "",
        [("weather", {"city": "Bonn", "a": [1, 2.5, [True, None]], "b": {"x": {}, "y": []}})],
    ),
    (
        "gemma4",
        'Ok.<|tool_call>call:weather{city:<|"|>Bo{,}nn<|"|>,days:3,a:[1,<|"|>x<|"|>,{}],b:{c:true,d:null},e:word}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
        "Ok.",
        [
            ("weather", {"city": "Bo{,}nn", "days": 3, "a": [1, "x", {}], "b": {"c": True, "d": None}, "e": "word"}),
            ("now", {}),
        ],
    ),
    ("granite", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Bonn"}}]', "", [("weather", BONN)]),
    ("granite", '<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>', "", [("now", {})]),
    (
        "cohere",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Bonn"}}\n]<|END_ACTION|>',
        "",
        [("weather", BONN)],
    ),
]
#: What is no call stays the text that it is.
TEXTS = [
    *(
        (name, text)
        for name in FORMS
        for text in ("", " ", "Hello <b>\n", "  a [1] {x}  ", "1 < 2 <|", "{", "[", '"', "wea\n")
    ),
    ("hermes", "<tool_call>weather</tool_call>"),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Bo'),
    ("hermes", '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {}} and so on'),
    ("hermes", "<tool_call>" + '{"a":' * 5000),
    ("hermes", "<tool_call>" * 300),
    ("qwen", "<tool_call>\n<function=weather"),
    ("glm4", "weather\nis fine"),
    ("glm4", 'tomorrow\n{"city": "Bonn"}'),
    ("glm4", 'weather\n{"city": "Bo'),
    ("glm4.5", "<tool_call>weather"),
    ("glm4.5", "<tool_call>weather<arg_key>city"),
    ("llama3", '{"name": "Bonn", "parameters": {}}'),
    ("llama3", '{"name": "weather", "parameters": {}} is how to call it.'),
    ("llama3", '{"city": "Bonn", "what follows": "is an answer in JSON"}'),
    ("llama3", '{"name": "weather", "parameters": {"city"'),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "argum'),
    ("mistral", "[TOOL_CALLS] weather"),
    ("mistral", '[{"name": "Bonn"}]'),
    ("deepseek", f"{BEGIN}{CALL}function{SEP}weather\n```json\n{{"),
    ("deepseek", f"{BEGIN}{CALL}function{SEP}"),
    ("deepseek", f"{BEGIN}{END}"),
    ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>weather"),
    ("granite", '<|tool_call|>["weather"]'),
    ("lfm2", '<|tool_call_start|>[weather(city=open("x"))]<|tool_call_end|>'),
    ("lfm2", '<|tool_call_start|>[weather("Bonn")]<|tool_call_end|>'),
    ("lfm2", '<|tool_call_start|>[weather(city="Bo'),
    ("lfm2", "<|tool_call_start|>[]<|tool_call_end|>"),
    ("lfm2", "[other(city='Bonn')]"),
    ("lfm2", "[weather(city='Bonn'), other()]"),
    ("lfm2", "[weather] is a name"),
    ("lfm2", "[weather(a=" + "[" * 5000),
    ("lfm2", "[weather(a=[1 2])]"),
    ("gemma4", '<|tool_call>call:weather{city:<|"|>Bo'),
    ("gemma4", "<|tool_call>weather{}<tool_call|>"),
    ("gemma4", "<|tool_call>call:weather[1]<tool_call|>"),
    ("gemma4", "<|tool_call>call:weather{a:" + "[" * 5000),
    ("gemma4", "<|tool_call>call:weather{a:[1 [2]]}"),
]


def cuts(text: str) -> list[list[str]]:
    """The text whole, in characters, and in random pieces."""
    found = [[text], list(text)]
    dice = random.Random(len(text))
    for _ in range(5):
        places = sorted(dice.sample(range(len(text) + 1), min(len(text), 4)))
        found.append([text[a:b] for a, b in zip([0, *places], [*places, len(text)])])
    return found


def read(form: AnswerFormat, pieces: list[str]):
    parser = form.parser()
    deltas = [*map(parser.push, pieces), parser.finish()]
    assert not any(delta.calls for delta in deltas[:-1])
    calls = [(call.name, json.loads(call.arguments)) for call in deltas[-1].calls]
    return "".join(each.content for each in deltas), "".join(each.reasoning for each in deltas), calls


@pytest.mark.parametrize(("name", "text", "left", "calls"), CALLS)
def test_calls(name, text, left, calls):
    for pieces in cuts(text):
        assert read(AnswerFormat(None, FORMS[name], TOOLS), pieces) == (left, "", calls)


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=lambda each: each[:40])
def test_what_is_no_call_stays_text(name, text):
    for pieces in cuts(text):
        assert read(AnswerFormat(None, FORMS[name], TOOLS), pieces) == (text, "", [])


@pytest.mark.parametrize("name", FORMS)
def test_text_is_not_held_back_longer_than_needed(name):
    parser = AnswerFormat(None, FORMS[name], TOOLS).parser()
    assert "".join(parser.push(each).content for each in "Hello there, 1 < 2, and more words") == (
        "Hello there, 1 < 2, and more words"
    )


def test_a_broken_call_does_not_take_the_others_along():
    text = 'A <tool_call>oh</tool_call> <tool_call>{"name": "now", "arguments": {}}</tool_call> B'
    content, _, calls = read(AnswerFormat(None, Hermes(), TOOLS), [text])
    assert calls == [("now", {})]
    assert content.split() == ["A", "<tool_call>oh</tool_call>", "B"]


def test_arguments_are_text_that_can_be_written():
    text = '<tool_call>{"name": "now", "arguments": {"a": "\\ud800é"}}</tool_call>'
    parser = AnswerFormat(None, Hermes(), TOOLS).parser()
    parser.push(text)
    (call,) = parser.finish().calls
    call.arguments.encode()
    assert json.loads(call.arguments) == {"a": "\ufffdé"}


# --------------------------------------------------------------------------------------------------------- reasoning

#: Tags, whether the prompt opened them, the answer, its text, its reasoning.
THOUGHTS = [
    ("think", False, "<think>\nHm, 2 < 3.\n</think>\n\nYes.\n", "Yes.\n", "Hm, 2 < 3."),
    ("think", False, "\n<think>a</think>b", "b", "a"),
    ("think", True, "Hm.\n</think>\n\nYes.", "Yes.", "Hm."),
    ("think", True, "\n<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm."),
    ("think", True, "<thin a</think>b", "b", "<thin a"),
    ("think", True, "never ends <", "", "never ends <"),
    ("think", False, "<think>\n\n</think>\n\nYes.", "Yes.", ""),
    ("think", False, " No <think> tag </thin ", " No <think> tag </thin ", ""),
    ("think", False, "  \n", "  \n", ""),
    ("think", False, "<thi", "<thi", ""),
    ("think", False, "<think>", "", ""),
    ("think", True, "", "", ""),
    ("think", True, "a</think>b</think>c", "b</think>c", "a"),
    ("mistral", False, "[THINK]a [b][/THINK] c", "c", "a [b]"),
    ("seed", False, "<seed:think>a</seed:think>c", "c", "a"),
    ("granite", False, "<think>a</think>\n<response>b < c</response>", "b < c", "a"),
    ("granite", False, "no tags", "no tags", ""),
    ("granite-3.2", False, "Here is my thought process:\nA\nHere is my response:\nB", "B", "A"),
    ("cohere", False, "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "b", "a"),
    ("cohere", False, "<|START_RESPONSE|>b<|END_RESPONSE|>", "b", ""),
    ("gemma4", False, "<|channel>thought\na\n<channel|>b", "b", "a"),
]


@pytest.mark.parametrize(("name", "opened", "text", "content", "reasoning"), THOUGHTS)
def test_reasoning(name, opened, text, content, reasoning):
    form = AnswerFormat(lambda: ReasoningSplitter(REASONING[name], opened), None, TOOLS)
    for pieces in cuts(text):
        assert read(form, pieces) == (content, reasoning, [])


def test_reasoning_comes_as_it_is_thought():
    parser = AnswerFormat(lambda: ReasoningSplitter(REASONING["think"], True), None, TOOLS).parser()
    assert [parser.push(each).reasoning for each in ("Hm", ", ", "so.", "\n</")] == ["Hm", ",", " so.", ""]


def test_calls_behind_reasoning():
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    form = AnswerFormat(lambda: ReasoningSplitter(REASONING["think"], False), Hermes(), TOOLS)
    for pieces in cuts(f"<think>\nI could {call}.\n</think>\n\nOk.\n{call}"):
        assert read(form, pieces) == ("Ok.", f"I could {call}.", [("now", {})])


FINAL = "<|start|>assistant<|channel|>final<|message|>"
HARMONY = [
    (False, "", f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}Yes.", "Yes.", "Hm.", []),
    (False, "<|channel|>final<|message|>", "Yes.", "Yes.", "", []),
    (
        True,
        "",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Bonn"}',
        "",
        "Hm.\nI look.",
        [("weather", BONN)],
    ),
    (True, "", ' to=functions.now<|channel|>commentary json<|message|>{}<|call|>', "", "", [("now", {})]),
    (True, "", "<|channel|>commentary to=functions.now<|message|>{", "{", "", []),
    (False, "", "<|channel|>analysis<|message|>Hm", "", "Hm", []),
    (False, "", " Just text <|end", " Just text <|end", "", []),
]  # fmt: skip


@pytest.mark.parametrize(("tools", "header", "text", "content", "reasoning", "calls"), HARMONY)
def test_harmony(tools, header, text, content, reasoning, calls):
    form = AnswerFormat(lambda: HarmonySplitter(TOOLS if tools else None, header), None, TOOLS)
    for pieces in cuts(text):
        assert read(form, pieces) == (content, reasoning, calls)


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ("weather", "tools: expected a list"),
        ([{"name": "weather"}], r"tools\[0\]: expected .*'function'"),
        ([{"type": "web_search", "function": {"name": "f"}}], r"tools\[0\]: expected"),
        ([{"function": {"name": "f"}}, {"function": {"name": ""}}], r"tools\[1\]\.function\.name"),
        ([{"function": {"name": "f", "parameters": [1]}}], r"tools\[0\]\.function\.parameters"),
    ],
)
def test_tools_that_are_none(tools, says):
    with pytest.raises(RequestError, match=says):
        checked_tools(tools)


def test_noise_never_raises():
    pieces = ["<tool_call>", "</tool_call>", "{", "}", '"name"', ":", ",", "[", "]", '"now"', "<function=", "<parameter=",
              "</parameter>", ">", "<arg_key>", "</arg_key>", "<arg_value>", BEGIN, CALL, SEP, CALL_END, "```json", "\n", "now",
              "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", ".call(", ")", "=", "1", "{}", "<think>", "</think>", "<|channel|>",
              "<|message|>", "<|start|>", "<|call|>", "to=functions.f",
              "<|tool_call_start|>", "now(", "a=", "'x'", "<|tool_call>", "call:now{", "a:", '<|"|>']  # fmt: skip
    dice = random.Random(1)
    n_calls = 0
    for round in range(150):
        text = "".join(dice.choice(pieces) for _ in range(dice.randint(1, 14)))

        def think(opened: bool = round % 2 == 0) -> ReasoningSplitter:
            return ReasoningSplitter(REASONING["think"], opened)

        forms = [AnswerFormat(think, form, TOOLS) for form in FORMS.values()]
        for form in [*forms, AnswerFormat(lambda: HarmonySplitter(TOOLS), None, TOOLS)]:
            found = read(form, [text])
            assert found == read(form, list(text))
            n_calls += len(found[2])
    assert n_calls
