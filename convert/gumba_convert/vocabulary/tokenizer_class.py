"""Reproduces the changes that transformers makes to a tokenizer.json when it loads it, by class and by other files.

The rules are those of transformers 5.24. BERT-like classes take their normalizer from tokenizer_config.json, GPT-2-like classes
the space before a text; special tokens that any file names are added tokens, listed or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.vocabulary.special_tokens import FLAGS, KINDS, text_of

#: Classes, without "Tokenizer" and "Fast", whose normalizer is built from tokenizer_config.json.
_BERT = ("Bert", "DistilBert", "Electra", "MPNet")
#: Classes that take the space before a text from tokenizer_config.json.
_BYTE_LEVEL = ("GPT2", "Roberta")
#: Classes by config.json's `model_type`, if no file names one.
_BY_MODEL_TYPE = {
    "bert": "Bert", "distilbert": "Bert", "electra": "Bert", "nomic_bert": "Bert", "mpnet": "MPNet", "gpt2": "GPT2",
    "roberta": "Roberta",
}  # fmt: skip


def tokenizer_class(checkpoint: Checkpoint, config: JsonObject) -> str:
    """The class that a file names, without "Tokenizer" and "Fast"; else that of the model's type; "" if unknown."""
    name = config.get("tokenizer_class") or checkpoint.config.get("tokenizer_class")
    if isinstance(name, str):
        return name.removesuffix("Fast").removesuffix("Tokenizer")
    return _BY_MODEL_TYPE.get(str(checkpoint.config.get("model_type")), "")


def is_bert(checkpoint: Checkpoint, config: JsonObject) -> bool:
    """Whether the tokenizer's class is BERT-like: it adds the class token and the separator to every text."""
    return tokenizer_class(checkpoint, config) in _BERT


def as_loaded(checkpoint: Checkpoint, tokenizer: JsonObject, config: JsonObject) -> tuple[JsonObject, list[str]]:
    """tokenizer.json as transformers loads it, and warnings about differences from the file.

    Args:
        tokenizer: tokenizer.json, not empty. config: tokenizer_config.json, or empty.
    """
    name, model, warnings = tokenizer_class(checkpoint, config), tokenizer.get("model"), []
    kind = model.get("type") if isinstance(model, dict) else None
    if name in _BERT and kind == "WordPiece":
        own = _with_all_options(tokenizer.get("normalizer"))
        normalizer = _bert_normalizer(config, own)
        if own != normalizer:
            tokenizer = {**tokenizer, "normalizer": normalizer}
            warnings.append(
                f"the tokenizer's class ({name}Tokenizer) and tokenizer_config.json replace the normalizer of tokenizer.json: "
                + _options(normalizer)
            )
        elif (rebuilt := _bert_normalizer(config, {})) != own:
            warnings.append(
                f"the normalizer of tokenizer.json is kept; transformers 5 replaces it with the defaults of {name}Tokenizer, as "
                f"tokenizer_config.json does not name its options: {_options(rebuilt)}"
            )
    if config.get("split_special_tokens") is True:
        warnings.append(
            "tokenizer_config.json: split_special_tokens is true: omitted; gumba reads the texts of special tokens as "
            "text by default"
        )
    prefix = config.get("add_prefix_space")
    if name in _BYTE_LEVEL and isinstance(prefix, bool):
        tokenizer = {**tokenizer, "pre_tokenizer": _with_prefix(tokenizer.get("pre_tokenizer"), prefix)}
    added = list(_unlisted(checkpoint, tokenizer, config))
    if added:
        listed = tokenizer.get("added_tokens")
        tokenizer = {**tokenizer, "added_tokens": [*(listed if isinstance(listed, list) else []), *added]}
    return tokenizer, warnings


#: Options of a BertNormalizer by their names in tokenizer_config.json.
_BERT_OPTIONS = {
    "tokenize_chinese_chars": "handle_chinese_chars", "strip_accents": "strip_accents", "do_lower_case": "lowercase",
}  # fmt: skip
_BERT_DEFAULTS = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}


def _bert_normalizer(config: JsonObject, own: Any) -> Any:
    """The normalizer ``own`` of tokenizer.json with the options that tokenizer_config.json names.

    Options that neither file names have the defaults of BERT's class. transformers 5 uses these defaults for all options that
    tokenizer_config.json does not name, despite tokenizer.json; the tokenizers library reads tokenizer.json only.
    """
    named = {ours: config[theirs] for theirs, ours in _BERT_OPTIONS.items() if isinstance(config.get(theirs), bool)}
    if own != {} and not named:
        return own
    options = own if isinstance(own, dict) and own.get("type") == "BertNormalizer" else {}
    return {"type": "BertNormalizer", **_BERT_DEFAULTS, **options, **named}


def _options(normalizer: JsonObject) -> str:
    return ", ".join(f"{key} {str(value).lower()}" for key, value in normalizer.items() if key != "type")


def _with_all_options(step: object) -> object:
    """A BertNormalizer with all options, in their default order; any other step unchanged."""
    if not isinstance(step, dict) or step.get("type") != "BertNormalizer":
        return step
    return {"type": "BertNormalizer", **{key: step.get(key, value) for key, value in _BERT_DEFAULTS.items()}}


def _with_prefix(step: object, prefix: bool) -> object:
    """A pre-tokenizer with `add_prefix_space` of its ByteLevel step set to `prefix`."""
    if not isinstance(step, dict):
        return step
    inner = step.get("pretokenizers")
    if isinstance(inner, list):
        return {**step, "pretokenizers": [_with_prefix(item, prefix) for item in inner]}
    return {**step, "add_prefix_space": prefix} if step.get("type") == "ByteLevel" else step


def _unlisted(checkpoint: Checkpoint, tokenizer: JsonObject, config: JsonObject) -> Iterator[JsonObject]:
    """Added tokens that tokenizer.json does not list: those of added_tokens.json, and special tokens that a file names.

    The two older files apply if tokenizer_config.json has no `added_tokens_decoder`. A token without an id gets the next one.
    """
    listed, decoder = tokenizer.get("added_tokens"), config.get("added_tokens_decoder")
    older = not isinstance(decoder, dict)
    extra = (checkpoint.json("added_tokens.json") or {}) if older else {}
    named = [*named_tokens(config), *(named_tokens(checkpoint.json("special_tokens_map.json") or {}) if older else [])]
    entries = [*(listed if isinstance(listed, list) else []), *(decoder.values() if isinstance(decoder, dict) else [])]
    known = {text_of(entry) for entry in entries}
    ids = extra | _ids(tokenizer.get("model"))  # the tokenizers library prefers the id in the vocabulary
    numbers = [*ids.values(), *(entry.get("id") for entry in entries if isinstance(entry, dict))]
    numbers += [int(i) for i in decoder if i.isdecimal()] if isinstance(decoder, dict) else []
    free = max((i for i in numbers if type(i) is int), default=-1) + 1
    special = {text_of(entry) for entry in named}
    for entry in [*({"content": text, "normalized": text not in special} for text in extra), *named]:
        text = text_of(entry)
        if text is None or text in known:
            continue
        known.add(text)
        flags = {name: isinstance(entry, dict) and entry.get(name) is True for name in FLAGS}
        yield {"id": ids.get(text, free), "content": text, "special": text in special, **flags}
        free += text not in ids


def _ids(model: object) -> JsonObject:
    """The ids of the texts in the vocabulary of tokenizer.json."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):
        return {
            piece[0]: i
            for i, piece in enumerate(vocab)
            if isinstance(piece, list) and piece and isinstance(piece[0], str)
        }
    return dict(vocab) if isinstance(vocab, dict) else {}


def named_tokens(config: JsonObject) -> Iterator[object]:
    """The special tokens that a file names: by kind, in lists, or by other names."""
    yield from (config.get(f"{kind}_token") for kind in KINDS)
    yield from (text for key, text in config.items() if key.endswith("_token") and isinstance(text, str))
    for key in ("extra_special_tokens", "additional_special_tokens"):
        more = config.get(key)
        yield from more if isinstance(more, list) else more.values() if isinstance(more, dict) else []
