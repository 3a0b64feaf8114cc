"""What published templates write for a message of the assistant is found again by the form that gumba takes them to speak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gumba.chat.formats import REASONING, answer_format
from gumba.chat.tool_parsers.registry import parser_of

DATA = json.loads((Path(__file__).parent.parent / "data" / "answer_goldens.json").read_text(encoding="utf-8"))


class Prompted:
    """A tokenizer of which only the end of the prompt counts."""

    def __init__(self, prompt: str, tokens: tuple[str, ...] = ()) -> None:
        self.prompt, self.tokens = prompt, tokens

    def decode(self, ids):
        return self.prompt

    def token_id(self, text):
        return 7 if text in self.tokens else None


def parsed(prompt, source, answer, pieces, tools=(DATA["tool"],), **options):
    form = answer_format(Prompted(prompt), source, [1], tools=tools, **options)
    if form is None:
        return answer, "", []
    parser = form.parser()
    deltas = [*map(parser.push, pieces), parser.finish()]
    calls = [(call.name, json.loads(call.arguments)) for call in deltas[-1].calls]
    return "".join(each.content for each in deltas), "".join(each.reasoning for each in deltas), calls


@pytest.mark.parametrize("golden", DATA["goldens"], ids=lambda golden: f"{golden['template']}-{golden['message']}")
def test_as_published_templates_write_it(golden):
    message, answer = DATA["messages"][golden["message"]], golden["answer"]
    content, thought = message["content"] or "", message.get("reasoning_content", "")
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    if golden["template"] == "openai-gpt-oss-120b" and calls:
        content, thought = (
            "",
            content or thought,
        )  # what is said before a call is its analysis
    for pieces in ([answer], list(answer)):
        found = parsed(golden["prompt"], "\n".join(golden["source"]), answer, pieces)
        assert (found[0].strip(), found[1], found[2]) == (content, thought, calls)


def test_enough_forms_are_covered():
    forms = {
        type(parser_of("\n".join(golden["source"]))).__name__
        for golden in DATA["goldens"]
        if "call" in golden["message"]
    }
    assert forms >= {"Hermes", "QwenXML", "GLM45", "Llama3", "Mistral", "DeepSeek", "Kimi", "MarkedJSON"}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("[gMASK]{{ tools }}", "GLM4"),
        ("{{ tools }}", "Hermes"),
        ("<|tool_call>", "Gemma4"),
        ("<|tool_list_start|>", "Pythonic"),
    ],
)
def test_forms_that_templates_do_not_show(source, name):
    assert type(parser_of(source)).__name__ == name


def test_reasoning_by_the_vocabulary_alone():
    assert answer_format(Prompted(""), "{{ messages }}", [1]) is None
    form = answer_format(Prompted("", ("<think>",)), "{{ messages }}", [1])
    assert form is not None and form.texts == REASONING["think"].texts


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<think>?<|im_start|>assistant\n", False),
    ],
)
def test_whether_the_prompt_opens_the_reasoning(prompt, opened):
    found = parsed(prompt, "<think>", "a</think>b", ["a</think>b"], tools=None)
    assert found == (("b", "a", []) if opened else ("a</think>b", "", []))


def test_harmony_by_the_prompt():
    source = "<|channel|> <|message|>"
    answer = "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    found = parsed("<|start|>assistant<|channel|>analysis<|message|>", source, answer, [answer], tools=None)
    assert found == ("Yes.", "Hm.", [])
    past = "<|start|>assistant<|channel|>final<|message|>Hi<|end|><|start|>user<|message|>Hello<|end|>"
    assert parsed(past, source, "Yes.", ["Yes."], tools=None) == ("Yes.", "", [])
    answer = "<|channel|>analysis<|message|>" + answer
    assert parsed("<|start|>assistant", source, answer, list(answer), tools=None) == ("Yes.", "Hm.", [])
    assert parsed("<|start|>assistant", source, answer, [answer], tools=None, reasoning="off") == (answer, "", [])
