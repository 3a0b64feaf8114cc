"""Tokenizers against llama.cpp (golden files), round trips, long inputs, special tokens, streaming."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gumba.errors import RequestError, TokenizerError
from gumba.gguf.reader import GGUFFile
from gumba.tokenizer.detokenizer import StreamDecoder
from gumba.tokenizer.tokenizer import Tokenizer
from support.small_vocabularies import byte_level, sentence_piece, write

DATA = Path(__file__).parent.parent / "data"
GOLDENS = json.loads((DATA / "tokenizer_goldens.json").read_text(encoding="utf-8"))
FILES = sorted(GOLDENS["files"])
BYTE_LEVEL = [name for name in FILES if "sentencepiece" not in name]
TOKENIZERS = {name: Tokenizer.from_gguf(DATA / name) for name in FILES}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("name", FILES)
def test_ids_as_llama_cpp(name):
    tokenizer, golden = TOKENIZERS[name], GOLDENS["files"][name]
    for (add_special, parse_special), rows in zip(GOLDENS["modes"], golden["ids"], strict=True):
        for text, ids in zip(GOLDENS["texts"], rows, strict=True):
            assert tokenizer.encode(text, add_special, parse_special) == ids, (text, add_special, parse_special)


@pytest.mark.parametrize("name", FILES)
def test_flags_as_llama_cpp(name):
    tokenizer, golden = TOKENIZERS[name], GOLDENS["files"][name]
    assert sorted(tokenizer.eog_ids) == golden["eog"]
    assert (tokenizer.add_bos, tokenizer.add_eos) == (golden["add_bos"], golden["add_eos"])


@pytest.mark.parametrize("name", FILES)
def test_round_trip_of_golden_texts(name):
    for text in GOLDENS["texts"]:
        expected = text.replace("▁", " ") if "sentencepiece" in name else text  # U+2581 is a space to SentencePiece
        assert TOKENIZERS[name].decode(TOKENIZERS[name].encode(text), skip_special=True) == expected


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_round_trip_of_any_text(name, text):
    tokenizer = TOKENIZERS[name]
    text = text.replace("▁", "_")
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_stream_equals_decode(name, data):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=30))
    for skip_special in (False, True):
        for continuation in (False, True):
            stream = StreamDecoder(tokenizer, skip_special=skip_special, continuation=continuation)
            for _ in range(2):  # finish() leaves the decoder as new
                texts = [stream.push(token) for token in ids]
                texts.append(stream.finish())
                assert "".join(texts) == tokenizer.decode(ids, skip_special, continuation=continuation)


def test_stream_holds_back_half_a_character():
    tokenizer = TOKENIZERS["tokenizer_gpt_2.gguf"]
    stream = StreamDecoder(tokenizer)
    ids = [tokenizer.token_id(c) for c in "ðŁĺĢ"]  # the four bytes of U+1F600
    assert [stream.push(token) for token in ids] == ["", "", "", "😀"]
    assert stream.push(ids[0]) == ""
    assert stream.finish() == "\ufffd"


def merged_slowly(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE as its definition reads: merge the leftmost pair of lowest rank until there is none."""
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


@pytest.mark.parametrize("seed", range(20))
def test_merge_loop_against_its_definition(tmp_path, seed):
    """Random merges over three letters, not closed under anything: pairs count, not the texts they make."""
    rng = random.Random(seed)
    known = ["a", "b", "c"]
    merges: list[str] = []
    for _ in range(40):
        left, right = rng.choice(known), rng.choice(known)
        if f"{left} {right}" not in merges and len(left + right) < 12:
            merges.append(f"{left} {right}")
            known.append(left + right)
    tokenizer = Tokenizer.from_gguf(byte_level(tmp_path / "v.gguf", tuple(merges)))
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    for _ in range(30):
        text = "".join(rng.choice("abc") for _ in range(rng.randint(1, 60)))
        ids = tokenizer.encode(text)
        assert [tokenizer.token_bytes(token).decode() for token in ids] == merged_slowly(list(text), ranks)


def test_equal_merges_keep_the_first_rank(tmp_path):
    tokenizer = Tokenizer.from_gguf(byte_level(tmp_path / "v.gguf", ("a b", "b c", "a b")))
    assert tokenizer.decode_bytes(tokenizer.encode("abc")[:1]) == b"ab"


LONG = {
    "letters": "a", "capitals": "Z", "words": "us", "spaces": " ", "tabs": "\t a", "newlines": "\n", "mixed": " \r\n",
    "digits": "7", "marks": "!", "emoji": "👨\u200d👩\u200d👧", "accents": "e\u0301", "quotes": "'s", "cjk": "漢",
}  # fmt: skip


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("name", FILES)
def test_long_inputs(name, kind):
    """A quadratic path would need minutes for these, a recursive one would overflow its stack."""
    tokenizer = TOKENIZERS[name]
    text = LONG[kind] * (300_000 // len(LONG[kind]))
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_million_letters_are_one_word(name):
    tokenizer = TOKENIZERS[name]
    short, long = tokenizer.encode("a" * 1000, False), tokenizer.encode("a" * 1_000_000, False)
    assert len(long) == pytest.approx(1000 * len(short), rel=0.01)


@pytest.mark.parametrize("name", FILES)
def test_all_bytes_and_nul(name):
    tokenizer = TOKENIZERS[name]
    text = "".join(map(chr, range(256))) + "\x00\x00"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "\udc80"])
def test_lone_surrogates(name, text):
    with pytest.raises(TokenizerError, match="surrogate"):
        TOKENIZERS[name].encode(text)


@pytest.mark.parametrize("text", [None, b"abc", 7, ["a"]])
def test_only_text_is_encoded(text):
    with pytest.raises(RequestError, match="expected str"):
        TOKENIZERS[FILES[0]].encode(text)


@pytest.mark.parametrize("token", [-1, 10**9, 2**31, 2**63, 1.5, True, None, "1"])
def test_ids_out_of_range(token):
    tokenizer = TOKENIZERS[FILES[0]]
    for call in (tokenizer.token_bytes, tokenizer.is_special, StreamDecoder(tokenizer).push):
        with pytest.raises(RequestError, match="token id"):
            call(token)
    for skip_special in (False, True):
        with pytest.raises(RequestError, match="token id"):
            tokenizer.decode([0, token], skip_special)
    tokenizer.decode([0, 1, True + 1, np.int32(5)])


def test_control_tokens_are_parsed_on_request_only(tmp_path):
    tokenizer = Tokenizer.from_gguf(byte_level(tmp_path / "v.gguf"))
    assert tokenizer.eos_id not in tokenizer.encode("a</s>b", add_special=False)
    assert tokenizer.encode("a</s>b", add_special=False, parse_special=True)[1] == tokenizer.eos_id
    assert tokenizer.is_special(tokenizer.eos_id)
    assert not tokenizer.is_special(0)


def test_whole_words_never_are_control_tokens(tmp_path):
    """llama-bpe looks words up whole: a control token with the text of a word must not come from plain text."""
    path = byte_level(tmp_path / "v.gguf", marks=("begin", "end"), pre="llama-bpe")
    tokenizer = Tokenizer.from_gguf(path)
    assert tokenizer.encode("end", add_special=False) == [ord("e"), ord("n"), ord("d")]


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        ({}, [257, 97]),  # llama-bpe begins with BOS unless told otherwise
        ({"add_bos_token": False}, [97]),
        ({"add_eos_token": True}, [257, 97, 258]),
        ({"pre": "qwen2"}, [97]),
        ({"pre": "qwen2", "add_bos_token": True, "add_eos_token": True}, [257, 97, 258]),
    ],
)
def test_bos_and_eos_flags(tmp_path, scalars, expected):
    tokenizer = Tokenizer.from_gguf(byte_level(tmp_path / "v.gguf", **{"pre": "llama-bpe", **scalars}))
    assert tokenizer.encode("a") == expected
    assert tokenizer.encode("a", add_special=False) == [97]


def test_end_tokens_by_text_and_by_key(tmp_path):
    marks = ("<s>", "</s>", "<|im_end|>", "<|eom_id|>", "<|eot_id|>", "<|file_sep|>", "other", "named")
    tokenizer = Tokenizer.from_gguf(byte_level(tmp_path / "v.gguf", marks=marks, eot_token_id=257 + 7))
    assert {tokenizer.token_bytes(token).decode() for token in tokenizer.eog_ids} == set(marks) - {"<s>", "other"}


def test_space_prefix(tmp_path):
    with_prefix = Tokenizer.from_gguf(sentence_piece(tmp_path / "a.gguf"))
    without = Tokenizer.from_gguf(sentence_piece(tmp_path / "b.gguf", add_space_prefix=False))
    assert with_prefix.encode("ab") == [1, 259, 262]
    assert without.encode("ab") == [1, 262]
    assert with_prefix.decode([259, 262]) == "ab"
    assert with_prefix.decode([259, 262], continuation=True) == " ab"
    assert with_prefix.encode("a<s>b", parse_special=True) == [1, 259, 260, 1, 259, 261]
    assert with_prefix.decode([259, 260, 1, 259, 261]) == "a<s>b"


def test_sentencepiece_without_byte_tokens(tmp_path):
    arrays = {"tokens": ["<unk>", "<s>", "</s>", "a"], "token_type": [2, 3, 3, 1], "scores": [0.0] * 4}
    tokenizer = Tokenizer.from_gguf(write(tmp_path / "a.gguf", "llama", arrays, add_space_prefix=False))
    assert tokenizer.encode("aé") == [1, 3, 0]
    arrays = {"tokens": ["<s>", "</s>", "a"], "token_type": [3, 3, 1], "scores": [0.0] * 3}
    special = {"bos_token_id": 0, "eos_token_id": 1, "unknown_token_id": 1, "add_space_prefix": False}
    tokenizer = Tokenizer.from_gguf(write(tmp_path / "b.gguf", "llama", arrays, **special))
    assert tokenizer.encode("a") == [0, 2]
    with pytest.raises(TokenizerError, match=r"tokens: the vocabulary has no piece"):
        tokenizer.encode("aé")


def test_missing_byte_is_left_out_with_a_warning(tmp_path, caplog):
    arrays = {"tokens": ["a", "b", "ab"], "token_type": [1] * 3, "merges": ["a b"]}
    tokenizer = Tokenizer.from_gguf(write(tmp_path / "v.gguf", "gpt2", arrays, pre="gpt-2"))
    assert tokenizer.encode("ab") == [2]
    assert not caplog.records
    assert tokenizer.encode("axb") == [0, 1]  # as llama.cpp and the tokenizers library do
    assert "0x78" in caplog.text


def test_one_file_open_or_by_path():
    with GGUFFile(DATA / FILES[0]) as file:
        assert Tokenizer.from_gguf(file).encode("Hello") == TOKENIZERS[FILES[0]].encode("Hello")
    assert Tokenizer.from_gguf(str(DATA / FILES[0])).n_vocab == TOKENIZERS[FILES[0]].n_vocab


@pytest.mark.model
def test_real_model(real_model):
    """The page of hard text as llama.cpp encodes it with SmolLM2's vocabulary."""
    tokenizer = Tokenizer.from_gguf(real_model)
    golden = json.loads((DATA / "tokenizer_model_golden.json").read_text())
    page = (DATA / "tokenizer_page.txt").read_bytes().decode()
    assert tokenizer.encode(page) == golden["ids"]
    assert sorted(tokenizer.eog_ids) == golden["eog"]
