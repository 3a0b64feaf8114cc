"""Changes of transformers to a tokenizer.json by the tokenizer's class and other files: the ids are equal.

The ids are those of AutoTokenizer of transformers 5.24 on a folder with these files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gumba import Tokenizer
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.vocabulary.vocabulary import Vocabulary, read_vocabulary
from support.tokenizer_steps import GOLDENS, opened

BERT_TEXT = "Café ÉCOLE İstanbul 中文字 [MASK] x [MASK]y"
BERT_NAMES = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "cls", "sep", "pad", "mask")}
TEXT = "<tool> a<tool> b xfox fox. quick <|end|>"
LOWER = [2, 318, 35, 171, 141, 145, 139, 241, 151, 137, 161, 190, 160, 145, 108, 109, 1, 4, 52, 4, 1, 3]
CASED = [2, 1, 1, 60, 159, 151, 137, 161, 190, 160, 145, 108, 109, 1, 4, 52, 4, 1, 3]
WHOLE = [2, 318, 35, 171, 141, 145, 139, 241, 151, 137, 161, 190, 160, 145, 1, 4, 52, 4, 1, 3]
ACCENTS = [
    2,
    235,
    138,
    177,
    57,
    171,
    141,
    145,
    139,
    359,
    159,
    151,
    137,
    161,
    190,
    160,
    145,
    108,
    109,
    1,
    4,
    52,
    4,
    1,
    3,
]
STRIPPED = [2, 1, 1, 26, 159, 151, 137, 161, 190, 160, 145, 108, 109, 1, 4, 52, 4, 1, 3]


def read(folder: Path, kind: str, settings: dict[str, Any], **files: Any) -> tuple[Vocabulary, Tokenizer]:
    folder.mkdir()
    content = {"tokenizer": GOLDENS["kinds"][kind], "config": {}, "tokenizer_config": settings} | files
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    vocabulary = read_vocabulary(Checkpoint(folder), 500)
    return vocabulary, opened(folder / "v.gguf", vocabulary)


@pytest.mark.parametrize(
    ("normalizer", "config", "model_type", "ids"),
    [
        ({}, {"tokenizer_class": "BertTokenizer", "do_lower_case": False}, "bert", CASED),
        ({}, {"tokenizer_class": "ElectraTokenizerFast", "do_lower_case": False}, "electra", CASED),
        ({"lowercase": False}, {"tokenizer_class": "BertTokenizer"}, "bert", CASED),
        ({"lowercase": False}, {"tokenizer_class": "MPNetTokenizer", "do_lower_case": True}, "mpnet", LOWER),
        ({"lowercase": False}, {}, "bert", CASED),
        ({}, {"tokenizer_class": "BertTokenizer", "strip_accents": False}, "bert", ACCENTS),
        ({}, {"tokenizer_class": "BertTokenizer", "strip_accents": True, "do_lower_case": False}, "bert", STRIPPED),
        ({}, {"tokenizer_class": "DistilBertTokenizer", "tokenize_chinese_chars": False}, "distilbert", WHOLE),
        ({"handle_chinese_chars": False}, {"tokenizer_class": "BertTokenizer"}, "bert", WHOLE),
        ({}, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}, "bert", LOWER),
    ],
)
def test_normalizer_of_berts_classes(
    tmp_path: Path, normalizer: dict[str, Any], config: dict[str, Any], model_type: str, ids: list[int]
) -> None:
    state = GOLDENS["kinds"]["words"] | {"normalizer": {"type": "BertNormalizer"} | normalizer}
    vocabulary, tokenizer = read(
        tmp_path / "hf", "words", BERT_NAMES | config, tokenizer=state, config={"model_type": model_type}
    )
    assert tokenizer.encode(BERT_TEXT, parse_special=True) == ids
    of_bert = config.get("tokenizer_class") != "PreTrainedTokenizerFast"
    named = of_bert and bool(config.keys() - {"tokenizer_class"})
    warnings = "\n".join(vocabulary.warnings)
    assert ("replace the normalizer of tokenizer.json" in warnings) == named
    assert ("the normalizer of tokenizer.json is kept" in warnings) == (of_bert and not named)


def test_an_equal_normalizer_causes_no_warning(tmp_path: Path) -> None:
    state = GOLDENS["kinds"]["words"] | {"normalizer": {"type": "BertNormalizer", "strip_accents": None}}
    vocabulary, _ = read(tmp_path / "hf", "words", BERT_NAMES | {"tokenizer_class": "BertTokenizer"}, tokenizer=state)
    assert vocabulary.warnings == []


@pytest.mark.parametrize(
    ("config", "files", "ids"),
    [
        (
            {},
            {"added_tokens": {"<tool>": 400, "a": 5}},
            [400, 224, 68, 400, 297, 299, 269, 274, 17, 224, 344, 338, 224, 3],
        ),
        (
            {"additional_special_tokens": ["<tool>", {"content": "fox"}]},
            {},
            [400, 296, 400, 297, 299, 269, 224, 269, 17, 224, 344, 338, 224, 3],
        ),
        (
            {"boi_token": "<tool>", "image_token": "fox"},
            {},
            [400, 296, 400, 297, 299, 269, 224, 269, 17, 224, 344, 338, 224, 3],
        ),
        (
            {"extra_special_tokens": {"image_token": "fox"}},
            {"added_tokens": {"<tool>": 400}},
            [400, 296, 400, 297, 299, 269, 224, 269, 17, 224, 344, 338, 224, 3],
        ),
        (
            {"eos_token": "quick"},
            {},
            [31, 87, 82, 82, 79, 33, 296, 31, 87, 82, 82, 79, 33, 297, 299, 269, 274, 17, 224, 400, 224, 3],
        ),
        (
            {},
            {"special_tokens_map": {"eos_token": "quick"}},
            [31, 87, 82, 82, 79, 33, 296, 31, 87, 82, 82, 79, 33, 297, 299, 269, 274, 17, 224, 400, 224, 3],
        ),
    ],
)
def test_added_tokens_that_tokenizer_json_does_not_list(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], ids: list[int]
) -> None:
    _, tokenizer = read(tmp_path / "hf", "bytes", config, **files)
    assert tokenizer.encode(TEXT, add_special=False, parse_special=True) == ids


@pytest.mark.parametrize(("name", "first"), [("GPT2Tokenizer", 224), ("PreTrainedTokenizerFast", 31)])
def test_a_space_before_the_text(tmp_path: Path, name: str, first: int) -> None:
    _, tokenizer = read(tmp_path / "hf", "bytes", {"tokenizer_class": name, "add_prefix_space": True})
    assert tokenizer.encode(TEXT, add_special=False)[0] == first


def template(*names: str, ids: dict[str, int]) -> dict[str, Any]:
    parts = [{"Sequence": {"id": "A"}} if name == "A" else {"SpecialToken": {"id": name}} for name in names]
    tokens = {
        name: {"id": name, "ids": [i], "tokens": [["<unk>", "<s>", "</s>", "<|end|>"][i]]} for name, i in ids.items()
    }
    return {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B"}}],
        "special_tokens": tokens,
    }


ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
ROBERTA = {"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}


@pytest.mark.parametrize(
    ("processor", "config", "ids"),
    [
        (template("<s>", "A", "</s>", ids={"<s>": 1, "</s>": 2}), ENDS, [1, 2]),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, ROBERTA]}, ENDS, [1, 2]),
        (template("BOS", "A", ids={"BOS": 3}), {}, [3]),
        (template("<|end|>", "A", ids={"<|end|>": 3}), ENDS, [3]),
        (None, {"add_bos_token": True}, []),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_tokens_around_a_text(
    tmp_path: Path, processor: dict[str, Any] | None, config: dict[str, Any], ids: list[int], deep: bool
) -> None:
    """Whatever name tokenizer_config.json has for the token that the post-processor adds."""
    step = {"type": "Sequence", "processors": [{"type": "Sequence", "processors": [processor]}]}
    state = GOLDENS["kinds"]["bytes"] | {"post_processor": step if deep and processor else processor}
    _, tokenizer = read(tmp_path / "hf", "bytes", config, tokenizer=state)
    assert tokenizer.encode("") == ids


@pytest.mark.parametrize("add", [False, True])
def test_conflicting_bos_settings(tmp_path: Path, add: bool) -> None:
    processor = None if add else template("<s>", "A", ids={"<s>": 1})
    state = GOLDENS["kinds"]["bytes"] | {"post_processor": processor}
    vocabulary, tokenizer = read(tmp_path / "hf", "bytes", ENDS | {"add_bos_token": add}, tokenizer=state)
    assert tokenizer.encode("") == [1] * add
    assert f"add_bos_token is {str(add).lower()}, unlike the post-processor" in vocabulary.warnings[0]


def test_word_piece_without_class_and_separator_causes_a_warning(tmp_path: Path) -> None:
    vocabulary, _ = read(tmp_path / "hf", "words", BERT_NAMES)
    assert "adds nothing to a text" in vocabulary.warnings[0]
    swapped = {"type": "BertProcessing", "cls": ["[SEP]", 3], "sep": ["[CLS]", 2]}
    vocabulary, _ = read(
        tmp_path / "swapped", "words", BERT_NAMES, tokenizer=GOLDENS["kinds"]["words"] | {"post_processor": swapped}
    )
    assert "adds [SEP] and [CLS] to a text" in vocabulary.warnings[0]


@pytest.mark.parametrize(
    ("processor", "ids"), [(None, []), (template("<s>", "A", ids={"<s>": 1}), [1]), (ROBERTA, [1, 2])]
)
def test_sentence_piece_follows_the_post_processor(
    tmp_path: Path, processor: dict[str, Any] | None, ids: list[int]
) -> None:
    settings = ENDS | {"unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    state = GOLDENS["kinds"]["pieces"] | {"post_processor": processor}
    _, tokenizer = read(tmp_path / "pieces", "pieces", settings, tokenizer=state)
    assert tokenizer.encode("") == ids


def test_flags_missing_in_tokenizer_config_are_unset(tmp_path: Path) -> None:
    token = {"id": 400, "content": "<tool>", "special": False, "normalized": False, "lstrip": True}
    bytes_ = GOLDENS["kinds"]["bytes"]
    state = bytes_ | {"added_tokens": [*bytes_["added_tokens"], token]}
    _, tokenizer = read(
        tmp_path / "hf", "bytes", {"added_tokens_decoder": {"400": {"content": "<tool>"}}}, tokenizer=state
    )
    assert tokenizer.encode(" <tool>", add_special=False) == [224, 400]
