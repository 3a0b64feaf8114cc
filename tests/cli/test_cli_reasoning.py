"""Reasoning at the command line, and tools in a batch; grammars force the model's answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support import tiny_chat

COMMON = ("-n", 200, "--temp", 0, "--quiet")
ANSWER = "<think>\nhello\n</think>\n\nhell w"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.write(tmp_path_factory.mktemp("big") / "big.gguf", context=2048)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "thinks.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}{# <think> <tool_call> #}")
    return path


def grammar(text: str) -> str:
    return "root ::= " + json.dumps(text)


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ((), "hell w\n"),
        (("--reasoning", "hide"), "hell w\n"),
        (("--reasoning", "show"), "hello\n\nhell w\n"),
        (("--reasoning", "raw"), ANSWER + "\n"),
    ],
)
def test_run_and_chat(gumba: Callable, model: Path, template: Path, options: tuple, out: str) -> None:
    common = ("--chat-template", template, "--grammar", grammar(ANSWER), *options, *COMMON)
    result = gumba("run", model, "--chat", "-p", "hello", *common)
    assert (result.code, result.out) == (0, out), result.err
    result = gumba("chat", model, *common, stdin="hello\n")
    assert (result.code, result.out) == (0, out), result.err


def test_run_json(gumba: Callable, model: Path, template: Path) -> None:
    common = ("--chat-template", template, "--grammar", grammar(ANSWER), "--json", *COMMON)
    found = json.loads(gumba("run", model, "--chat", "-p", "hello", *common).out)
    assert (found["text"], found["reasoning"]) == ("hell w", "hello")


def test_chat_command(gumba: Callable, model: Path, template: Path) -> None:
    lines = "/reasoning show\nhello\n/reasoning raw\nhello\n/history\n"
    common = ("--chat-template", template, "--grammar", grammar(ANSWER), *COMMON)
    result = gumba("chat", model, *common, stdin=lines)
    assert result.out == f"hello\n\nhell w\n{ANSWER}\n"
    assert result.err.startswith("user: hello\nassistant: hell w\n")
    result = gumba("chat", model, *common, stdin="/reasoning loud\n")
    assert "/reasoning: expected show, hide, raw" in result.err


def test_batch(gumba: Callable, model: Path, template: Path, tmp_path: Path) -> None:
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    message = {"messages": [{"role": "user", "content": "hello"}]}
    lines = [
        {**message, "tools": TOOLS, "tool_choice": "auto", "grammar": grammar("A " + CALL)},
        {**message, "tools": TOOLS, "tool_choice": "none", "grammar": grammar(CALL)},
        {**message, "tools": TOOLS, "grammar": grammar(CALL)},
        {**message, "grammar": grammar(ANSWER)},
        {**message, "grammar": grammar(ANSWER), "reasoning_format": "none"},
        {**message, "tools": TOOLS, "tool_choice": "required"},
        {**message, "tools": [{"name": "weather"}]},
        {"prompt": "hello", "tools": TOOLS},
        {**message, "reasoning_format": "loud"},
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = gumba("batch", requests, "-o", out, model, "--chat-template", template, *COMMON)
    assert result.code == 1, result.err
    found = sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda line: line["line"])
    choices = [line["response"]["body"]["choices"][0] for line in found[:5]]
    called = choices[0]["message"]["tool_calls"][0]
    assert called == {
        "id": called["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bonn"}'},
    }
    assert (choices[0]["message"]["content"], choices[0]["finish_reason"]) == ("A", "tool_calls")
    assert choices[1]["message"] == {"role": "assistant", "content": CALL}
    assert choices[1]["finish_reason"] == "stop"
    assert choices[2]["message"]["content"] is None
    assert choices[3]["message"] == {"role": "assistant", "content": "hell w", "reasoning_content": "hello"}
    assert choices[4]["message"] == {"role": "assistant", "content": ANSWER}
    for line, says in zip(found[5:], ["tool_choice", "tools[0]", "only conversations", "reasoning_format"]):
        assert says in line["error"]["message"]
