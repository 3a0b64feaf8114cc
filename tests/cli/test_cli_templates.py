"""Options of chat templates and their variables in run, chat and batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gumba import LLM, SamplingParams

MINE = "{{ greeting }}{% for m in messages %}{{ m.content }}{% endfor %}{% if shout %}!{% endif %}"
COMMON = ("-n", 6, "--temp", 0, "--quiet")


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny) as llm:
        yield llm


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jinja"
    path.write_text(MINE, encoding="utf-8")
    return path


def answer(llm: LLM, prompt: str) -> str:
    ids = llm.tokenizer.encode(prompt, add_special=False, parse_special=True)
    return llm.generate([ids], SamplingParams(max_tokens=6, temperature=0))[0].text


@pytest.mark.parametrize("option", ["--chat-template", "--chat-template-file"])
def test_run_with_a_custom_template(gumba: Callable, tiny: Path, llm: LLM, mine: Path, option: str) -> None:
    variables = ("--template-arg", "greeting=hi hello", "--template-arg", "shout=true")
    expected = answer(llm, "hi hello w!")
    assert expected != answer(llm, "hi hello w")
    result = gumba("run", tiny, "--chat", "-p", " w", option, mine, *variables, *COMMON)
    assert (result.code, result.out.rstrip("\n")) == (0, expected.rstrip("\n"))
    given = json.dumps({"greeting": "hi hello", "shout": True})
    result = gumba("run", tiny, "--chat", "-p", " w", option, mine, "--chat-template-kwargs", given, *COMMON)
    assert (result.code, result.out.rstrip("\n")) == (0, expected.rstrip("\n"))


def test_a_prompt_after_the_model_is_a_message(gumba: Callable, tiny: Path, llm: LLM) -> None:
    """If the model has a chat template, except with --no-chat; -p, -f and stdin give texts to continue."""

    def text(*args: object, stdin: str = "") -> str:
        result = gumba("run", tiny, *args, *COMMON, stdin=stdin)
        assert result.code == 0, result.err
        return str(result.out).rstrip("\n")

    message = {"role": "user", "content": "hello"}
    answered = llm.chat([message], SamplingParams(max_tokens=6, temperature=0)).text.rstrip("\n")
    continued = llm.generate("hello", SamplingParams(max_tokens=6, temperature=0))[0].text.rstrip("\n")
    assert answered != continued
    assert text("hello") == text("--chat", "-p", "hello") == answered
    assert (
        text("hello", "--no-chat")
        == text("hello", "-no-cnv")
        == text("-p", "hello")
        == text(stdin="hello")
        == continued
    )


def test_a_prompt_after_a_model_without_a_template_is_continued(gumba: Callable) -> None:
    model = Path(__file__).parent.parent / "data" / "model_plain.gguf"
    texts = [gumba("run", model, *prompt, *COMMON).out for prompt in (("ab",), ("-p", "ab"))]
    assert texts[0] == texts[1] != ""


def test_chat_with_a_named_template(gumba: Callable, tiny: Path, llm: LLM) -> None:
    result = gumba("chat", tiny, "--chat-template", "vicuna", *COMMON, stdin="hello\n")
    assert result.out.rstrip("\n") == answer(llm, "USER: hello\nASSISTANT:").rstrip("\n")


def test_chat_with_variables(gumba: Callable, tiny: Path, llm: LLM, mine: Path) -> None:
    result = gumba("chat", tiny, "--chat-template", mine, "--template-arg", "greeting=he", *COMMON, stdin=" w\n")
    assert result.out.rstrip("\n") == answer(llm, "he w").rstrip("\n")


def test_batch_lines_override_options(gumba: Callable, tiny: Path, llm: LLM, mine: Path, tmp_path: Path) -> None:
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    message = {"messages": [{"role": "user", "content": " w"}]}
    shout = {"shout": True}
    lines = [message, {**message, "chat_template_kwargs": shout}, {**message, "template_args": shout}]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    variables = ("--template-arg", "greeting=hello", "--template-arg", "shout=false")
    result = gumba("batch", requests, "-o", out, tiny, "--chat-template", mine, *variables, *COMMON)
    assert result.code == 0, result.err
    found = sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda line: line["line"])
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in found]
    assert texts == [answer(llm, "hello w"), answer(llm, "hello w!"), answer(llm, "hello w!")]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--chat", "--chat-template", "lama3"), "--chat-template: expected one of alpaca"),
        (("--chat", "--chat-template", "no/such/file"), "--chat-template: no/such/file cannot be read"),
        (("--chat", "--template-arg", "shout"), "--template-arg: expected NAME=VALUE, found shout"),
        (("--chat", "--template-arg", "messages=1"), "--template-arg: 'messages' is not the name"),
        (("--chat", "--chat-template-kwargs", "[1]"), "expected an object"),
        (("--chat", "--chat-template-kwargs", "{"), "not JSON"),
        (("--chat-template", "chatml"), "need --chat"),
        (("--template-arg", "a=1"), "need --chat"),
    ],
)
def test_invalid_templates(gumba: Callable, tiny: Path, options: tuple, says: str) -> None:
    result = gumba("run", tiny, "-p", "x", *options, *COMMON)
    assert result.code == 2
    assert says in result.err
    assert result.out == ""
