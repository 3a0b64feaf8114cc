"""Vocabularies of checkpoints: kinds, special tokens, pre-tokenizers, SentencePiece."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from gumba import GGUFFile, Tokenizer
from gumba.errors import ConvertError
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS
from gumba_convert import convert
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.gguf_writer import boolean
from gumba_convert.vocabulary.pre_tokenizers import CHAINS, GPT4O_PATTERN, NAMES, TEKKEN_PATTERN, detect, to_json
from gumba_convert.vocabulary.vocabulary import CONTROL, Vocabulary, read_vocabulary
from support.sentencepiece_models import N_PIECES, PIECES, proto, write_sentencepiece
from support.tiny_checkpoints import CONFIG, GPT2, MERGES, VOCAB, added, tokenizer, write_checkpoint

N_ROWS = CONFIG["vocab_size"]

# As in the published models.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def chain(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


PRE = [
    (GPT2, "gpt-2"),
    ({"type": "ByteLevel", "add_prefix_space": False}, "gpt-2"),
    (chain({"type": "Digits", "individual_digits": True}, GPT2), "smollm"),
    (chain(split(LLAMA3), BYTES), "llama-bpe"),
    (chain(split(LLAMA3, "Removed", True), BYTES), "llama-bpe"),
    (chain(split(LLAMA3.replace("{1,3}", "")), BYTES), "qwen2"),
    # the same in other spellings
    (chain(chain(split(LLAMA3)), BYTES), "llama-bpe"),
    (chain(split(LLAMA3.replace("{1,3}", "{1}")), BYTES), "qwen2"),
    (
        chain(split(LLAMA3.replace("?\\p{L}+", "?+\\p{L}++").replace("]+[\\r\\n]*", "]++[\\r\\n]*+")), BYTES),
        "llama-bpe",
    ),
    (chain(split(LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")), BYTES), "llama-bpe"),
    (chain(split(LLAMA3.replace("\\r\\n", "\r\n").replace("\\p{L}\\p{N}]", "\\p{N}\\p{L}]")), BYTES), "llama-bpe"),
    (chain(split(LLAMA3.removesuffix("|\\s+").replace("\\s*[\\r\\n]+", "\\s*[\\r\\n]")), BYTES), "llama-bpe"),
    (chain(split(r"\p{N}"), GPT2), "smollm"),
    (
        chain(
            split(r"[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split(r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            {"type": "Digits", "individual_digits": True},
            BYTES,
        ),
        "deepseek-coder",
    ),
]
OTHER_PRE = [
    None,
    {"type": "ByteLevel"},  # puts a space before the text by default
    {"type": "Whitespace"},
    chain(split(LLAMA3), split("[0-9]{2}"), BYTES),
    split(LLAMA3),
    chain(split(LLAMA3.replace("{1,3}", "{1,2}")), BYTES),
    chain(split(LLAMA3, "MergedWithPrevious"), BYTES),
    chain({"type": "Digits", "individual_digits": False}, GPT2),
]
REFUSED_PRE = [
    (chain(split("(unclosed"), BYTES), r"the pattern '\(unclosed' is not supported"),
    (chain(split("(?:a|aa)+(?=\\d)|x"), BYTES), "takes too long"),
    (chain(split(r"\G\w"), BYTES), r"the escape \\G"),
    (chain({"type": "UnicodeScripts"}, BYTES), "pre-tokenizer .*UnicodeScripts.* is not supported"),
    ({"type": "Metaspace", "replacement": "__"}, "replacement '__'"),
    ({"type": "Punctuation", "behavior": "Joined"}, "behavior 'Joined'"),
    ({"type": "Digits", "individual_digits": 1}, "individual_digits is 1"),
    ({"type": "FixedLength", "length": 0}, "length 0"),
]


@pytest.mark.parametrize(("step", "name"), PRE)
def test_pre_tokenizer(step: dict[str, Any], name: str) -> None:
    assert detect(step) == (name, True)


def test_pre_tokenizers_of_published_models() -> None:
    """Published chains that differ from the table: Granite 4.1 and MiniMax M2 remove unmatched text."""
    removed = [split(pattern, "Removed", True) for pattern in (LLAMA3, GPT4O_PATTERN)]
    assert [detect(chain(step, BYTES))[0] for step in removed] == ["llama-bpe", "gpt-4o"]
    tekken = chain(split(TEKKEN_PATTERN), BYTES)
    assert [detect(tekken, ignore_merges=whole) for whole in (True, False)] == [("tekken", True)] * 2
    lines = {
        "type": "Split",
        "pattern": {"Regex": r"(?:\r?\n)+(?!\r?\n)"},
        "behavior": "MergedWithNext",
        "invert": False,
    }
    assert detect(chain(lines, split(LLAMA3.replace("{1,3}", "")), BYTES)) == ("laguna", True)
    literal = to_json("deepseek-v3")
    literal["pretokenizers"][2]["pattern"]["Regex"] = literal["pretokenizers"][2]["pattern"]["Regex"].replace(
        "\\r\\n", "\r\n"
    )
    assert detect(literal) == ("deepseek-v3", True)
    assert detect(chain({**lines, "pattern": {"Regex": "x"}}, split(LLAMA3), BYTES)) == (None, False)


def test_pre_tokenizer_in_an_unknown_form() -> None:
    """Words of letters of any kind: an unknown form that splits every text alike."""
    variant = chain(split(LLAMA3.replace(r"\p{L}+", r"[\p{Lu}\p{Ll}\p{Lt}\p{Lm}\p{Lo}]+")), BYTES)
    assert detect(variant) == ("llama-bpe", False)


def test_a_repeated_interval_is_not_possessive() -> None:
    """Oniguruma repeats {1,3}+: digits are not split after three."""
    assert detect(chain(split(LLAMA3.replace("{1,3}", "{1,3}+")), BYTES)) == ("llama-bpe", False)


@pytest.mark.parametrize(
    ("step", "whole", "name"),
    [
        (PRE[3][0], True, "llama-bpe"),
        (PRE[3][0], False, "dbrx"),
        (GPT2, False, "gpt-2"),
        (GPT2, True, "gpt-2"),  # none that takes words whole
    ],
)
def test_name_of_the_same_options(step: dict[str, Any], whole: bool, name: str) -> None:
    assert detect(step, ignore_merges=whole) == (name, True)


def test_chains_are_recognized() -> None:
    for name, _ in CHAINS:
        assert detect(to_json(name)) == (name, True)


@pytest.mark.parametrize("step", OTHER_PRE)
def test_pre_tokenizer_without_a_name(tmp_path: Path, step: Any) -> None:
    """Its steps are stored, with a warning that llama.cpp does not follow them, unless the user names one."""
    write_checkpoint(tmp_path / "hf", files={"tokenizer.json": tokenizer(pre_tokenizer=step)})
    report = convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert any("pre-tokenizer" in text and "llama.cpp" in text for text in report.warnings)
    with GGUFFile(tmp_path / "out.gguf") as file:
        assert json.loads(str(file.metadata["gumba.tokenizer.pre_tokenizer"])) == step
    convert(tmp_path / "hf", tmp_path / "out.gguf", pre_tokenizer="qwen2")
    with GGUFFile(tmp_path / "out.gguf") as file:
        assert file.metadata["tokenizer.ggml.pre"] == "qwen2"
        assert not any(key.startswith("gumba.") for key in file.metadata)
    with pytest.raises(ConvertError, match="'qwen3'; known are"):
        convert(tmp_path / "hf", tmp_path / "out.gguf", pre_tokenizer="qwen3")


@pytest.mark.parametrize(("step", "message"), REFUSED_PRE)
def test_refused_pre_tokenizer(tmp_path: Path, step: Any, message: str) -> None:
    with pytest.raises(ConvertError, match=message) as caught:
        vocabulary(tmp_path, tokenizer=tokenizer(pre_tokenizer=step))
    assert "--pre-tokenizer NAME" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_to_json_and_back(name: str) -> None:
    if name in ("afmoe", "chameleon") or PRE_TOKENIZERS[name].characters:
        with pytest.raises(ConvertError, match="no known form"):
            to_json(name)
        return
    found, exact = detect(to_json(name), ignore_merges=PRE_TOKENIZERS[name].whole_words)
    assert found is not None and exact
    same = PRE_TOKENIZERS[found]
    assert (same.steps, same.whole_words) == (PRE_TOKENIZERS[name].steps, PRE_TOKENIZERS[name].whole_words)


def vocabulary(tmp_path: Path, **files: Any) -> Vocabulary:
    names = {"proto": "tokenizer.model"}
    write_checkpoint(tmp_path / "hf", files={names.get(k, f"{k}.json"): v for k, v in files.items()}, tensors={})
    return read_vocabulary(Checkpoint(tmp_path / "hf"), N_ROWS)


def test_added_tokens(tmp_path: Path) -> None:
    more = [added(N_ROWS - 3, "<tool>", False), added(N_ROWS - 2, "<|odd|>", False), added(N_ROWS - 1, "▁x", False)]
    json = tokenizer(added_tokens=tokenizer()["added_tokens"] + more)
    found = vocabulary(tmp_path, tokenizer=json)
    assert found.tokens[-3:] == ["<tool>", "<|odd|>", " x"]
    assert found.types[-3:].tolist() == [4, 3, 4]  # user-defined; control by its looks; user-defined, a space again


def test_words_separated_by_white_space(tmp_path: Path) -> None:
    parts = {"pre_tokenizer": {"type": "WhitespaceSplit"}}
    found = vocabulary(tmp_path, tokenizer=tokenizer(**parts, normalizer={"type": "Lowercase"}))
    assert (found.pre, found.more["normalizer.lowercase"]) == ("whitespace", boolean(True))
    found = vocabulary(tmp_path, tokenizer=tokenizer(**parts))
    assert (found.pre, found.more["normalizer.lowercase"]) == ("whitespace", boolean(False))
    for normalizer in ({"type": "Lowercase"}, {"type": "NFC"}):  # not what the name of a byte-level pre-tokenizer says
        found = vocabulary(tmp_path, tokenizer=tokenizer(normalizer=normalizer))
        assert list(found.steps) == ["gumba.tokenizer.normalizer"] and normalizer["type"] in found.warnings[0]


def test_special_by_tokenizer_config(tmp_path: Path) -> None:
    config = {
        "eos_token": {"content": "abc"},
        "added_tokens_decoder": {
            str(VOCAB["abc"]): {"content": "abc", "special": False},
            str(VOCAB["ab"]): {"content": "ab", "special": True},
        },
    }
    found = vocabulary(tmp_path, tokenizer_config=config)
    assert [found.types[VOCAB[text]] for text in ("ab", "abc", "Ġt")] == [3, 3, 1]
    assert found.special.ids["eos"] == VOCAB["abc"]


def template(*parts: str) -> dict[str, Any]:
    single = [{"Sequence": {"id": "A"}} if part == "A" else {"SpecialToken": {"id": part}} for part in parts]
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}


SPECIALS = [
    ({}, {}, {"bos": 1, "eos": 2, "unk": 0}, {"bos": False}),
    ({"post_processor": template("<|im_start|>", "A")}, {"bos_token": "<|im_start|>"}, {"bos": 1}, {"bos": True}),
    (
        {"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<|im_start|>", "A")]}},
        {},
        {"bos": 1},
        {"bos": True},
    ),
    # what ends a text is not what ends a turn
    (
        {"post_processor": template("A", "<|end|>")},
        {"eos_token": "<|im_end|>"},
        {"eos": 0, "eot": 2},
        {"eos": True, "bos": False},
    ),
    ({}, {"add_bos_token": True, "add_eos_token": False}, {}, {"bos": True, "eos": False}),
    ({}, {"pad_token": "<|end|>", "mask_token": None}, {"pad": 0}, {}),
]


@pytest.mark.parametrize(("json", "config", "ids", "add"), SPECIALS)
def test_special_tokens(
    tmp_path: Path, json: dict[str, Any], config: dict[str, Any], ids: dict[str, int], add: dict[str, bool]
) -> None:
    found = vocabulary(
        tmp_path, tokenizer=tokenizer(**json), tokenizer_config={"unk_token": "<|end|>"} | config
    ).special
    assert ids.items() <= found.ids.items()
    assert add.items() <= found.add.items()


def test_omitted_options_cause_a_warning(tmp_path: Path) -> None:
    assert vocabulary(tmp_path, tokenizer=tokenizer(post_processor=template("<|im_start|>", "A"))).warnings == []
    for json_, message in (
        (tokenizer(post_processor=template("<|im_start|>", "<|end|>", "A")), "2 tokens around a text"),
        (tokenizer(model={"dropout": 0.1}), "dropout 0.1"),
        (tokenizer(decoder={"type": "CTC"}), "decoder CTC"),
    ):
        (found,) = vocabulary(tmp_path, tokenizer=json_).warnings
        assert message in found


def pair(*parts: str) -> dict[str, Any]:
    """The post-processor of RoBERTa or BERT for single texts and pairs."""
    sequence = [{"Sequence": {"id": part}} if part in "AB" else {"SpecialToken": {"id": part}} for part in parts]
    return template("<|im_start|>", "A", "<|end|>") | {"pair": sequence}


@pytest.mark.parametrize(
    ("step", "add"),
    [
        (pair("<|im_start|>", "A", "<|end|>", "<|end|>", "B", "<|end|>"), {"bos": True, "eos": True, "sep": True}),
        (pair("<|im_start|>", "A", "<|end|>", "B", "<|end|>"), {"bos": True, "eos": True}),
        ({"type": "RobertaProcessing", "cls": ["<|im_start|>", 1], "sep": ["<|end|>", 0]},
         {"bos": True, "eos": True, "sep": True}),
        ({"type": "BertProcessing", "cls": ["<|im_start|>", 1], "sep": ["<|end|>", 0]}, {"bos": True, "eos": True}),
        ({"type": "BertProcessing", "cls": 7, "sep": []}, {}),
        ({"type": "BertProcessing", "cls": [["x"], 1], "sep": [0.5, 2]}, {}),
        ({"type": "Sequence", "processors": [{"type": "RobertaProcessing", "cls": [None, 1]}, 5]}, {"sep": True}),
    ],
)  # fmt: skip
def test_separator_of_pairs(tmp_path: Path, step: dict[str, Any], add: dict[str, bool]) -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": "<|end|>", "sep_token": "<|end|>"}
    found = vocabulary(tmp_path, tokenizer=tokenizer(post_processor=step), tokenizer_config=config).special
    assert found.add == ({"bos": False} | add)


def test_ids_beyond_the_vocabulary_are_omitted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", config={"bos_token_id": 10**6, "eos_token_id": [2, 0], "pad_token_id": -1})
    (tmp_path / "hf" / "tokenizer_config.json").unlink()
    found = read_vocabulary(Checkpoint(tmp_path / "hf"), N_ROWS).special
    assert found.ids == {"eos": 2}
    assert found.templates == {}


TEMPLATES = [
    ({"tokenizer_config.json": {"chat_template": "A"}, "chat_template.jinja": "B"}, {"tokenizer.chat_template": "B"}),
    ({"tokenizer_config.json": {}, "chat_template.jinja": "B é"}, {"tokenizer.chat_template": "B é"}),
    ({"tokenizer_config.json": None, "chat_template.json": {"chat_template": "C"}}, {"tokenizer.chat_template": "C"}),
    (
        {
            "tokenizer_config.json": {
                "chat_template": [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]
            }
        },
        {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T"},
    ),
]


@pytest.mark.parametrize(("files", "wanted"), TEMPLATES)
def test_chat_template(tmp_path: Path, files: dict[str, Any], wanted: dict[str, str]) -> None:
    write_checkpoint(tmp_path / "hf", files=files)
    convert(tmp_path / "hf", tmp_path / "out.gguf")
    with GGUFFile(tmp_path / "out.gguf") as file:
        found = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.chat_template")}
        names = found.pop("tokenizer.chat_templates", None)
        assert names is None or list(names) == ["tool_use"]  # type: ignore[call-overload]
    assert found == wanted


def test_both_forms_of_merges(tmp_path: Path) -> None:
    found = vocabulary(tmp_path, tokenizer=tokenizer(model={"merges": [" ".join(pair) for pair in MERGES]}))
    assert found.merges == ["a b", "ab c", "Ġ t"]


BAD = [
    ({"vocab": {}}, "no vocabulary"),
    ({"vocab": {"a": "1"}}, "'a' has id '1'"),
    ({"vocab": {"a": -1}}, "'a' has id -1"),
    ({"vocab": VOCAB | {"zz": N_ROWS}}, f"'zz' has id {N_ROWS}, but .* {N_ROWS} rows"),
    ({"vocab": VOCAB | {"zz": 5}}, "id 5 is both"),
    ({"vocab": VOCAB | {"<|end|>": N_ROWS - 1}}, "'<|end|>'|no id"),
    ({"vocab": VOCAB | {"\ud800": N_ROWS - 1}}, "not valid Unicode"),
    ({"merges": None}, "no list of merges"),
    ({"merges": ["ab"]}, "merge 0"),
    ({"merges": ["a b", "a b c"]}, "merge 1"),
    ({"merges": [["a", "b", "c"]]}, "merge 0"),
    ({"merges": [["a", 1]]}, "merge 0"),
    ({"merges": [["a", "c"]]}, "merge 0.*forms an unknown token"),
    ({"type": "WordLevel"}, "'WordLevel'; only BPE"),
    ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
def test_bad_tokenizer_json(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path / "hf", files={"tokenizer.json": tokenizer(model=model)})
    if message.startswith("'<|end|>'"):  # the added token's id has no token of its own: it gets one
        convert(tmp_path / "hf", tmp_path / "out.gguf")
        return
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


def test_bad_added_tokens(tmp_path: Path) -> None:
    for token, message in (
        (added(5, "<odd>"), "id 5 is both"),
        (added(-1, "<odd>"), "added token -1"),
        ({"id": 3}, "added token 3"),
    ):
        write_checkpoint(tmp_path / "hf", files={"tokenizer.json": tokenizer(added_tokens=[token])})
        with pytest.raises(ConvertError, match=re.escape(message)):
            convert(tmp_path / "hf", tmp_path / "out.gguf")


def test_normalizers(tmp_path: Path) -> None:
    assert "NFC" in vocabulary(tmp_path, tokenizer=tokenizer(normalizer={"type": "NFC"})).warnings[0]
    for name in ("normalizer", "pre_tokenizer"):
        for wrong in ("NFC", [{"type": "NFC"}], {"type": "Sequence", f"{name}s".replace("_", ""): [None]}):
            with pytest.raises(ConvertError, match=f"{name} is not a tokenizer step"):
                vocabulary(tmp_path, tokenizer=tokenizer(**{name: wrong}))
    for step in ({"type": "Sunflower"}, {"type": "Replace", "pattern": {}, "content": ""}):
        with pytest.raises(ConvertError, match=str(step.get("pattern", step["type"]))):
            vocabulary(tmp_path, tokenizer=tokenizer(normalizer=step))


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"no tokenizer\.json and no tokenizer\.model"):
        vocabulary(tmp_path, tokenizer=None)


# SentencePiece: a model of kind BPE, with byte fallback, and the same as a tokenizer.json.

VOCAB_TXT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a"]


def test_sentencepiece_model(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {str(N_PIECES): {"content": "<|turn|>", "special": True}}}
    extra = {"<tool>": N_PIECES + 1}
    write_sentencepiece(tmp_path / "hf", **{"tokenizer_config.json": config, "added_tokens.json": extra})
    convert(tmp_path / "hf", tmp_path / "out.gguf")
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto())
    with GGUFFile(tmp_path / "out.gguf") as file:
        meta = file.metadata
        assert (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) == ("llama", "default")
        tokens, types, scores = (list(meta[f"tokenizer.ggml.{key}"]) for key in ("tokens", "token_type", "scores"))  # type: ignore[call-overload]
        ids = [meta[f"tokenizer.ggml.{key}_token_id"] for key in ("unknown", "bos", "eos")]
        assert "tokenizer.ggml.merges" not in meta and "tokenizer.ggml.add_space_prefix" not in meta
    assert tokens == [*map(processor.id_to_piece, range(N_PIECES)), "<|turn|>", "<tool>", *tokens[-2:]]
    assert tokens[-2:] == [f"[PAD{i}]" for i in (N_PIECES + 2, N_PIECES + 3)]
    assert types == [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [3, 4, 5, 5]
    np.testing.assert_array_equal(scores[:N_PIECES], [processor.get_score(i) for i in range(N_PIECES)])
    assert ids == [0, 1, 2]


def test_special_tokens_without_an_id_follow_the_pieces(tmp_path: Path) -> None:
    """As in transformers 5.24; its handling of spaces after them is a warning."""
    config = {
        "additional_special_tokens": ["<|a|>", "<s>", {"content": "<|b|>"}],
        "pad_token": "<pad>",
        "legacy": False,
    }
    write_sentencepiece(tmp_path / "hf", **{"tokenizer_config.json": config})
    found = read_vocabulary(Checkpoint(tmp_path / "hf"), N_PIECES + 2)
    assert found.tokens[-2:] == ["<pad>", "<|a|>"] and list(found.types[-2:]) == [CONTROL, CONTROL]
    assert "special token '<|b|>' would have id" in found.warnings[0] and "legacy false" in found.warnings[1]


def test_sentencepiece_without_dummy_prefix(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "hf", **{"tokenizer.model": proto(dummy_prefix=False)})
    found = read_vocabulary(Checkpoint(tmp_path / "hf"), N_PIECES + 4)
    assert found.add_space_prefix is False


def byte_fallback_json() -> dict[str, Any]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto())
    vocab = {processor.id_to_piece(i): i for i in range(N_PIECES)}
    normal = [text for text in PIECES if len(text) > 1]
    merges = [
        [text[:i], text[i:]] for text in normal for i in range(1, len(text)) if text[:i] in vocab and text[i:] in vocab
    ]
    return {
        "added_tokens": [added(i, text) for i, text in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": template("<s>", "A"),
        "decoder": {"type": "Sequence", "decoders": []},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab, "merges": merges},
    }


def test_byte_fallback_tokenizer_json_tokenizes_like_sentencepiece(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "hf", **{"tokenizer.model": None, "tokenizer.json": byte_fallback_json()})
    found = read_vocabulary(Checkpoint(tmp_path / "hf"), N_PIECES + 4)
    assert found.model == "llama" and found.merges is None and found.scores is not None
    assert found.types.tolist() == [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [5] * 4
    assert found.special.add == {"bos": True, "eos": False}
    # The same order of joining as the model's own scores give.
    own = [sentencepiece.SentencePieceProcessor(model_proto=proto()).get_score(i) for i in range(259, N_PIECES)]
    joined = [i for i, text in enumerate(found.tokens[259:N_PIECES]) if len(text) > 1]
    rebuilt = found.scores[259:N_PIECES]
    assert (
        np.argsort(-rebuilt[joined], kind="stable").tolist()
        == np.argsort(-np.array(own)[joined], kind="stable").tolist()
    )
    assert len(set(rebuilt.tolist())) == len(rebuilt)


@pytest.mark.parametrize(
    ("post_processor", "config", "add"),
    [
        (None, {}, {"bos": False, "eos": False}),
        (None, {"tokenizer_class": "TokenizersBackend"}, {"bos": False, "eos": False}),
        (None, {"add_bos_token": True}, {"bos": True, "eos": False}),
        (None, {"add_eos_token": True}, {"bos": False, "eos": True}),
        (template("A", "</s>"), {}, {"bos": False, "eos": True}),
        (template("<s>", "A"), {}, {"bos": True, "eos": False}),
        # classes whose code puts it there: nothing is said, and readers add it
        (None, {"tokenizer_class": "GemmaTokenizerFast"}, {"eos": False}),
        (None, {"tokenizer_class": "CodeLlamaTokenizer"}, {"eos": False}),
    ],
)
def test_bos_of_byte_fallback(
    tmp_path: Path, post_processor: Any, config: dict[str, Any], add: dict[str, bool]
) -> None:
    json = byte_fallback_json() | {"post_processor": post_processor}
    files = {"tokenizer.json": json, "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"} | config}
    write_sentencepiece(tmp_path / "hf", **files, **{"tokenizer.model": None})
    assert read_vocabulary(Checkpoint(tmp_path / "hf"), N_PIECES + 4).special.add == add
    convert(tmp_path / "hf", tmp_path / "out.gguf")
    ids = Tokenizer.from_gguf(tmp_path / "out.gguf").encode("a")
    assert (ids[0] == 1, ids[-1] == 2) == (add.get("bos", True), add["eos"])


def test_bos_of_a_sentencepiece_model(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "hf")
    assert read_vocabulary(Checkpoint(tmp_path / "hf"), N_PIECES + 4).special.add == {}


def test_a_pre_tokenizer_named_without_effect(tmp_path: Path) -> None:
    """SentencePiece and WordPiece vocabularies have no pre-tokenizer."""
    write_sentencepiece(tmp_path / "model")
    write_sentencepiece(tmp_path / "json", **{"tokenizer.model": None, "tokenizer.json": byte_fallback_json()})
    write_sentencepiece(tmp_path / "words", **{"tokenizer.model": None, "vocab.txt": "\n".join(VOCAB_TXT)})
    for folder, kind in (("model", "SentencePiece's kind"), ("json", "SentencePiece's kind"), ("words", "WordPiece")):
        with pytest.raises(ConvertError, match=rf"{folder}: .*--pre-tokenizer.*{kind}"):
            convert(tmp_path / folder, tmp_path / "out.gguf", pre_tokenizer="qwen2")
        assert not (tmp_path / "out.gguf").exists()
        convert(tmp_path / folder, tmp_path / "out.gguf")
        (tmp_path / "out.gguf").unlink()


def test_metaspace_sets_whether_a_space_is_added(tmp_path: Path) -> None:
    for scheme, wanted in (("never", False), ("first", None), ("always", None)):
        json = byte_fallback_json() | {"normalizer": None}
        json["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}
        write_sentencepiece(tmp_path / scheme, **{"tokenizer.model": None, "tokenizer.json": json})
        assert read_vocabulary(Checkpoint(tmp_path / scheme), N_PIECES + 4).add_space_prefix is wanted


def test_bad_sentencepiece_models(tmp_path: Path) -> None:
    for data, message in ((b"\xff\xff", "not a SentencePiece model"), (proto(3), "kind BPE"), (b"", "0 pieces")):
        write_sentencepiece(tmp_path / "hf", **{"tokenizer.model": data})
        with pytest.raises(ConvertError, match=message):
            convert(tmp_path / "hf", tmp_path / "out.gguf")
    write_sentencepiece(tmp_path / "hf")
    with pytest.raises(ConvertError, match=f"{N_PIECES} pieces"):
        read_vocabulary(Checkpoint(tmp_path / "hf"), N_PIECES - 1)
