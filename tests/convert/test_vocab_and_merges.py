"""vocab.json and merges.txt without tokenizer.json: the ids equal those of transformers 5.24's AutoTokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gumba.errors import ConvertError
from support.vocabulary_sources import GOLDENS, read, tokenizer_of

TOKENS = GOLDENS["vocabulary"]["tokens"]
MERGES = "\n".join(["#version: 0.2", *GOLDENS["vocabulary"]["merges"], ""])
END, ROBERTA = ["<|endoftext|>"], ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXT = "Hello w\u00f6rld <mask> <|endoftext|> x<tool>y"
HELLO = [1364, 446, 78, 220, 86, 127, 114, 81, 75, 67, 220]
MASK, REST = [27, 553, 82, 74, 29, 220], [1129, 27, 555, 676, 29, 88]
GPT2 = [*HELLO, *MASK, 1600, *REST]
ENDING = [220, 756, 858, 364, 274, 87, 83, 91, 29]

CASES: list[tuple[dict[str, Any], list[str], list[int]]] = [
    ({"tokenizer_class": "GPT2Tokenizer"}, END, GPT2),
    ({"tokenizer_class": "GPT2TokenizerFast", "add_bos_token": True}, END, [1600, *GPT2]),
    ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, END, [220, *GPT2]),
    ({"tokenizer_class": "CodeGenTokenizer"}, END, GPT2),
    ({"tokenizer_class": "RobertaTokenizer"}, ROBERTA, [1600, *HELLO, 1604, *ENDING, *REST, 1602]),
    ({"tokenizer_class": "Qwen2Tokenizer"}, END, [*HELLO, *MASK, 1600, 1129, 1602, 88]),
]


def files(config: dict[str, Any], special: list[str]) -> dict[str, Any]:
    found = {"vocab.json": {text: i for i, text in enumerate([*TOKENS, *special])}, "merges.txt": MERGES}
    more = {"added_tokens.json": {"<tool>": 1602}} if config.get("tokenizer_class") == "Qwen2Tokenizer" else {}
    return found | more | {"tokenizer_config.json": config}


@pytest.mark.parametrize(("config", "special", "ids"), CASES)
def test_ids_are_transformers(tmp_path: Path, config: dict[str, Any], special: list[str], ids: list[int]) -> None:
    found = read(tmp_path / "hf", files(config, special), 1610)
    assert tokenizer_of(tmp_path, found).encode(TEXT, parse_special=True) == ids


@pytest.mark.parametrize(("kind", "pre"), [("gpt2", "gpt-2"), ("qwen2", "qwen2"), ("phi", "gpt-2")])
def test_the_class_of_the_models_type(tmp_path: Path, kind: str, pre: str) -> None:
    assert read(tmp_path / "hf", files({}, END), 1610, model_type=kind).pre == pre


@pytest.mark.parametrize("config", [{"tokenizer_class": "BlenderbotTokenizer"}, {}])
def test_an_unknown_class_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ConvertError, match=r"do not define the pre-tokenizer.*GPT2Tokenizer.*save_pretrained"):
        read(tmp_path / "hf", files(config, END), 1610, model_type="blenderbot")


def test_tokenizer_json_takes_precedence(tmp_path: Path) -> None:
    from support.tiny_checkpoints import VOCAB, tokenizer

    both = files({"tokenizer_class": "GPT2Tokenizer"}, END) | {"tokenizer.json": tokenizer()}
    assert read(tmp_path / "hf", both, len(VOCAB)).tokens == list(VOCAB)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab.json": "[]"}, "expected a JSON object"),
        ({"vocab.json": {"a": "b"}}, "'a' has id 'b'"),
        ({"merges.txt": "#version: 0.2\na b c\n"}, "merge 0"),
        ({"merges.txt": b"\xff"}, "not UTF-8"),
        ({"added_tokens.json": {"<x>": "y"}}, "added token 'y'"),
    ],
)
def test_bad_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        read(tmp_path / "hf", files({"tokenizer_class": "GPT2Tokenizer"}, END) | change, 1610)
