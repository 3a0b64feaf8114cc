"""inspect and tokenize."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support import tiny_chat

TOKENS = tiny_chat.vocabulary()


def test_inspect_shows_metadata_and_tensors(gumba: Callable, tiny: Path) -> None:
    result = gumba("inspect", tiny)
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert ["general.name", "Tiny", "chat"] in lines
    assert ["tokenizer.ggml.add_bos_token", "false"] in lines
    assert ["llama.attention.layer_norm_rms_epsilon", "1e-05"] in lines
    assert ["llama.block_count", str(tiny_chat.LAYERS)] in lines
    array = next(line for line in lines if line[:1] == ["tokenizer.ggml.tokens"])
    assert array[1:4] == [str(len(TOKENS)), "x", "string:"] and array[-1] == "...]"
    assert any(line[:2] == ["blk.0.attn_k.weight", "f32"] and line[2:5] == ["32", "x", "64"] for line in lines)
    assert max(map(len, result.out.splitlines())) < 250


def test_inspect_tensors_alone(gumba: Callable, tiny: Path) -> None:
    result = gumba("inspect", tiny, "--tensors")
    assert "general.name" not in result.out
    assert len(result.out.splitlines()) == 1 + 3 + 9 * tiny_chat.LAYERS


def test_inspect_json(gumba: Callable, tiny: Path) -> None:
    result = gumba("inspect", tiny, "--json")
    found = json.loads(result.out)
    assert found["version"] == 3
    assert found["file_bytes"] == tiny.stat().st_size
    assert found["metadata"]["llama.embedding_length"] == tiny_chat.WIDTH
    array = found["metadata"]["tokenizer.ggml.tokens"]
    assert array["length"] == len(TOKENS) and array["first"] == TOKENS[: len(array["first"])]
    assert len(found["tensors"]) == 3 + 9 * tiny_chat.LAYERS
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    tensor = by_name["blk.1.ffn_down.weight"]
    assert (tensor["type"], tensor["shape"]) == ("f32", [tiny_chat.WIDTH, tiny_chat.FFN])
    assert tensor["bytes"] == 4 * tiny_chat.WIDTH * tiny_chat.FFN


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def test_tokenize_argument_file_and_stdin_agree(gumba: Callable, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("hello wé", encoding="utf-8")
    expected = ids("hello", "Ġw", "Ã", "©")
    for result in (
        gumba("tokenize", tiny, "hello wé", "--json"),
        gumba("tokenize", tiny, "-f", file, "--json"),
        gumba("tokenize", tiny, "--json", stdin="hello wé"),
        gumba("tokenize", tiny, "-", "--json", stdin="hello wé"),
    ):
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out)["ids"] == expected


def test_tokenize_pieces(gumba: Callable, tiny: Path) -> None:
    result = gumba("tokenize", tiny, "hello w\té")
    assert [line.split(None, 1) for line in result.out.splitlines()] == [
        [str(ids("hello")[0]), "hello"],
        [str(ids("Ġw")[0]), "w"],
        [str(ids("ĉ")[0]), r"\t"],
        [str(ids("Ã")[0]), r"\xc3"],
        [str(ids("©")[0]), r"\xa9"],
    ]


def test_tokenize_special_tokens_only_on_request(gumba: Callable, tiny: Path) -> None:
    plain = json.loads(gumba("tokenize", tiny, "<|im_end|>", "--json").out)["ids"]
    parsed = json.loads(gumba("tokenize", tiny, "<|im_end|>", "--json", "--parse-special").out)["ids"]
    assert parsed == ids("<|im_end|>")
    assert len(plain) == len("<|im_end|>")


def test_endless_text_is_refused(gumba: Callable, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gumba.cli.terminal._MAX_TEXT_BYTES", 1000)
    assert gumba("tokenize", tiny, stdin="x" * 1000).code == 0
    result = gumba("tokenize", tiny, stdin="x" * 1001)
    assert (result.code, result.out, result.err) == (2, "", "gumba: error: stdin is longer than 1.0 kB\n")


@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff\xfe"], ids=["latin-1", "utf-16"])
def test_text_that_is_not_utf_8_is_refused(gumba: Callable, tiny: Path, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(data)
    result = gumba("tokenize", tiny, "-f", file)
    assert result.code == 2
    assert f"{file} is not UTF-8 text (byte {0 if data[0] == 0xFF else 3})" in result.err


def test_models_lists_every_architecture(gumba: Callable) -> None:
    from gumba.models.registry import ARCHITECTURES

    result = gumba("models")
    assert result.code == 0
    names = [line.split()[0] for line in result.out.splitlines()[1:]]
    assert names == list(ARCHITECTURES) and "Qwen2.5" in result.out
    found = json.loads(gumba("models", "--json").out)
    assert found == {
        name: {"families": module.FAMILIES, "verified": list(module.VERIFIED)} for name, module in ARCHITECTURES.items()
    }
    own = {"jina-bert-v2"}  # not in transformers
    assert {name for name, each in found.items() if "transformers" not in each["verified"]} == own
    assert all(each["verified"] for each in found.values())


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("perplexity", "qwen3_labels", "has no next-token logits"),
        ("perplexity", "jina_bert_v2", "has no next-token logits"),
        ("perplexity", "t5", "has no next-token logits"),
        ("bench", "t5", "encoder-decoders, which cannot be measured"),
    ],
)
def test_models_that_do_not_generate_text(
    gumba: Callable, tmp_path: Path, command: str, name: str, message: str
) -> None:
    model = Path(__file__).parent.parent / "data" / f"arch_{name}.gguf"
    (tmp_path / "text").write_text("once upon a time " * 200)
    result = gumba(command, str(model), *([str(tmp_path / "text"), "-c", "64"] if command == "perplexity" else []))
    assert result.code == 2 and message in result.err


def test_an_endless_schema_file(gumba: Callable, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like /dev/zero: it is not read into memory completely."""
    monkeypatch.setattr("gumba.cli.terminal._MAX_TEXT_BYTES", 1000)
    (tmp_path / "schema").write_text(" " * 1001)
    for option in ("--json-schema", "--grammar"):
        result = gumba("run", tiny, "hello", option, f"@{tmp_path / 'schema'}")
        assert result.code == 2 and "schema is longer than 1.0 kB" in result.err


def test_pull_of_other_paths(gumba: Callable) -> None:
    result = gumba("pull", os.devnull)
    assert (result.code, result.out) == (2, "") and "expected a regular file" in result.err
    result = gumba("pull", "--list", "smollm2")
    assert (result.code, result.out) == (2, "") and "omit MODEL" in result.err
