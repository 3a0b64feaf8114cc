"""Small tokenizers for the tiny models of make_classifier_goldens.py: tokenizer.json and tokenizer_config.json of each kind."""

from __future__ import annotations

import string
from typing import Any

LETTERS = [chr(c) for c in range(33, 127)]
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}


def tokenizer_files(kind: str, n_vocab: int) -> dict[str, Any]:
    """The files of a tokenizer of `n_vocab` tokens or fewer."""
    made: dict[str, Any] = {
        "bytes": _bytes,
        "roberta": _roberta,
        "words": _words,
        "mpnet": _mpnet,
        "pieces": _pieces,
        "yes_no": _yes_no,
    }[kind](n_vocab)
    return made


def _special(texts: list[str]) -> list[dict[str, Any]]:
    rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": text, **rules} for i, text in enumerate(texts)]


def _byte_pairs(
    n_vocab: int, special: list[str], processor: dict[str, Any] | None, more: tuple[tuple[str, str], ...] = ()
) -> dict[str, Any]:
    merges = [["a", "b"], ["ab", "c"], ["Ġ", "t"], *map(list, more)]
    texts = [*special, *LETTERS, "Ġ", "Ċ", *("".join(pair) for pair in merges)]
    return {
        "version": "1.0",
        "added_tokens": _special(special),
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(texts[:n_vocab])}, "merges": merges},
    }


def _bytes(n_vocab: int) -> dict[str, Any]:
    return {
        "tokenizer.json": _byte_pairs(n_vocab, ["<|unk|>", "<|im_start|>", "<|im_end|>"], None),
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    }


def _yes_no(n_vocab: int) -> dict[str, Any]:
    """As Qwen's, with the words yes and no as tokens, and marks of reasoning that are no control tokens."""
    merges = (("y", "e"), ("ye", "s"), ("n", "o"))
    made = _byte_pairs(n_vocab, ["<|unk|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"], None, merges)
    for token in made["added_tokens"][3:]:
        token["special"] = False
    return {"tokenizer.json": made, "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|unk|>"}}


def _roberta(n_vocab: int) -> dict[str, Any]:
    processor = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
    processor["add_prefix_space"] = False
    return {
        "tokenizer.json": _byte_pairs(n_vocab, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], processor),
        "tokenizer_config.json": ROBERTA,
    }


def _mpnet(n_vocab: int) -> dict[str, Any]:
    """WordPiece with RoBERTa's special tokens."""
    config = ROBERTA | {"unk_token": "[UNK]", "mask_token": "<mask>"}
    made: dict[str, Any] = _words(n_vocab, ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"])
    made["tokenizer.json"]["post_processor"] = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]} | {
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    return made | {"tokenizer_config.json": config}


def _words(n_vocab: int, special: list[str] | None = None) -> dict[str, Any]:
    small = [*string.ascii_lowercase, *string.digits]
    words = ["the", "cat", "sat", "on", "mat", "dog", "ran", "##ing", "##ed"]
    special = special or list(BERT.values())
    texts = [*special, *string.punctuation, *words, *small, *("##" + letter for letter in small)][:n_vocab]
    return {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": _special(special),
            "normalizer": {
                "type": "BertNormalizer",
                "lowercase": True,
                "strip_accents": None,
                "clean_text": True,
                "handle_chinese_chars": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {text: i for i, text in enumerate(texts)},
            },
        },
        "tokenizer_config.json": BERT,
    }


def _pieces(n_vocab: int) -> dict[str, Any]:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    texts = [*special, "▁", *LETTERS, "▁the", "▁c", "at"][:n_vocab]
    processor = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": _special(special),
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
            "post_processor": processor | {"add_prefix_space": True},
            "model": {
                "type": "Unigram",
                "unk_id": 3,
                "vocab": [[text, -0.1 * i if i > 3 else 0.0] for i, text in enumerate(texts)],
                "byte_fallback": False,
            },
        },
        "tokenizer_config.json": ROBERTA | {"unk_token": "<unk>"},
    }
