"""Pre-tokenizers: words as the tokenizers library cuts them, ids as llama.cpp gives them (golden file)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import regex as re
from hypothesis import given, settings
from hypothesis import strategies as st

from gumba.errors import TokenizerError
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS, splitter
from gumba.tokenizer.tokenizer import Tokenizer
from gumba_convert.vocabulary.pre_tokenizer_probe import PROBE
from support.small_vocabularies import BYTES, write

DATA = Path(__file__).parent.parent / "data"
GOLDENS = json.loads((DATA / "vocabulary_goldens.json").read_text(encoding="utf-8"))
TEXTS = [*json.loads((DATA / "tokenizer_goldens.json").read_text(encoding="utf-8"))["texts"], PROBE]
#: One name for every way of cutting.
WAYS = {each.steps: name for name, each in reversed(PRE_TOKENIZERS.items())}


def lengths(packed: str) -> list[int]:
    """What the golden file's maker wrote as text."""
    return [int(n[1:-1]) if n.startswith("(") else ord(n) - 48 for n in re.findall(r"\(\d+\)|.", packed, re.DOTALL)]


@pytest.mark.parametrize("name", sorted(GOLDENS["words"]))
def test_words_as_the_tokenizers_library(name):
    cut = splitter(name)
    for text, packed in zip(TEXTS, GOLDENS["words"][name]["words"], strict=True):
        assert [len(word) for word in cut(text)] == lengths(packed), text


def write_with(tmp_path: Path, name: str) -> Path:
    vocabulary = GOLDENS["vocabulary"]
    arrays = {"tokens": vocabulary["tokens"], "merges": vocabulary["merges"]}
    return write(tmp_path / "v.gguf", "gpt2", arrays, pre=name)


@pytest.mark.parametrize("name", sorted(GOLDENS["ids"]))
def test_ids_as_llama_cpp(tmp_path, name):
    """The pre-tokenizers that no tokenizer.json says in the same way."""
    tokenizer = Tokenizer.from_gguf(write_with(tmp_path, name))
    for text, ids in zip(TEXTS, GOLDENS["ids"][name], strict=True):
        if name == "afmoe" and re.search(r"\s\p{N}", text):
            continue  # llama.cpp leaves what stands before a number together with its first digits
        assert tokenizer.encode(text, add_special=False) == ids, text


def test_every_way_of_cutting_has_an_oracle():
    """llama.cpp knows all names (one is another program's); what cuts alike needs one oracle."""
    assert set(PRE_TOKENIZERS) - set(GOLDENS["named"]) == {"openpangu", *CHARACTERS}
    verified = {PRE_TOKENIZERS[name].steps for name in [*GOLDENS["words"], *GOLDENS["ids"], *CHARACTERS]}
    assert verified == set(WAYS)


CHARACTERS = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")  # see test_vocabulary_kinds.py


def test_the_probe_tells_all_ways_apart():
    assert len({tuple(splitter(name)(PROBE)) for name in WAYS.values()}) == len(WAYS)


@pytest.mark.parametrize("name", WAYS.values())
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_words_are_the_text(name, text):
    kept = text if PRE_TOKENIZERS[name].spaces else re.sub(r"\p{White_Space}+", "", text)
    assert "".join(splitter(name)(text)) == kept
    assert all(splitter(name)(text))


PARTS = [
    "a", "Z", "us", " ", "\t a", "\n", " \r\n", "7", "!", "👨\u200d👩", "e\u0301", "'s", "漢", "漢Z", "aZ", "½1", "1a", "\u0301"
]  # fmt: skip


@pytest.mark.parametrize("name", WAYS.values())
def test_time_is_linear(name):
    """16 times the text takes 16 times the time, not 256 times: in processor time, with room for noise."""
    cut = splitter(name)

    def seconds(text: str) -> float:
        start = time.process_time()
        cut(text)
        return time.process_time() - start

    for part in PARTS:
        for tail in ("", "x", " ", "-"):
            short, long = (part * (n // len(part)) + tail for n in (2000, 32000))
            assert seconds(long) < 100 * max(min(seconds(short) for _ in range(3)), 2e-4), (part, tail)


def test_thousands():
    assert splitter("afmoe")("a1234567b12") == ["a", "1", "234", "567", "b", "12"]
    assert splitter("superbpe")("a1234567") == ["a", "1", "234", "567"]
    assert splitter("tiny_aya")("1234567 12345x") == ["1", "234", "567", " ", "123", "45", "x"]


def test_marks_stay_with_their_letters():
    """Where llama.cpp takes marks for punctuation: the models' own patterns keep words of Devanagari whole."""
    assert splitter("gpt-4o")("हिन्दी में") == ["हिन्दी", " में"]
    assert splitter("llama-bpe")("हिन्दी में") != ["हिन्दी", " में"]


@pytest.mark.parametrize(
    ("name", "whole", "bos"), [("tekken", True, True), ("glm4", True, False), ("dbrx", False, False)]
)
def test_options_of_families(tmp_path, name, whole, bos):
    arrays = {"tokens": [*BYTES, "ab", "abc", "<s>"], "token_type": [1] * 258 + [3], "merges": ["a b"]}
    tokenizer = Tokenizer.from_gguf(write(tmp_path / "v.gguf", "gpt2", arrays, pre=name, bos_token_id=258))
    assert tokenizer.encode("abc") == [258] * bos + ([257] if whole else [256, BYTES.index("c")])


def test_unknown_name(tmp_path):
    with pytest.raises(
        TokenizerError,
        match=r"v\.gguf: tokenizer\.ggml\.pre: unknown pre-tokenizer 'unheard-of'; known are a\.x-4\.0, afmoe, ",
    ):
        Tokenizer.from_gguf(write_with(tmp_path, "unheard-of"))
