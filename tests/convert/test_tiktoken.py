"""Vocabularies of ranks, compared to the tiktoken library with the same ranks and pattern."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiktoken

from gumba.errors import ConvertError
from gumba_convert.vocabulary import bpe_ranks
from gumba_convert.vocabulary.pre_tokenizers import to_json
from gumba_convert.vocabulary.special_tokens import SpecialTokens
from support.tiny_checkpoints import tokenizer
from support.vocabulary_sources import TEXTS, ranked, read, tiktoken_file, tokenizer_of

N = len(ranked())
PATTERNS = ("qwen2", "glm4", "llama-bpe", "gpt-4o", "tekken")


@pytest.mark.parametrize("pre", PATTERNS)
def test_ids_are_tiktokens(tmp_path: Path, pre: str) -> None:
    """The runtime uses the merges that were recovered from the ranks, and gives the ids of tiktoken."""
    pattern = to_json(pre)["pretokenizers"][0]["pattern"]["Regex"]
    table = {token: rank for rank, token in enumerate(ranked())}
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=table, special_tokens={})
    special = SpecialTokens()
    ours = tokenizer_of(tmp_path, bpe_ranks._vocabulary(ranked(), 0, N, pre, special, "x"))
    for text in [*TEXTS, "a" * 3000, "\u00e4\u0308 " * 50, "\n \n\t  x" * 20]:
        assert ours.encode(text, add_special=False) == theirs.encode_ordinary(text), text


def test_llama_3(tmp_path: Path) -> None:
    """The 256 special tokens of Meta's code, and those that 3.1 names."""
    files = {"tokenizer.model": tiktoken_file()}
    old = read(tmp_path / "3.0", files, N + 256, model_type="llama")
    assert (old.pre, old.special.ids, old.special.add) == (
        "llama-bpe",
        {"bos": N, "eos": N + 1, "eot": N + 9},
        {"bos": True},
    )
    assert old.tokens[N : N + 11] == [
        "<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4)),
        "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
        "<|reserved_special_token_5|>",
    ]  # fmt: skip
    assert old.tokens[-1] == "<|reserved_special_token_250|>"
    new = read(tmp_path / "3.1", files, N + 256, model_type="llama", rope_scaling={"rope_type": "llama3"})
    assert [new.tokens[N + i] for i in (2, 4, 5, 8, 9, 10, 11)] == [
        "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|eom_id|>",
        "<|eot_id|>", "<|python_tag|>", "<|reserved_special_token_3|>",
    ]  # fmt: skip
    assert new.tokens[-1] == "<|reserved_special_token_247|>"
    made = tokenizer_of(tmp_path, new)
    assert made.encode("<|eot_id|>", parse_special=True) == [N, N + 9] and {N + 1, N + 8, N + 9} <= made.eog_ids


def test_files_take_precedence_over_llama_3s_known_tokens(tmp_path: Path) -> None:
    decoder = {f"{N}": {"content": "<s>", "special": True}}
    files = {"tokenizer.model": tiktoken_file(), "tokenizer_config.json": {"added_tokens_decoder": decoder}}
    assert read(tmp_path / "a", files, N + 2, model_type="llama").tokens[N:] == ["<s>", f"[PAD{N + 1}]"]
    files = {"tokenizer.model": tiktoken_file(), "tokenizer.json": tokenizer()}
    assert read(tmp_path / "b", files, N, model_type="llama").pre == "gpt-2"  # it says how text is cut


def test_another_family_is_refused(tmp_path: Path) -> None:
    files = {"tokenizer.model": tiktoken_file()}
    with pytest.raises(ConvertError, match=r"tokenizer\.model: a tiktoken file.* of model_type 'dbrx'"):
        read(tmp_path / "hf", files, N, model_type="dbrx")


@pytest.mark.parametrize("file", ["qwen.tiktoken", "tokenizer.model"])
def test_merges_that_differ_from_tiktoken_are_refused(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpe_ranks, "merges_of", lambda tokens, where: [])
    with pytest.raises(ConvertError, match="the ids differ from tiktoken's"):
        read(tmp_path / "hf", {file: tiktoken_file()}, N + 256, model_type="llama")


def test_ranks_without_all_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="not every byte is a token"):
        read(tmp_path / "hf", {"qwen.tiktoken": b"IQ== 0\nIg== 1\n"}, 300)
