"""Vocabularies of other kinds than Llama's: converted files tokenize texts like the originals."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from gumba.errors import ConvertError
from gumba_convert.vocabulary.bpe_ranks import merges_of, parse_tiktoken
from gumba_convert.vocabulary.pre_tokenizer_probe import PROBE
from gumba_convert.vocabulary.pre_tokenizers import TEKKEN_PATTERN
from gumba_convert.vocabulary.vocabulary import CONTROL, USER_DEFINED
from support.tiny_checkpoints import added
from support.vocabulary_sources import BYTES_BY_CHARACTER, GOLDENS, TEXTS, ranked, read, tiktoken_file, tokenizer_of

# WordPiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "é", "e", "!", "##s", "[unused1]"]
BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}


def bert_json(**model: Any) -> dict[str, Any]:
    return {
        "added_tokens": [added(i, text) for i, text in enumerate(WORDS[:5])],
        "normalizer": BERT,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {}, "single": [
            {"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {text: i for i, text in enumerate(WORDS)}} | model,
    }  # fmt: skip


@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt"])
def test_word_piece(tmp_path: Path, source: str) -> None:
    files = {source: bert_json() if source == "tokenizer.json" else "\n".join(WORDS) + "\n"}
    found = read(tmp_path / "hf", files, len(WORDS) + 1, type_vocab_size=2)
    assert (found.model, found.tokens[5:9], found.tokens[-1]) == ("bert", ["▁un", "aff", "able", "▁é"], "[PAD13]")
    tokenizer = tokenizer_of(tmp_path, found)
    assert tokenizer.encode("Unaffable É! x") == [2, 5, 6, 7, 9, 10, 1, 3]
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.token_type_count) == (2, 3, 4, 2)
    assert tokenizer.encode("[MASK]", add_special=False, parse_special=True) == [4]
    config = {"do_lower_case": False}
    cased = read(tmp_path / "cased", {"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": config}, len(WORDS))
    assert tokenizer_of(tmp_path, cased).encode("é Un") == [2, 8, 1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Upcase"}}, "normalizer .*Upcase.*not supported"),
        ({"pre_tokenizer": {"type": "Widespace"}}, "pre-tokenizer .*Widespace.*not supported"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "no vocabulary"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 99}}}, "'a' has id 99"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "added_tokens": []}, "no unknown, class or separator"),
        (
            {"model": {"type": "WordPiece", "vocab": {"a": 0}, "continuing_subword_prefix": ""}},
            "'' is not supported",
        ),
    ],
)
def test_bad_word_piece(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        read(tmp_path / "hf", {"tokenizer.json": bert_json() | change}, len(WORDS))


def test_bad_vocab_txt(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="14 lines, but only 13 different"):
        read(tmp_path / "hf", {"vocab.txt": "\n".join([*WORDS, "un"])}, 20)
    with pytest.raises(ConvertError, match="the token '▁un' occurs twice"):
        read(tmp_path / "hf", {"vocab.txt": "\n".join([*WORDS, "##▁un"])}, 20)
    whole = {"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": {"tokenize_chinese_chars": False}}
    with pytest.raises(ConvertError, match="tokenize_chinese_chars is false, which only a"):
        read(tmp_path / "hf", whole, 20)


# SentencePiece


def trained(**options: Any) -> bytes:
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROBE.split("\n")), model_writer=data, vocab_size=700 if "byte_fallback" in options else 400,
        minloglevel=2, hard_vocab_limit=False, character_coverage=1.0, **options,
    )  # fmt: skip
    return data.getvalue()


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
@pytest.mark.parametrize("fallback", [False, True])
def test_unigram_model(tmp_path: Path, name: str, fallback: bool) -> None:
    """With the common replacement table (NFKC), which is too large for golden files."""
    data = trained(
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **({"byte_fallback": True} if fallback else {})
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=data)
    found = read(tmp_path / "hf", {name: data}, original.vocab_size() + 3)
    tokenizer = tokenizer_of(tmp_path, found)
    for text in TEXTS:
        assert tokenizer.encode(text) == [*original.encode(text), 1], text
    assert (tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id, tokenizer.bos_id) == (1, 2, 0, None)


def test_xlm_roberta_model(tmp_path: Path) -> None:
    data = trained(model_type="unigram")
    original = sentencepiece.SentencePieceProcessor(model_proto=data)
    n = original.vocab_size()
    found = read(tmp_path / "hf", {"sentencepiece.bpe.model": data}, n + 2, type_vocab_size=1)
    tokenizer = tokenizer_of(tmp_path, found)
    ids = [i + 1 if i >= 3 else 3 for i in original.encode("Hello 😀 ಠ!")]
    assert tokenizer.encode("Hello 😀 ಠ!") == [0, *ids, 2]
    assert (tokenizer.mask_id, tokenizer.sep_id, tokenizer.token_type_count) == (n + 1, 2, 1)
    with pytest.raises(ConvertError, match="at most"):
        read(tmp_path / "hf", {"sentencepiece.bpe.model": data}, n + 1)


#: Texts of which tokenizers (0.23.3) and sentencepiece make other ids from these pieces: grapheme clusters that the table
#: replaces, spaces at the ends, marks in the text, sums of scores that are equal.
UNIGRAM_DIFFERS = (0, 1, 2, 5, 7, 10, 11, 15, 21, 25, 28, 29, 32, 36, 39, 40, 42, 50, 51, 53, 56, 71, 73)


def test_unigram_json(tmp_path: Path) -> None:
    kind = GOLDENS["kinds"]["t5"]
    arrays = kind["arrays"]
    charsmap = base64.b64encode(bytes(arrays["precompiled_charsmap"])).decode()
    pieces = [[text, score] for text, score in zip(arrays["tokens"], arrays["scores"], strict=True)]
    special = [added(0, "<pad>"), added(1, "</s>"), added(2, "<unk>"), added(3, "<tool>", False)]
    tokenizer_json: dict[str, Any] = {
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {}, "single": [
            {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }  # fmt: skip
    config = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    files = {"tokenizer.json": tokenizer_json, "tokenizer_config.json": config}
    found = read(tmp_path / "hf", files, len(pieces) + 2)
    tokenizer = tokenizer_of(tmp_path, found)
    for i, (text, ids) in enumerate(zip(TEXTS, kind["ids"], strict=True)):
        if i not in UNIGRAM_DIFFERS:
            assert tokenizer.encode(text, parse_special=True) == ids, text
    for change, message in (
        ({"normalizer": {"type": "Upcase"}}, "normalizer .*Upcase.*not supported"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "not base64"),
        ({"pre_tokenizer": {"type": "Widespace"}}, "pre-tokenizer .*Widespace.*not supported"),
        ({"model": {"type": "Unigram", "vocab": []}}, "0 pieces"),
        ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "piece 0.*not a text and a score"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, "piece 0, 'a', has the score 'b'"),
    ):
        with pytest.raises(ConvertError, match=message):
            read(tmp_path / "hf", files | {"tokenizer.json": tokenizer_json | change}, len(pieces) + 2)


def test_chatglm_tokens(tmp_path: Path) -> None:
    """ChatGLM's code adds tokens after the last piece; the third version's has roles."""
    data = trained(model_type="bpe", byte_fallback=True, normalization_rule_name="identity")
    n = sentencepiece.SentencePieceProcessor(model_proto=data).vocab_size()
    files: dict[str, Any] = {"tokenizer.model": data}
    second = read(tmp_path / "2", files, n + 12, model_type="chatglm")
    assert second.tokens[n : n + 6] == ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", f"[PAD{n + 5}]"]
    files["tokenization_chatglm.py"] = 'roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]'
    third = read(tmp_path / "3", files, n + 12, model_type="chatglm")
    assert third.tokens[n + 5 : n + 10] == [
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
        f"[PAD{n + 9}]",
    ]
    tokenizer = tokenizer_of(tmp_path, third)
    assert tokenizer.encode("[gMASK]sop", add_special=False, parse_special=True) == [n + 1, n + 3]
    assert read(tmp_path / "other", files, n + 12, model_type="llama").tokens[n] == f"[PAD{n}]"


def test_model_with_a_normalizer_causes_a_warning(tmp_path: Path) -> None:
    data = trained(model_type="bpe", byte_fallback=True)
    assert "normalizes text (nmt_nfkc)" in read(tmp_path / "hf", {"tokenizer.model": data}, 1500).warnings[0]


# Ranks


def test_merges_are_recovered(tmp_path: Path) -> None:
    text_merges = [(left, right) for left, right in (merge.split(" ") for merge in GOLDENS["vocabulary"]["merges"])]
    wanted = [tuple(bytes(BYTES_BY_CHARACTER[c] for c in part) for part in pair) for pair in text_merges]
    assert merges_of(parse_tiktoken(tiktoken_file(), "x"), "x") == wanted


def test_tokens_without_parts_have_no_merge() -> None:
    assert merges_of([b"a", b"b", b"c", b"abc", b"ab", b"abcc", b"abca"], "x") == [
        (b"a", b"b"),
        (b"abc", b"c"),
        (b"abc", b"a"),
    ]
    with pytest.raises(ConvertError, match="rank 1 has 0 bytes"):
        merges_of([b"a", b""], "x")


def test_qwen_tiktoken(tmp_path: Path) -> None:
    n = len(ranked())
    found = read(tmp_path / "hf", {"qwen.tiktoken": tiktoken_file()}, n + 210)
    assert (found.pre, found.special.add, found.tokens[n : n + 4]) == (
        "qwen2", {"bos": False}, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>"])  # fmt: skip
    assert found.tokens[n + 207 :] == ["<|extra_204|>", f"[PAD{n + 208}]", f"[PAD{n + 209}]"]
    tokenizer = tokenizer_of(tmp_path, found)
    assert {n, n + 2} <= tokenizer.eog_ids
    assert (tokenizer.eos_id, tokenizer.eot_id) == (n, n + 2)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_glm_tiktoken(tmp_path: Path) -> None:
    n = len(ranked())
    names = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>"]
    decoder = {str(n + i): {"content": text, "special": True} for i, text in enumerate(names)}
    files = {"tokenizer.model": tiktoken_file(), "tokenizer_config.json": {"added_tokens_decoder": decoder}}
    found = read(tmp_path / "hf", files, n + 10, model_type="chatglm")
    assert (found.pre, found.special.ids) == ("glm4", {"eos": n, "unk": n, "eot": n + 7})
    assert tokenizer_of(tmp_path, found).encode("[gMASK]<sop>", parse_special=True) == [n + 2, n + 4]


def tekken() -> dict[str, Any]:
    pattern = TEKKEN_PATTERN
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for i, t in enumerate(ranked())
    ]
    config = {
        "pattern": pattern,
        "default_vocab_size": len(vocab) + 20,
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    return {"config": config, "vocab": vocab}


def test_tekken(tmp_path: Path) -> None:
    n = len(ranked())
    found = read(tmp_path / "hf", {"tekken.json": tekken()}, n + 20)
    assert found.tokens[:4] == ["<unk>", "<s>", "</s>", "[INST]"] and found.tokens[19] == "<SPECIAL_19>"
    tokenizer = tokenizer_of(tmp_path, found)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, 10)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
    named = tekken() | {"special_tokens": [{"rank": 0, "token_str": "<s>"}, {"rank": 5, "token_str": "[THINK]"}]}
    found = read(tmp_path / "named", {"tekken.json": named}, n + 20)
    assert (found.special.ids, found.tokens[5]) == ({"bos": 0}, "[THINK]")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"qwen.tiktoken": b"IQ== 0\n!! 1\n"}, "line 2, b'!! 1', is not a token in base64"),
        ({"qwen.tiktoken": b"IQ== 0\nIg== 2\n"}, "the ranks are not 0, 1, 2"),
        ({"qwen.tiktoken": b"IQ== 0\nIQ== 1\n"}, "the token b'!' occurs twice"),
        ({"qwen.tiktoken": b""}, "the ranks are not"),
        ({"qwen.tiktoken": b"".join(base64.b64encode(bytes([i, 0])) + b" %d\n" % i for i in range(40))}, "40 tokens, but"),
        ({"tekken.json": {"vocab": []}}, "not a tekken tokenizer"),
        ({"tekken.json": {"config": {"default_vocab_size": 3, "default_num_special_tokens": 1, "pattern": "x"},
                          "vocab": []}}, "unknown pattern 'x'"),
        ({"tekken.json": {"config": tekken()["config"], "vocab": [{"token_bytes": "?"}]}}, "the entry of rank 0"),
        ({"tekken.json": {"config": tekken()["config"], "vocab": [{}]}}, "the entry of rank 0"),
    ],
)  # fmt: skip
def test_bad_ranks(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        read(tmp_path / "hf", files, 30)


# BPE over characters, infill tokens


def gemma_json() -> dict[str, Any]:
    arrays = GOLDENS["kinds"]["gemma4"]["arrays"]
    return {
        "added_tokens": [added(i, text) for i, text in enumerate(("<pad>", "<eos>", "<bos>", "<unk>"))],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {text: i for i, text in enumerate(arrays["tokens"])},
            "merges": arrays["merges"],
        },
    }


def test_gemma4_keeps_its_merges(tmp_path: Path) -> None:
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    files = {"tokenizer.json": gemma_json(), "tokenizer_config.json": config}
    n = len(GOLDENS["kinds"]["gemma4"]["arrays"]["tokens"])
    found = read(tmp_path / "hf", files, n, text_config={"model_type": "gemma4_text"})
    assert found.model == "gemma4"
    tokenizer = tokenizer_of(tmp_path, found)
    for text, ids in zip(TEXTS, GOLDENS["kinds"]["gemma4"]["ids"], strict=True):
        assert tokenizer.encode(text) == ids, text
    for model_type in ("gemma3_text", "gemma3n_text"):
        assert read(tmp_path / "hf", files, n, model_type=model_type).model == "llama"


def test_gemma4s_marks_of_reasoning_and_calls_are_text(tmp_path: Path) -> None:
    n = len(GOLDENS["kinds"]["gemma4"]["arrays"]["tokens"])
    marks = ["<|channel>", "<tool_call|>", '<|"|>', "<|turn>"]
    tokenizer = gemma_json()
    tokenizer["added_tokens"] += [added(n + i, text) for i, text in enumerate(marks)]
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": {"bos_token": "<bos>"}}
    found = read(tmp_path / "hf", files, n + 4, model_type="gemma4_unified")
    assert found.types[n:].tolist() == [USER_DEFINED, USER_DEFINED, USER_DEFINED, CONTROL]
    assert n in tokenizer_of(tmp_path, found).encode("a<|channel>b")
    assert read(tmp_path / "hf", files, n + 4, model_type="gemma3_text").types[n:].tolist() == [CONTROL] * 4


def test_infill_tokens_are_named(tmp_path: Path) -> None:
    n = len(ranked())
    names = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|file_sep|>"]
    for some in (names, names[1:]):
        decoder = {str(n + i): {"content": text, "special": True} for i, text in enumerate(some)}
        files = {"tokenizer.model": tiktoken_file(), "tokenizer_config.json": {"added_tokens_decoder": decoder}}
        metadata = read(tmp_path / "hf", files, n + 4, model_type="chatglm").metadata()
        found = {key.split(".")[-1]: value.value for key, value in metadata.items() if ".fim_" in key}
        wanted = ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_sep_token_id")
        assert found == ({key: n + i for i, key in enumerate(wanted)} if some is names else {})
