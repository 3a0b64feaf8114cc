"""Built-in templates: llama.cpp's and the published templates' renderings are the oracle; which one a file gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gumba.chat.named_templates import CHAT_TEMPLATES, guess_name
from gumba.chat.template import ChatTemplate
from gumba.errors import RequestError, TemplateError
from gumba.gguf.reader import GGUFFile
from gumba.tokenizer.tokenizer import Tokenizer
from support.small_vocabularies import byte_level, sentence_piece

GOLDENS = json.loads(
    (Path(__file__).parent.parent / "data" / "named_template_goldens.json").read_text(encoding="utf-8")
)
HELLO = [{"role": "user", "content": "Hello"}]
#: Names that are not llama.cpp's.
OWN = {"alpaca", "glm4", "hermes", "qwen"}


def test_names_are_llama_cpps():
    theirs = {golden["name"] for golden in GOLDENS["llama.cpp"]}
    assert set(CHAT_TEMPLATES) == theirs | OWN
    assert len(CHAT_TEMPLATES) > 45


@pytest.mark.parametrize("name", sorted({*CHAT_TEMPLATES} - OWN))
def test_as_llama_cpp(name):
    found = [golden for golden in GOLDENS["llama.cpp"] if golden["name"] == name]
    assert len(found) >= 2
    for golden in found:
        messages = GOLDENS["conversations"][golden["conversation"]]
        assert ChatTemplate.named(name).render(messages, golden["prompt"]) == golden["rendered"]


@pytest.mark.parametrize("golden", GOLDENS["published"], ids=lambda g: f"{g['name']}-{g['conversation']}")
def test_as_the_published_templates(golden):
    tools = GOLDENS["tools"] if golden["tools"] else None
    rendered = ChatTemplate.named(golden["name"]).render(golden["messages"], golden["prompt"], tools=tools)
    assert rendered == golden["rendered"]


def test_other_roles_and_messages_without_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    for name in CHAT_TEMPLATES:
        template = ChatTemplate.named(name)
        rendered = template.render([*HELLO, call, {"role": "tool", "content": "42"}])
        assert "None" not in rendered, name
        assert "42" in rendered, name
        shown = template.render([{"role": "system", "content": "Rule"}, *HELLO])
        assert ("Rule" in shown) == (name != "yandex"), name  # which has no place for it


def test_alpaca():
    rendered = ChatTemplate.named("alpaca").render(HELLO)
    assert rendered.startswith("Below is an instruction that describes a task.")
    assert rendered.endswith("\n\n### Instruction:\nHello\n\n### Response:\n")
    rendered = ChatTemplate.named("alpaca").render([{"role": "system", "content": "S"}, *HELLO])
    assert rendered == "S\n\n### Instruction:\nHello\n\n### Response:\n"


def test_zephyrs_turns_end_in_the_files_own_token():
    assert ChatTemplate.named("zephyr", {"eos_token": "</s>"}).render(HELLO) == "<|user|>\nHello</s>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("marks", "name"),
    [
        (("<|im_start|>", "<|im_end|>"), "chatml"),
        (("<|im_start|>", "<tool_call>"), "hermes"),
        (("<|im_start|>", "<|im_sep|>"), "phi4"),
        (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "llama3"),
        (("<start_of_turn>", "<end_of_turn>"), "gemma"),
        (("[gMASK]", "<sop>", "<|user|>"), "chatglm4"),
        (("[gMASK]", "sop", "<|user|>"), "chatglm3"),
        (("<|user|>", "<|assistant|>", "<|end|>"), "phi3"),
        (("[INST]", "[/INST]"), "mistral-v3-tekken"),
        (("[INST]", "[/INST]", "[SYSTEM_PROMPT]"), "mistral-v7-tekken"),
    ],
)
def test_files_without_a_template_get_their_vocabularys(tmp_path, marks, name):
    file = GGUFFile(byte_level(tmp_path / "v.gguf", marks=marks))
    template = ChatTemplate.from_gguf(file, Tokenizer.from_gguf(file))
    assert template.source == CHAT_TEMPLATES[name]


def test_a_plain_vocabulary_gets_none(tmp_path):
    file = GGUFFile(sentence_piece(tmp_path / "v.gguf"))
    with pytest.raises(TemplateError, match="--chat-template"):
        ChatTemplate.from_gguf(file, Tokenizer.from_gguf(file))
    for architecture, name in [("orion", "orion"), ("rwkv7", "rwkv-world"), ("llama", None), ("", None)]:
        assert guess_name(Tokenizer.from_gguf(file), {"general.architecture": architecture}) == name


def test_what_users_give(tmp_path):
    tokenizer = Tokenizer.from_gguf(GGUFFile(byte_level(tmp_path / "v.gguf", marks=("<s>", "</s>"))))
    path = tmp_path / "mine.jinja"
    path.write_text("{{ eos_token }}é{{ messages[0].content }}", encoding="utf-8")
    for given in (str(path), path, "{{ eos_token }}é{{ messages[0].content }}"):
        assert ChatTemplate.given(given, tokenizer).render(HELLO) == "</s>éHello"
    assert ChatTemplate.given("zephyr", tokenizer).render(HELLO).startswith("<|user|>\nHello</s>")
    made = ChatTemplate("x")
    assert ChatTemplate.given(made, tokenizer) is made
    for wrong, why in [
        ("lama3", "expected one of alpaca"),
        ("no/such.jinja", "No such file"),
        (tmp_path, "cannot be read"),
        (7, "found 7"),
    ]:
        with pytest.raises(RequestError, match=f"chat_template: .*{why}"):
            ChatTemplate.given(wrong, tokenizer)
    with pytest.raises(RequestError, match="expected one of"):
        ChatTemplate.named(["chatml"])
    path.write_bytes(b"\xff")
    with pytest.raises(RequestError, match="cannot be read"):
        ChatTemplate.given(path, tokenizer)
    path.write_text("x" * 100_000)
    with pytest.raises(TemplateError, match="limit"):
        ChatTemplate.given(path, tokenizer)
