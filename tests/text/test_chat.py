"""Chat templates: transformers' renderings are the oracle; BOS exactly once; messages and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_vocabularies import byte_level

from gumba.errors import RequestError, TemplateError
from gumba.gguf.reader import GGUFFile
from gumba.text import ChatTemplate, Tokenizer, encode_chat

DATA = Path(__file__).parent.parent / "data"
GOLDENS = json.loads((DATA / "chat_goldens.json").read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    "golden", GOLDENS["goldens"], ids=lambda g: f"{g['template']}-{g['conversation']}-{g['prompt']}"
)
def test_as_transformers(golden):
    template = ChatTemplate(GOLDENS["templates"][golden["template"]], GOLDENS["special"])
    messages = GOLDENS["conversations"][golden["conversation"]]
    rendered = template.render(messages, golden["prompt"], tools=GOLDENS["tools"], enable_thinking=True)
    assert rendered == golden["rendered"]


@pytest.fixture
def make(tmp_path):
    def made(template=None, marks=("<s>", "</s>"), **scalars):
        if template is not None:
            scalars["tokenizer.chat_template"] = template
        file = GGUFFile(byte_level(tmp_path / "v.gguf", marks=marks, **scalars))
        return file, Tokenizer.from_gguf(file)

    return made


@pytest.mark.parametrize("source", ["{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_exactly_once(make, source, add_bos):
    file, tokenizer = make(template=source, add_bos_token=add_bos)
    bos, *rest = encode_chat(tokenizer, ChatTemplate.from_gguf(file, tokenizer), HELLO)
    assert (bos == tokenizer.bos_id) == (add_bos or "bos" in source)
    assert tokenizer.bos_id not in rest
    assert tokenizer.decode([bos, *rest], skip_special=True) == "Hello"


def test_special_tokens_of_the_template_are_parsed(make):
    file, tokenizer = make(template="{{ messages[0].content }}{{ eos_token }}")
    assert encode_chat(tokenizer, ChatTemplate.from_gguf(file, tokenizer), HELLO)[-1] == tokenizer.eos_id


def test_chatml_only_for_its_vocabularies(make):
    file, tokenizer = make(marks=("<|im_start|>", "<|im_end|>"))
    rendered = ChatTemplate.from_gguf(file, tokenizer).render(HELLO)
    assert rendered == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    file, tokenizer = make()
    with pytest.raises(TemplateError, match=r"tokenizer\.chat_template.*plain prompt"):
        ChatTemplate.from_gguf(file, tokenizer)


@pytest.mark.parametrize(
    "messages", ["Hello", {"role": "user", "content": "x"}, ["Hello"], [{"content": "x"}], [{"role": 1}], None, 7]
)
def test_wrong_messages(messages):
    with pytest.raises(RequestError, match="messages"):
        ChatTemplate("{{ messages }}").render(messages)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ (", "{% for %}", "{{ x | nosuch }}", "(" * 200_000, "{{ " + "(" * 60000]
)
def test_malformed_templates(source):
    with pytest.raises(TemplateError):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ missing.attribute }}", "undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_failing_templates(source, why):
    with pytest.raises(TemplateError, match=why):
        ChatTemplate(source).render(HELLO)


def test_strftime_now():
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render(HELLO)) == 10
