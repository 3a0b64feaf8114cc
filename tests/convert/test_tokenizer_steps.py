"""Steps, options and flags of tokenizer.json without a GGUF key: the ids equal those of the tokenizers library."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from gumba.errors import TokenizerError
from gumba.gguf import GGUFFile
from gumba.tokenizer.detokenizer import StreamDecoder
from gumba.tokenizer.normalizers import normal_form
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.gguf_writer import Value, i32_array, string
from gumba_convert.vocabulary.tokenizer_json import tokenizer_files
from gumba_convert.vocabulary.vocabulary import Vocabulary, read_vocabulary
from support.tokenizer_steps import GOLDENS, opened

CONFIGS: dict[str, dict[str, Any]] = {
    "bytes": {},
    "fallback": {},
    "words": {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "pieces": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}


def of_case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of a case."""
    case = GOLDENS["cases"][name]
    state, change = GOLDENS["kinds"][case["kind"]], case["change"]
    made = state | change | {"model": state["model"] | change.get("model", {})}
    filled = json.dumps({"type": "Precompiled", "precompiled_charsmap": GOLDENS["charsmap"]})
    return json.loads(json.dumps(made).replace('{"type": "Precompiled"}', filled)), CONFIGS[case["kind"]]


def read(folder: Path, json_: dict[str, Any], config: dict[str, Any], n_rows: int = 500) -> Vocabulary:
    folder.mkdir(exist_ok=True)
    for name, content in (("config", {}), ("tokenizer", json_), ("tokenizer_config", config)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return read_vocabulary(Checkpoint(folder), n_rows)


@pytest.mark.parametrize("name", GOLDENS["cases"])
def test_ids_of_the_tokenizers_library(tmp_path: Path, name: str) -> None:
    vocabulary = read(tmp_path / "hf", *of_case(name))
    found = opened(tmp_path / "v.gguf", vocabulary)
    for text, ids in zip(GOLDENS["texts"], GOLDENS["cases"][name]["ids"], strict=True):
        assert found.encode(text, add_special=False, parse_special=True) == ids, text


PLAIN = ("words_plain", "words_cased")


@pytest.mark.parametrize("name", GOLDENS["cases"])
def test_a_warning_if_llama_cpp_differs(tmp_path: Path, name: str) -> None:
    """And no key of gumba's own if GGUF's keys suffice."""
    vocabulary = read(tmp_path / "hf", *of_case(name))
    keys = [key for key in vocabulary.metadata() if key.startswith("gumba.tokenizer.")]
    assert bool(keys) == (name not in PLAIN)
    assert any("llama.cpp" in warning for warning in vocabulary.warnings) == (name not in PLAIN)


def test_flags_come_from_the_checkpoint_and_not_from_its_name(tmp_path: Path) -> None:
    """llama.cpp, and gumba for files without the key, strip after special tokens if the name is Phi-3's."""
    kind = GOLDENS["kinds"]["fallback"]
    plain = kind | {"pre_tokenizer": None}
    plain["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
    stripped = plain | {"added_tokens": [token | {"rstrip": True} for token in kind["added_tokens"]]}
    for state, text in ((plain, "<|end|>\nHi"), (stripped, "<|end|>Hi")):
        vocabulary = read(tmp_path / "hf", state, {})
        for name in ("Phi-3-mini", "support-bot"):
            found = opened(tmp_path / "v.gguf", vocabulary, name)
            assert found.decode(found.encode("<|end|>\nHi", False, True)) == text


def test_flags_of_tokenizer_config_take_precedence(tmp_path: Path) -> None:
    """As in transformers (5.24)."""
    state = GOLDENS["kinds"]["bytes"]
    end = next(token for token in state["added_tokens"] if token["content"] == "<|end|>")
    config = {"added_tokens_decoder": {str(end["id"]): {**end, "lstrip": True}}}
    found = opened(tmp_path / "v.gguf", read(tmp_path / "hf", state, config))
    assert found.encode("a <|end|>", False, True) == [*found.encode("a", False), end["id"]]


@pytest.mark.parametrize("name", [name for name in GOLDENS["cases"] if name.startswith(("bytes", "fallback"))])
def test_exported_and_converted_again(tmp_path: Path, name: str) -> None:
    opened(tmp_path / "v.gguf", read(tmp_path / "hf", *of_case(name)))
    with GGUFFile(tmp_path / "v.gguf") as file:
        exported = tokenizer_files(file, 128)["tokenizer.json"]
    again = opened(tmp_path / "again.gguf", read(tmp_path / "again", exported, {}))
    for text, ids in zip(GOLDENS["texts"], GOLDENS["cases"][name]["ids"], strict=True):
        assert again.encode(text, add_special=False, parse_special=True) == ids, text


DECODED = ("fallback_first", "fallback_always", "fallback_never_underscore", "bytes_nfc", "bytes_after", "pieces_first")


@pytest.mark.parametrize("name", DECODED)
def test_decoded_again(tmp_path: Path, name: str) -> None:
    found = opened(tmp_path / "v.gguf", read(tmp_path / "hf", *of_case(name)))
    for text in ("hello two", "a b\n\nc  d", "x==10: print('hi')", "user<|end|>two"):
        if "<" in text and name != "fallback_first" and not name.startswith("bytes"):
            continue  # elsewhere a space is put after a special token, or there is no such piece
        ids = found.encode(text, False, True)
        assert found.decode(ids) == text
        for continuation in (False, True):
            stream = StreamDecoder(found, continuation=continuation)
            streamed = "".join([*map(stream.push, ids), stream.finish()])
            assert streamed == found.decode(ids, continuation=continuation)


def test_special_tokens_in_text_stay_text(tmp_path: Path) -> None:
    """Without ``parse_special``, and in protected text: neither as they are, nor in a form that is normalized to one."""
    found = opened(tmp_path / "v.gguf", read(tmp_path / "hf", *of_case("bytes_lower")))
    odd = found.token_id("<|END|>")
    assert odd is not None and set(found.control_texts) >= {"<|END|>", "<|end|>"}
    for text in ("<|end|>", "<|END|>", "<|EnD|>", " <s>"):
        assert not {odd, 3, 1} & set(found.encode(text, False))
    mark = "\ufdd0"
    shielded = found.encode(f"<s><{mark}|end|> <|EnD|> <{mark}|END|><|end|>", False, True, shield=mark)
    assert [token for token in shielded if token in (odd, 3, 1)] == [1, 3]
    assert found.decode(shielded) == "<s><|end|> <|end|> <|end|><|end|>"


HOSTILE: list[tuple[str, Value, str]] = [
    ("normalizer", i32_array([1]), "expected str"),
    ("normalizer", string("{"), "not JSON"),
    ("normalizer", string("[" * 100_000), "not JSON"),
    ("normalizer", string("[]"), "expected an object or null"),
    ("normalizer", string('{"type":"Lowercase","x":"' + "y" * (1 << 20) + '"}'), "the limit is"),
    (
        "normalizer",
        string('{"type":"Sequence","normalizers":[' + '{"type":"NFC"},' * 70 + "{}]}"),
        "more than 64 steps",
    ),
    ("normalizer", string('{"type":"Sequence","normalizers":[' * 20 + "null" + "]}" * 20), "nested deeper"),
    ("normalizer", string('{"type":["NFC"]}'), "is not supported"),
    ("normalizer", string('{"type":"Precompiled"}'), "without its table"),
    ("normalizer", string('{"type":"Prepend","prepend":7}'), "prepend is 7"),
    ("normalizer", string('{"type":"Replace","pattern":{"Regex":"("},"content":""}'), "is not supported"),
    ("pre_tokenizer", string('{"type":"Split","pattern":{"String":"a"},"behavior":"Gone"}'), "behavior 'Gone'"),
    ("pre_tokenizer", string('{"type":"CharDelimiterSplit","delimiter":""}'), "expected one character"),
    (
        "pre_tokenizer",
        string('{"type":"Split","pattern":{"Regex":"' + "a" * 30_000 + '"},"behavior":"Isolated"}'),
        "limit",
    ),
    ("model", string('{"unk_id":1.0}'), "'unk_id' is 1.0"),
    ("model", string('{"unk_id":100000}'), "outside the vocabulary"),
    ("model", string('{"dropout":0.1}'), "'dropout' is 0.1"),
    ("added_tokens", i32_array([3]), "added_token_flags: missing"),
    ("added_token_flags", i32_array([0, 0]), "added_tokens"),
]


@pytest.mark.parametrize(("key", "value", "message"), HOSTILE)
def test_damaged_keys(tmp_path: Path, key: str, value: Value, message: str) -> None:
    vocabulary = read(tmp_path / "hf", GOLDENS["kinds"]["bytes"], {})
    with pytest.raises(TokenizerError, match=message):
        opened(tmp_path / "v.gguf", vocabulary, **{key: value})


@pytest.mark.parametrize(("token", "bits", "message"), [
    (-1, 0, "-1 is outside"), (500, 0, "500 is outside"), (3, 32, "unknown bits"), (3, -1, "unknown bits"),
])  # fmt: skip
def test_damaged_flags(tmp_path: Path, token: int, bits: int, message: str) -> None:
    vocabulary = read(tmp_path / "hf", GOLDENS["kinds"]["bytes"], {})
    keys = {"added_tokens": i32_array([token]), "added_token_flags": i32_array([bits])}
    with pytest.raises(TokenizerError, match=message):
        opened(tmp_path / "v.gguf", vocabulary, **keys)


def test_patterns_that_take_exponential_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gumba.tokenizer.patterns.PATIENCE", 0.2)
    vocabulary = read(tmp_path / "hf", GOLDENS["kinds"]["bytes"], {})
    step = {"type": "Replace", "pattern": {"Regex": r"(?:a|aa)+(?=\d)"}, "content": ""}
    found = opened(tmp_path / "v.gguf", vocabulary, normalizer=string(json.dumps(step)))
    assert found.encode("aaa1", False) == found.encode("1", False)
    with pytest.raises(TokenizerError, match="takes too long on this text"):
        found.encode("a" * 5000)
    grown = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    steps = {"type": "Sequence", "normalizers": [grown] * 8}
    found = opened(tmp_path / "v.gguf", vocabulary, normalizer=string(json.dumps(steps)))
    with pytest.raises(TokenizerError, match="times"):
        found.encode("a" * 3000)


def test_long_runs_of_marks_are_normalized_in_linear_time() -> None:
    """Python's own sort of them takes quadratic time: 100,000 would take half a minute."""
    rng = random.Random(1)
    for kind in ("NFC", "NFD", "NFKC", "NFKD"):
        for _ in range(5):
            marks = "".join(rng.choice("\u0301\u0316\u0345\u0334\u0344\u0903\u05b0\u0323\u0f73") for _ in range(200))
            assert normal_form(kind, f"xe{marks}ﬁ{marks}") == unicodedata.normalize(kind, f"xe{marks}ﬁ{marks}")
        assert len(normal_form(kind, "a" + "\u0301\u0316" * 50_000)) >= 100_000


LONG = (
    "fallback_first",
    "fallback_steps",
    "fallback_whitespace",
    "bytes_split",
    "bytes_lstrip",
    "pieces_xlm",
    "words_steps",
)


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("part", ["a", " ", "\n", "<s>", "e\u0301", "1a "])
def test_long_texts(tmp_path: Path, name: str, part: str) -> None:
    """A quadratic path would need minutes for these."""
    found = opened(tmp_path / "v.gguf", read(tmp_path / "hf", *of_case(name)))
    short, long = (found.encode(part * n, False, True) for n in (300, 30_000))
    assert len(long) <= 101 * len(short) + 100
