"""Calls as models misspell them, from public bug reports: never lost, never of a function that was not offered."""

from __future__ import annotations

import json
import random
import time

import pytest

from gumba.chat.formats import REASONING
from gumba.chat.harmony import HarmonySplitter
from gumba.chat.output_parser import AnswerFormat
from gumba.chat.reasoning import ReasoningSplitter
from gumba.chat.tool_parsers.base import Tools
from gumba.chat.tool_parsers.registry import PARSERS

S = {"type": "string"}
FILE = {"path": S, "content": S}
ANY = {
    "zip": {"anyOf": [S, {"type": "null"}]},
    "code": {"type": ["string", "null"]},
    "size": {"enum": ["1", "2"]},
    "tag": {"const": "7"},
    "one": {"oneOf": [{"type": "integer"}, S]},
    "all": {"type": "boolean"},
    "both": {"allOf": [{"$ref": "#/$defs/text"}, {"minLength": 1}]},
    "ref": {"$ref": "#/$defs/text"},
    "loop": {"$ref": "#/$defs/loop"},
    "nullable": {"type": "string", "nullable": True},
    "mixed": {"enum": ["auto", 1, 2]},
    "object": {"type": "object"},
    "array": {"items": {}},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "maybe": {"type": ["integer", "null"]},
    "free": {"description": "anything"},
}
DEFS = {"text": S, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "integer"}]}}
NAMES = {
    "write_file": {"properties": FILE},
    "run_shell": {"properties": {"command": S}},
    "f": {"type": "object", "properties": ANY, "$defs": DEFS},
    "search": {"properties": {"query": S, "n": {"type": "integer"}}},
    "now": {"properties": {}},
}
TOOLS = Tools([{"name": name, "parameters": schema} for name, schema in NAMES.items()])
FORMS = {marker: parser for parser in PARSERS for marker in parser.template_markers if marker != "ipython"}
QWEN, GLM, GEMMA, HERMES = "<function=", "<arg_key>", "<|tool_call>", "<tool_call>"


def read(source, pieces, cut=False, splitter=None):
    """Text, reasoning and calls of an answer in the form that ``source`` tells; None: in none."""
    parser = AnswerFormat(splitter, FORMS.get(source), TOOLS).parser()
    deltas = [*map(parser.push, pieces), parser.finish(cut)]
    calls = [(call.name, json.loads(call.arguments, parse_constant=pytest.fail)) for call in deltas[-1].calls]
    for call in deltas[-1].calls:
        call.arguments.encode()
    return "".join(each.content for each in deltas), "".join(each.reasoning for each in deltas), calls


def cuts(text):
    """``text`` whole, in characters, and cut in two at one place in five."""
    yield [text]
    yield list(text)
    yield from ([text[:n], text[n:]] for n in range(len(text) % 5, len(text), 5))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("zip", "90210", "90210"),
        ("zip", "1e5", "1e5"),
        ("zip", '{"a":1}', '{"a":1}'),
        ("zip", "null", None),
        ("zip", "None", None),
        ("code", "true", "true"),
        ("size", "1", "1"),
        ("tag", "7", "7"),
        ("one", "5", "5"),
        ("both", "5", "5"),
        ("ref", "null", "null"),
        ("loop", "5", 5),
        ("nullable", "5", "5"),
        ("nullable", "null", None),
        ("mixed", "2", 2),
        ("mixed", "3", "3"),
        ("free", "[1]", "[1]"),
        ("unknown", "5", "5"),
        ("all", "True", True),
        ("all", "False", False),
        ("all", "false", False),
        ("all", '"true"', True),
        ("all", "yes", "yes"),
        ("object", "{'a': 1, \"b\": True, 'c': None,}", {"a": 1, "b": True, "c": None}),
        ("array", "('x', 2, [.5, \"it's\"])", ["x", 2, [0.5, "it's"]]),
        ("maybe", "None", None),
        ("integer", "3.0", 3),
        ("integer", "'3'", 3),
        ("integer", "three", "three"),
        ("number", "NaN", "NaN"),
        ("number", "-Infinity", "-Infinity"),
        ("number", "1e400", "1e400"),
        ("number", "9" * 400, "9" * 400),
        ("number", "12345678901234567890", 12345678901234567890),
    ],
)
def test_bare_values_follow_the_schema(key, text, value):
    for source, answer in (
        (QWEN, f"<tool_call>\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"),
        (GLM, f"<tool_call>f\n<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"),
    ):
        assert read(source, [answer]) == ("", "", [("f", {key: value})])


def test_a_schema_of_any_depth():
    schema = {"type": "integer"}
    for _ in range(600):
        schema = {"anyOf": [schema]}
    tools = Tools([{"name": "f", "parameters": {"properties": {"a": schema}}}])
    parser = AnswerFormat(None, FORMS[QWEN], tools).parser()
    parser.push("<function=f><parameter=a>1</parameter></function>")
    assert len(parser.finish().calls) == 1


VALUES = [
    ("NaN", "NaN"), ("-Infinity", "-Infinity"), ("1e400", "1e400"), ("[1, -1E999]", [1, "-1E999"]), ("9" * 400, "9" * 400),
    ("[" * 300 + "]" * 300, None), ("'it'", "it"), ("[True, None, {'a': False}]", [True, None, {"a": False}]),
    ("007", "007"), ('"\\ud83d\\ude00 \\ud800"', "😀 \ufffd"),
]  # fmt: skip
JSON_FORMS = {
    HERMES: '<tool_call>{"name": "NAME", "arguments": %s}</tool_call>',
    "[TOOL_CALLS]": '[TOOL_CALLS]NAME[ARGS]%s',
    "<\uff5ctool▁calls▁begin\uff5c>": "<\uff5ctool▁calls▁begin\uff5c><\uff5ctool▁call▁begin\uff5c>NAME<\uff5ctool▁sep\uff5c>%s"
    "<\uff5ctool▁call▁end\uff5c><\uff5ctool▁calls▁end\uff5c>",
    "<|tool_calls_section_begin|>": "<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0"
    "<|tool_call_argument_begin|>%s<|tool_call_end|><|tool_calls_section_end|>",
    "<|START_ACTION|>": '<|START_ACTION|>[{"tool_name": "NAME", "parameters": %s}]<|END_ACTION|>',
    "<|tool_call_start|>": '<|tool_call_start|>[{"name": "NAME", "arguments": %s}]<|tool_call_end|>',
    "<|function_call|>": '<|function_call|>{"name": "NAME", "arguments": %s}',
    "<tool_calls>": '<tool_calls>[{"name": "NAME", "arguments": %s}]</tool_calls>',
    "<|tool_call|>": '<|tool_call|>[{"name": "NAME", "arguments": %s}]',
    "<|python_tag|>": '{"name": "NAME", "parameters": %s}',
    "[gMASK]": "NAME\n%s",
    QWEN: "<function=NAME>%s</function>",
    GLM: '<tool_call>{"name": "NAME", "arguments": %s}</tool_call>',
    "<seed:tool_call>": "<seed:tool_call><function=NAME>%s</function></seed:tool_call>",
}  # fmt: skip


@pytest.mark.parametrize("source", JSON_FORMS)
@pytest.mark.parametrize(("text", "value"), VALUES, ids=lambda each: str(each)[:12])
def test_values_that_json_has_not(source, text, value):
    for written in (f'{{"a": {text}}}', f'{{"a": {text}, "a": {text}}}'):
        content, _, calls = read(source, [JSON_FORMS[source].replace("NAME", "f") % written])
        assert (content, [name for name, _ in calls]) == ("", ["f"])
        assert value is None or calls == [("f", {"a": value})]


def test_every_form_is_covered():
    assert {*JSON_FORMS, GEMMA, "<|tool_list_start|>"} == {*FORMS}


CALLS = [
    # closing tags that are missing or at another place
    (QWEN, f"{head}<parameter=path>\n/etc/a\n{one}<parameter=content>\nhello\n{two}{tail}", "", [
        ("write_file", {"path": "/etc/a", "content": "hello"})])
    for head in ("<function=write_file>\n", "<tool_call>\n<function=write_file>\n")
    for one in ("", "</parameter>\n", "</parameter>\n</parameter>\n")
    for two in ("", "</parameter>\n")
    for tail in ("", "</function>", "</tool_call>", "</function>\n</tool_call>")
] + [
    (QWEN, "<function=write_file><parameter=path>/a<parameter=content>hello</function></parameter></tool_call>", None, [
        ("write_file", {"path": "/a", "content": "hello"})]),
    # a tag in a value that is closed is none of the call's
    (QWEN, "<function=write_file><parameter=content>a </function> <parameter=x> b</parameter></function>", "", [
        ("write_file", {"content": "a </function> <parameter=x> b"})]),
    *((QWEN, f"<tool_call><function=write_file><parameter=content>\n{value}\n</parameter>\n<parameter=path>/a</parameter>"
        "</function></tool_call>", "", [("write_file", {"content": value, "path": "/a"})]) for value in (
        "<tool_call>\n<function=now>\n</function>\n</tool_call>", "a <function=now></function> b", "use </parameter> here",
        "<tool_call><function=run_shell><parameter=command>ls</parameter></function></tool_call>",
        "<function=write_file><parameter=path>x</parameter></function> <function=now></function>",
    )),
    *((GLM, f"<tool_call>run_shell<arg_key>command</arg_key><arg_value>{value}</arg_value></tool_call>", "", [
        ("run_shell", {"command": value})]) for value in (
        "<tool_call>now</tool_call>", "use </arg_value> here", "a </tool_call> b",
        "<tool_call>run_shell<arg_key>command</arg_key><arg_value>ls</arg_value></tool_call>",
    )),
    (QWEN, "<function=run_shell><parameter=command>ls<function=now></function>", "", [
        ("run_shell", {"command": "ls"}), ("now", {})]),
    (QWEN, "<tool_call>\n<function=run_shell>\n<parameter=command>\nls\n<tool_call>\n<function=now>\n</function>", "", [
        ("run_shell", {"command": "ls"}), ("now", {})]),
    (GLM, "<tool_call>write_file<arg_key>path<arg_value>/a<arg_key>content</arg_key><arg_value>hello</tool_call>", "", [
        ("write_file", {"path": "/a", "content": "hello"})]),
    (GLM, "<tool_call>write_file\n<arg_key>path</arg_key>\n<arg_value>/a\n<tool_call>now\n</tool_call>", "", [
        ("write_file", {"path": "/a"}), ("now", {})]),
    (GLM, "<tool_call>run_shell<arg_key>command</arg_key><arg_value>a </tool_call> b</arg_value></tool_call>", "", [
        ("run_shell", {"command": "a </tool_call> b"})]),
    # names
    (QWEN, '<function="write_file"><parameter="path">a</parameter></function>', "", [("write_file", {"path": "a"})]),
    (QWEN, "<function='write_file'>\n<parameter = 'path' >a</parameter></function>", "", [("write_file", {"path": "a"})]),
    (QWEN, '<function name="write_file" id="1"><parameter name="path" type="string">a</parameter></function>', "", [
        ("write_file", {"path": "a"})]),
    (QWEN, "<function= write_file ><parameter= path >a</parameter></function>", "", [("write_file", {"path": "a"})]),
    (GLM, '<tool_call>"now"\n</tool_call>', "", [("now", {})]),
    (HERMES, '<tool_call>{"name": "functions.now", "arguments": "{}"}</tool_call>', "", [("now", {})]),
    (GLM, "<tool_call>run_shellcommand</arg_key><arg_value>echo test</arg_value></tool_call>", "", [
        ("run_shell", {"command": "echo test"})]),
    (GLM, "<tool_call>run_shell\ncommand</arg_key><arg_value>ls</arg_value></tool_call>", "", [
        ("run_shell", {"command": "ls"})]),
    # Gemma 4
    *((GEMMA, f"{start}call:search{{{body}}}{end}", "", [("search", value)])
        for start, end in (("<|tool_call>", "<tool_call|>"), ("<|tool_call>", ""), ("", ""))
        for body, value in (
            ('query:"x, y",n:2', {"query": "x, y", "n": 2}),
            ('query:"say \\"hi\\" {x}", n : 2', {"query": 'say "hi" {x}', "n": 2}),
            ('query:"a "b" c"', {"query": 'a "b" c'}),
            ("query:'it's, [so]',n:2", {"query": "it's, [so]", "n": 2}),
            ("query:x, y,n:2", {"query": "x, y", "n": 2}),
            ("query:12:30,n:2", {"query": "12:30", "n": 2}),
            ("query:90210", {"query": "90210"}),
            ('"query":"x","n":2', {"query": "x", "n": 2}),
            ('<|"|>a:b<|"|>:1,"c:d":2', {"a:b": 1, "c:d": 2}),
            ('query:<|"|>a"}, b:c<|"|>,n:None', {"query": 'a"}, b:c', "n": None}),
            ("a:{b:[1,{c:'d, e'},True]},n:3", {"a": {"b": [1, {"c": "d, e"}, True]}, "n": 3}),
            ("", {}),
        )),
    (GEMMA, "<|tool_call>call:google:mcp:now{}<tool_call|>", "", [("now", {})]),
    # others
    (HERMES, "<tool_call>{'name': 'search', 'arguments': {'query': \"it's\", 'n': None,}}</tool_call>", "", [
        ("search", {"query": "it's", "n": None})]),
    *((HERMES, f"A <tool_call>{call}</tool_call> B", "A  B", [("search", {"n": 1})]) for call in (
        '{"name": "search", "arguments": {"n": 1}', '{"name": "search", "arguments": {"n": 1',
        '[{"name": "search", "arguments": {"n": 1}}',
        '{"name": "search", "arguments": {"n": 1}}}', '```json\n{"name": "search", "arguments": {"n": 1}}\n```',
        '<tool_call>{"name": "search", "arguments": {"n": 1}}',
    )),
    ("<|python_tag|>", "{'name': 'search', 'parameters': {'n': 1}}", "", [("search", {"n": 1})]),
    ("[TOOL_CALLS]", "[{'name': 'search', 'arguments': {'n': 1}}]", "", [("search", {"n": 1})]),
    ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "rm", "arguments": {}}]',
        '{"name": "rm", "arguments": {}}', [("now", {})]),
    ("<|tool_call_start|>", '<|tool_call_start|>[search(query="""a "b" c""", n=-1), rm(), now()]<|tool_call_end|>', "rm()", [
        ("search", {"query": 'a "b" c', "n": -1}), ("now", {})]),
]  # fmt: skip


@pytest.mark.parametrize(("source", "text", "left", "calls"), CALLS)
def test_calls_are_found(source, text, left, calls):
    for pieces in cuts(text):
        content, _, found = read(source, pieces)
        assert found == calls
        assert left is None or content == left


#: Calls of the function NAME.
OFFERED = [
    *((source, form % "{}") for source, form in JSON_FORMS.items()),
    (QWEN, "<tool_call>\n<function=NAME>\n<parameter=zip>\n1\n</parameter>\n</function>\n</tool_call>"),
    (GLM, "<tool_call>NAME\n<arg_key>zip</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
    (GEMMA, "<|tool_call>call:NAME{zip:1}<tool_call|>"),
    ("<|tool_call_start|>", "<|tool_call_start|>[NAME(zip='1')]<|tool_call_end|>"),
    ("<|python_tag|>", '<|python_tag|>{"name": "NAME", "parameters": {}}'),
    ("<|python_tag|>", '<|python_tag|>NAME.call(zip="1")'),
    (None, "<|channel|>commentary to=functions.NAME<|message|>{}<|call|>"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "text"), OFFERED)
def test_what_is_not_offered_is_text(source, text):
    def split():
        return HarmonySplitter(TOOLS)

    splitter = split if source is None else None
    assert read(source, [text.replace("NAME", "f")], splitter=splitter)[2] in (
        [("f", {})],
        [("f", {"zip": "1"})],
        [("f", {"zip": 1})],
    )
    for name in ("g", "ff", "F", "f.f", "f</arg_key>", "search."):
        answer = text.replace("NAME", name)
        for pieces in ([answer], list(answer)):
            assert read(source, pieces, splitter=splitter) == (answer if source else "{}", "", [])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (QWEN, "<tool_call>\n<function=write_file>\n<parameter=path>\n/a\n</parameter>\n<parameter=content>\nhel"),
        (QWEN, "<tool_call>\n<function=write_file>\n<parameter=path>\n/a\n</parameter>\n"),
        (GLM, "<tool_call>write_file<arg_key>path</arg_key><arg_value>/a"),
        (GLM, "<tool_call>write_file<arg_key>path</arg_key><arg_value>/a</arg_value>"),
        (HERMES, '<tool_call>{"name": "write_file", "arguments": {"path": "/a'),
        ("<|python_tag|>", "<|python_tag|>print("),
    ],
)
def test_a_call_that_the_limit_of_tokens_cuts_is_none(source, text):
    assert read(source, [text], cut=True) == (text, "", [])


# --------------------------------------------------------------------------------------------------------- reasoning

THOUGHTS = [
    # opened by the prompt, the answer, its text, its reasoning
    (True, "</think>private</think>visible", "visible", "private"),
    (True, "\n</think>\nprivate\n</think>\nvisible", "visible", "private"),
    (True, "\n\n</think>\n\nHello", "Hello", ""),
    (True, "</think></think>visible", "visible", ""),
    (True, "a</think>\n</think>visible", "visible", "a"),
    (True, "</think>a <think>b</think> c", "a  c", "b"),
    (True, "<think>a</think>b", "b", "a"),
    (True, "a<think>b</think>c</think>d", "d", "a<think>b\nc"),
    (True, "a<think>b</think>c", "c", "a<think>b"),
    (True, "a<think>b<think>c</think>d</think>e</think>f", "f", "a<think>b<think>c\nd\ne"),
    (True, "close with `</think>` and\nso</think>b", "b", "close with `</think>` and\nso"),
    (True, "use `x</think>b", "b", "use `x"),
    (False, "</think>visible", "visible", ""),
    (False, "<think></think>visible", "visible", ""),
    (False, "<think>a</think><think>b</think>c", "c", "a\nb"),
    (False, "<think>a</think>b<think>c</think>d", "bd", "a\nc"),
    (False, "b\n<think>c", "b\n", "c"),
    (False, "the <think> tag", "the <think> tag", ""),
    (False, "`<think>a</think>` b", "`<think>a</think>` b", ""),
    (False, "``<think>`` b </think>", "``<think>`` b </think>", ""),
    (False, "Xml:\n```\n<think>a</think>\n```\n<think>b</think>c", "Xml:\n```\n<think>a</think>\n```\nc", "b"),
    (False, '<tool_call>{"name": "f", "arguments": {"zip": "<think>a</think>"}}</tool_call><think>b</think>', None, "b"),
]  # fmt: skip


@pytest.mark.parametrize(("opened", "text", "content", "reasoning"), THOUGHTS)
def test_reasoning_however_the_tags_come(opened, text, content, reasoning):
    calls = [("f", {"zip": "<think>a</think>"})] if "tool_call" in text else []

    def split():
        return ReasoningSplitter(REASONING["think"], opened, FORMS[HERMES], TOOLS)

    for pieces in cuts(text):
        found = read(HERMES, pieces, splitter=split)
        assert found[1:] == (reasoning, calls)
        assert content is None or found[0] == content


def test_reasoning_tags_in_a_call_without_a_marker_are_its_own():
    def split():
        return ReasoningSplitter(REASONING["think"], True, FORMS["<|python_tag|>"], TOOLS)

    call = '{"name": "f", "parameters": {"zip": "<think>a</think>"}}'
    for pieces in cuts(f"b</think>{call}"):
        assert read("<|python_tag|>", pieces, splitter=split) == ("", "b", [("f", {"zip": "<think>a</think>"})])
    for pieces in cuts("b</think>{c} <think>d</think>e"):
        assert read("<|python_tag|>", pieces, splitter=split) == ("{c} e", "b\nd", [])


def test_an_answer_is_not_held_back_after_reasoning():
    parser = AnswerFormat(lambda: ReasoningSplitter(REASONING["think"], True), None, TOOLS).parser()
    assert [parser.push(each).content for each in ("hm", "</think>", "\n\n", "Hello", " <b>", " you")] == [
        "", "", "", "Hello", " <b>", " you"]  # fmt: skip


FINAL, ANALYSIS = "<|start|>assistant<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
HARMONY = [
    (f"<|channel|>junk<|end|><|start|>assistant{ANALYSIS}SECRET<|end|>{FINAL}Hi<|return|>", "Hi", "SECRET", []),
    (f"{ANALYSIS}SECRET{FINAL}Hi", "Hi", "SECRET", []),
    (f"{ANALYSIS}SECRET<|channel|>final<|message|>Hi", "Hi", "SECRET", []),
    (f"{ANALYSIS}SECRET<|end|><|start|><|start|>assistant<|start|>assistant<|channel|>final<|message|>Hi", "Hi", "SECRET", []),
    (f"{ANALYSIS}SEC<|message|>RET<|end|>junk {FINAL}Hi", "Hi", "SECRET", []),
    (f"<|channel|>odd<|message|>SECRET<|end|>{FINAL}Hi", "Hi", "SECRET", []),
    (f"<|channel|>final<|channel|>analysis<|message|>SECRET<|end|>{FINAL}Hi", "Hi", "SECRET", []),
    (f"<|channel|>analysis to=python code<|message|>SECRET<|call|>{FINAL}Hi", "Hi", "SECRET", []),
    (f"{ANALYSIS}SECRET<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{{}}", "{}", "SECRET", []),
    (f"{ANALYSIS}SECRET<|end|>Hi", "Hi", "SECRET", []),
    (f"{ANALYSIS}SECRET<|end|><|start|>assistant<|channel|>fin", "", "SECRET", []),
    ("<|channel|>commentary to=functions.search <|constrain|>json<|message|>{'n': NaN}<|call|>", "", "", [
        ("search", {"n": "NaN"})]),
    ("<|start|>assistant to=functions.now<|channel|>commentary<|message|><|call|>", "", "", [("now", {})]),
    ("<|channel|>commentary to=functions.rm<|message|>{}<|call|>", "{}", "", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "content", "reasoning", "calls"), HARMONY)
def test_harmony_with_junk(text, content, reasoning, calls):
    for pieces in cuts(text):
        assert read(None, pieces, splitter=lambda: HarmonySplitter(TOOLS)) == (content, reasoning, calls)


# ------------------------------------------------------------------------------------------------------------- noise


def _splitters():
    yield None, lambda: HarmonySplitter(TOOLS)
    for source, form in FORMS.items():
        for opened in (False, True):
            yield source, lambda form=form, opened=opened: ReasoningSplitter(REASONING["think"], opened, form, TOOLS)


def test_mutated_answers():
    """Never an exception, the same however the text is cut, only offered functions, and objects as arguments."""
    dice = random.Random(7)
    answers = [(source, text) for source, text, _, _ in CALLS]
    answers += [(source, text.replace("NAME", "f")) for source, text in OFFERED]
    answers += [(None, text) for text, *_ in HARMONY]
    pieces = [
        piece for _, text in answers for piece in text.replace("<", "\0<").replace(">", ">\0").split("\0") if piece
    ]
    pieces += ["<think>", "</think>", "`", "```\n", "\n", " ", "'", '"', "\\", "\ud83d", ":", ","]
    by_source = {}
    for source, text in answers:
        by_source.setdefault(source, []).append(text)
    for source, splitter in _splitters():
        for _ in range(40):
            text = dice.choice(by_source.get(source) or [text for _, text in answers])
            for _ in range(dice.randint(1, 3)):
                a, b = sorted(dice.choices(range(len(text) + 1), k=2))
                b = min(b, a + 9)
                text = dice.choice((text[:a] + text[b:], text[:a] + dice.choice(pieces) + text[a:], text + text[a:b]))
            found = read(source, [text], splitter=splitter)
            assert found == read(source, list(text), splitter=splitter), text
            assert all(name in TOOLS.names and isinstance(arguments, dict) for name, arguments in found[2])


LONG = [
    (HERMES, "<"), (HERMES, "\n"), (HERMES, "<tool_call>"), (HERMES, "<tool_call>['"), (HERMES, '<tool_call>{"a":"'),
    (QWEN, "<function=f"), (QWEN, "<tool_call><function=f><parameter=a>"), (QWEN, "</function><parameter=a>"),
    (GLM, "<tool_call>f<arg_key>a</arg_key>"), (GLM, "<tool_call>f<arg_value>"), (GEMMA, "<|tool_call>call:f{a:'"),
    (GEMMA, "<|tool_call>call:f{a,"), ("[TOOL_CALLS]", "[TOOL_CALLS]f[ARGS]"), ("<|tool_call|>", "<|tool_call|>[["),
    ("<|tool_call_start|>", "<|tool_call_start|>[f(a='"), ("<\uff5ctool▁calls▁begin\uff5c>", "<\uff5ctool▁call▁begin\uff5c>"),
    (HERMES, "<think>"), (HERMES, "`</think>"), (None, "<|channel|>"), (None, "<|message|>a"),
]  # fmt: skip


@pytest.mark.serial
@pytest.mark.parametrize(("source", "unit"), LONG)
def test_time_is_linear(source, unit):
    def split():
        return (
            HarmonySplitter(TOOLS)
            if source is None
            else ReasoningSplitter(REASONING["think"], True, FORMS[source], TOOLS)
        )

    seconds = []
    for size in (1 << 14, 1 << 17):
        text = unit * (size // len(unit))
        start = time.perf_counter()
        read(source, [text], splitter=None if "think" not in unit and source else split)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < max(32 * seconds[0], 0.3)


SEARCH = ("search", {"query": "x"})
KIMI_CALL = "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
DEEPSEEK_BEGIN = next(source for source in FORMS if "calls▁begin" in source)


def deepseek(name: str) -> str:
    return f"<\uff5ctool▁{name}\uff5c>"


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        (HERMES, '<tool_call>{"name":"search","arguments":{"query":"x"}}\n{"name":"now"}</tool_call>', [SEARCH, ("now", {})]),
        (HERMES, '<tool_call>{"name":"now"};{"name":"now"}{"name":"now"}</tool_call>', [("now", {})] * 3),
        (HERMES, '<tool_call>{"name":"search","args":{"query":"x"}}</tool_call>', [SEARCH]),
        (HERMES, '<tool_call>{"name":"search","input":{"query":"x"}}</tool_call>', [SEARCH]),
        (HERMES, '<tool_call>{"name":"search","query":"x"}</tool_call>', [SEARCH]),
        ("[TOOL_CALLS]", "[TOOL_CALLS]now[ARGS]", [("now", {})]),
        ("[TOOL_CALLS]", '[TOOL_CALLS]now[ARGS] [TOOL_CALLS]search[ARGS]{"query":"x"}', [("now", {}), SEARCH]),
        ("<|tool_calls_section_begin|>", KIMI_CALL.replace("{}", ""), [("now", {})]),
        (
            DEEPSEEK_BEGIN,
            f"{deepseek('call▁begin')}function{deepseek('sep')}now\n```json\n\n```{deepseek('call▁end')}",
            [("now", {})],
        ),
    ],
)  # fmt: skip
def test_arguments_in_other_places_or_none(form: str, text: str, calls: list[tuple[str, dict[str, str]]]) -> None:
    for pieces in ([text], list(text)):
        assert read(form, pieces) == ("", "", calls)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, '<tool_call>{"name":"search","where":{"query":"x"}}</tool_call>'),
        (HERMES, '<tool_call>{"name":"now"}{"name":"other"}</tool_call>'),
        ("[TOOL_CALLS]", "[TOOL_CALLS]now"),
    ],
)
def test_a_call_without_what_it_says_is_none(form: str, text: str) -> None:
    assert read(form, [text]) == (text, "", [])


def test_a_name_that_the_end_cuts_before_its_arguments_is_no_call() -> None:
    assert read("[TOOL_CALLS]", ["[TOOL_CALLS]now[ARGS]"], cut=True) == ("[TOOL_CALLS]now[ARGS]", "", [])
