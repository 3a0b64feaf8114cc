"""Every inconsistent vocabulary gets a TokenizerError that names the key."""

from __future__ import annotations

import pytest

from gumba.errors import TokenizerError
from gumba.tokenizer.tokenizer import Tokenizer
from support.small_vocabularies import BYTES, byte_level, sentence_piece, write

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
PIECE_TYPES = [2, 3, 3, *[6] * 256, 1, 1]
GPT2 = {"tokens": [*BYTES, "ab"], "token_type": [1] * 257, "merges": ["a b"]}
LLAMA = {"tokens": PIECES, "token_type": PIECE_TYPES, "scores": [0.0] * len(PIECES)}


def refused(path, match):
    with pytest.raises(TokenizerError, match=match):
        Tokenizer.from_gguf(path)


@pytest.mark.parametrize(
    ("model", "change", "match"),
    [
        ("gpt2", {"tokens": None}, r"tokenizer\.ggml\.tokens: missing"),
        ("gpt2", {"tokens": [1, 2, 3]}, r"tokenizer\.ggml\.tokens: expected an array of strings"),
        ("gpt2", {"tokens": [*BYTES, BYTES[65]]}, r"tokenizer\.ggml\.tokens: tokens 65 and 256"),
        ("gpt2", {"tokens": ["long one"] + ["x" * 1_000_000], "token_type": [1, 1]}, r"tokens: not one single-byte"),
        ("gpt2", {"token_type": [1] * 256}, r"tokenizer\.ggml\.token_type: 256 elements.*257"),
        ("gpt2", {"token_type": [1] * 258}, r"tokenizer\.ggml\.token_type: 258 elements.*257"),
        ("gpt2", {"token_type": ["1"] * 257}, r"tokenizer\.ggml\.token_type: expected an array of numbers"),
        ("gpt2", {"token_type": [1.0] * 257}, r"tokenizer\.ggml\.token_type: .*FLOAT32"),
        ("gpt2", {"token_type": [True] * 257}, r"tokenizer\.ggml\.token_type: expected an array of numbers"),
        ("gpt2", {"scores": [1.0]}, r"tokenizer\.ggml\.scores: 1 elements.*257"),
        ("gpt2", {"scores": [float("nan")] * 257}, r"tokenizer\.ggml\.scores: element 0 is not a number"),
        ("gpt2", {"merges": None}, r"tokenizer\.ggml\.merges: missing"),
        ("gpt2", {"merges": [1]}, r"tokenizer\.ggml\.merges: expected an array of strings"),
        ("gpt2", {"merges": ["a b", "ab"]}, r"tokenizer\.ggml\.merges: merge 1, b'ab', is not two tokens"),
        ("gpt2", {"merges": ["a b c"]}, r"tokenizer\.ggml\.merges: merge 0.*is not two tokens"),
        ("gpt2", {"merges": [" a"]}, r"tokenizer\.ggml\.merges: merge 0.*is not two tokens"),
        ("gpt2", {"merges": ["a "]}, r"tokenizer\.ggml\.merges: merge 0.*is not two tokens"),
        ("gpt2", {"merges": [""]}, r"tokenizer\.ggml\.merges: merge 0.*is not two tokens"),
        ("gpt2", {"merges": ["xy b"]}, r"tokenizer\.ggml\.merges: merge 0.*left part"),
        ("gpt2", {"merges": ["a xy"]}, r"tokenizer\.ggml\.merges: merge 0.*right part"),
        ("gpt2", {"merges": ["b a"]}, r"tokenizer\.ggml\.merges: merge 0.*makes a text"),
        (
            "llama",
            {"tokens": [*PIECES[:-1], "<0x-1>"], "token_type": [*PIECE_TYPES[:-1], 6]},
            r"tokens: token 260.*BYTE",
        ),
        (
            "llama",
            {"tokens": [*PIECES[:-1], "<0xZZ>"], "token_type": [*PIECE_TYPES[:-1], 6]},
            r"tokens: token 260.*BYTE",
        ),
        ("llama", {"token_type": [2, 3, 3, 1, *PIECE_TYPES[4:]]}, r"tokens: 255 of the 256 byte tokens; <0x00>"),
        ("llama", {"tokens": [*PIECES[:-1], "▁"]}, r"tokenizer\.ggml\.tokens: tokens 259 and 260"),
        ("llama", {"scores": [float("-inf")] * len(PIECES)}, r"tokenizer\.ggml\.scores: element 0 is infinite"),
        ("llama", {"scores": ["0"] * len(PIECES)}, r"tokenizer\.ggml\.scores: expected an array of numbers"),
        ("plamo2", {}, r"tokenizer\.ggml\.model: unknown tokenizer 'plamo2'; known are gpt2, gemma4, llama, t5, bert"),
        (None, {}, r"tokenizer\.ggml\.model: missing"),
    ],
)
def test_wrong_arrays(tmp_path, model, change, match):
    arrays = {
        key: value for key, value in {**(LLAMA if model == "llama" else GPT2), **change}.items() if value is not None
    }
    refused(write(tmp_path / "v.gguf", model, arrays), match)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@pytest.mark.parametrize(
    "key", ["bos", "eos", "unknown", "padding", "seperator", "mask", "eot", "eom", "fim_pre", "prefix"]
)
@pytest.mark.parametrize("token", [300, 2**31, 2**32 - 1])
def test_special_ids_outside_the_vocabulary(tmp_path, make, key, token):
    refused(
        make(tmp_path / "v.gguf", **{f"{key}_token_id": token}), rf"tokenizer\.ggml\.{key}_token_id: {token} is outside"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("bos_token_id", "1"), ("eos_token_id", 1.5), ("add_bos_token", 1), ("add_space_prefix", "yes"), ("pre", 7)],
)
def test_scalars_of_the_wrong_type(tmp_path, key, value):
    refused(byte_level(tmp_path / "v.gguf", **{key: value}), rf"tokenizer\.ggml\.{key}: expected")


@pytest.mark.parametrize("flag", ["bos", "eos"])
def test_flag_without_its_token(tmp_path, flag):
    path = byte_level(tmp_path / "v.gguf", marks=(), **{f"add_{flag}_token": True})
    refused(path, rf"tokenizer\.ggml\.add_{flag}_token: true, but tokenizer\.ggml\.{flag}_token_id is not set")


def test_unknown_pre_tokenizer_lists_the_known(tmp_path):
    refused(
        byte_level(tmp_path / "v.gguf", pre="sunflower"),
        r"tokenizer\.ggml\.pre: .*'sunflower'.*default, .*gpt-2, .*qwen2",
    )


def test_empty_texts_are_placeholders(tmp_path):
    arrays = {"tokens": [*BYTES, "ab", "", ""], "token_type": [1] * 259, "merges": ["a b"]}
    tokenizer = Tokenizer.from_gguf(write(tmp_path / "v.gguf", "gpt2", arrays))
    assert tokenizer.encode("ab") == [256]
    assert tokenizer.decode([257, 97, 258]) == "a"


def test_model_without_token_types(tmp_path):
    tokenizer = Tokenizer.from_gguf(write(tmp_path / "v.gguf", "gpt2", {k: GPT2[k] for k in ("tokens", "merges")}))
    assert tokenizer.encode("ab") == [256]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eog_ids) == (None, None, frozenset())
