"""Damaged model files: refused with a line, or harmless for the reason in each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.gguf_writer import GGUFValue

from support import tiny_chat

COMMON = ("-n", 4, "--temp", 0, "--quiet")
TYPES = gguf.GGUFValueType


def damaged(
    path: Path, key: str, value: Any, kind: gguf.GGUFValueType, element: gguf.GGUFValueType | None = None
) -> Path:
    return tiny_chat.write(path, changed={key: GGUFValue(value, kind, element)})


def tokens(at: int, text: bytes) -> list[bytes]:
    found = [token.encode() for token in tiny_chat.vocabulary()]
    found[at] = text
    return found


@pytest.mark.parametrize("kind", [77, 7, -1, 2**31 - 1])
def test_a_token_of_no_type_is_refused(gumba: Callable, tmp_path: Path, kind: int) -> None:
    types = [1] * (len(tiny_chat.vocabulary()) - 1) + [kind]
    path = damaged(tmp_path / "x.gguf", "tokenizer.ggml.token_type", types, TYPES.ARRAY, TYPES.INT32)
    result = gumba("run", path, "-p", "hello", *COMMON)
    assert (result.code, result.out) == (2, "") and len(result.err.splitlines()) == 1
    assert f"tokenizer.ggml.token_type: token {len(types) - 1} is of type {kind}; expected 0 to 6" in result.err


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"a\xf5b"])
def test_a_token_that_is_not_utf_8_is_refused(gumba: Callable, tmp_path: Path, text: bytes) -> None:
    path = damaged(tmp_path / "x.gguf", "tokenizer.ggml.tokens", tokens(200, text), TYPES.ARRAY, TYPES.STRING)
    result = gumba("run", path, "-p", "hello", *COMMON)
    assert (result.code, result.out) == (2, "") and len(result.err.splitlines()) == 1
    assert f"tokenizer.ggml.tokens: token 200, {text!r}, is not UTF-8" in result.err


def test_the_size_of_the_vocabulary_is_that_of_the_embedding(gumba: Callable, tiny: Path, tmp_path: Path) -> None:
    """`vocab_size` is not read: the rows of the embedding count, and the tokens must be as many. llama.cpp reads it only
    without a vocabulary, and files of fine-tuned models have the size of the model that they began with."""
    wanted = gumba("run", tiny, "-p", "hello", *COMMON)
    path = damaged(tmp_path / "x.gguf", "llama.vocab_size", 7, TYPES.UINT32)
    result = gumba("run", path, "-p", "hello", *COMMON)
    assert (result.code, result.out, result.err) == (0, wanted.out, "")
    path = damaged(tmp_path / "y.gguf", "tokenizer.ggml.tokens", tokens(0, b"")[:-1], TYPES.ARRAY, TYPES.STRING)
    result = gumba("run", path, "-p", "hello", *COMMON)
    assert result.code == 2 and "tokens" in result.err


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("{% if", TYPES.STRING, "the chat template is wrong in line 1"),
        ("{{ messages[0].content.nope() }}", TYPES.STRING, "the chat template fails"),
        ("{{ 1 // 0 }}", TYPES.STRING, "the chat template fails: ZeroDivisionError"),
        (7, TYPES.UINT32, "tokenizer.chat_template: expected a string, found 7"),
        (True, TYPES.BOOL, "tokenizer.chat_template: expected a string, found True"),
    ],
)
def test_a_bad_chat_template_is_refused_by_chats_only(
    gumba: Callable, tiny: Path, tmp_path: Path, value: Any, kind: gguf.GGUFValueType, message: str
) -> None:
    """Continuing a text needs no template, and a chat can use another one: the file itself is valid."""
    wanted = [
        gumba("run", tiny, "-p", "hello", *more, *COMMON).out for more in ((), ("--chat", "--chat-template", "vicuna"))
    ]
    path = damaged(tmp_path / "x.gguf", "tokenizer.chat_template", value, kind)
    for more, out in zip(((), ("--chat", "--chat-template", "vicuna")), wanted, strict=True):
        result = gumba("run", path, "-p", "hello", *more, *COMMON)
        assert (result.code, result.out, result.err) == (0, out, "")
    result = gumba("run", path, "--chat", "-p", "hello", *COMMON)
    assert (result.code, result.out) == (2, "") and message in result.err and len(result.err.splitlines()) == 1
    assert gumba("inspect", path).code == 0
