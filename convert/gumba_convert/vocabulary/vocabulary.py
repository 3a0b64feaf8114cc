"""Reads the vocabulary of a checkpoint in GGUF's form.

The source is the first of these that exists:

- qwen.tiktoken, tekken.json, or tokenizer.model in tiktoken's form: byte-level BPE by ranks (`bpe_ranks`);
- tokenizer.json of kind WordPiece or Unigram (`word_piece`, `sentence_piece`);
- tokenizer.model, spiece.model or sentencepiece.bpe.model, a SentencePiece model (`sentence_piece`);
- tokenizer.json of kind BPE with byte fallback, a SentencePiece model in another form: scores are rebuilt from the merges;
- tokenizer.json of kind byte-level BPE: tokens, merges and the name of the pre-tokenizer;
- vocab.json and merges.txt, byte-level BPE (`vocab_and_merges`);
- vocab.txt, a WordPiece vocabulary.

Special tokens and the chat template come from tokenizer_config.json and config.json, by the rules of llama.cpp's
converter, so that both converters write the same ids and flags.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gumba.errors import ConvertError
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS
from gumba.tokenizer.vocabulary import KINDS, TEMPLATE_NAMES, TEMPLATE_PREFIX, UNDEFINED_KEY
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.common.sentence_transformers import modules, transformer_settings
from gumba_convert.gguf_writer import boolean, string, strings
from gumba_convert.vocabulary import bpe_ranks as ranks
from gumba_convert.vocabulary import pre_tokenizers, sentence_piece, vocab_and_merges, word_piece
from gumba_convert.vocabulary.special_tokens import (
    AddedToken,
    SpecialTokens,
    added_tokens,
    read_special_tokens,
    tokens_around,
    without_duplicates,
    without_rows,
)
from gumba_convert.vocabulary.tokenizer_class import as_loaded, is_bert
from gumba_convert.vocabulary.tokenizer_steps import add_steps, warn_of_flags
from gumba_convert.vocabulary.tokens import (
    ADDED_SCORE,
    BYTE,
    BYTE_TOKEN,
    CONTROL,
    NORMAL,
    PAD_SCORE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    add,
    ids_in_vocab,
    padding,
    steps,
)

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "Vocabulary", "read_vocabulary"]

#: Gemma 4's marks of reasoning and tool calls: part of an answer's text, although its tokenizer lists them as special.
_GEMMA4_MARKS = {
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
}
#: GGUF's kinds of vocabularies without pre-tokenizers.
_OTHER_KINDS = {"llama": "of SentencePiece's kind", "t5": "of SentencePiece's unigram kind", "bert": "WordPiece"}
#: The models of tokenizer.json by GGUF's kind of vocabulary.
_JSON_KINDS = {"gpt2": "BPE", "gemma4": "BPE", "llama": "BPE", "t5": "Unigram", "bert": "WordPiece"}
#: Prefixes of tokenizer classes and model types whose code adds a BOS that no file names.
_BOS_BY_CODE = ("codellama", "code_llama", "gemma")
_MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
#: Files with a complete vocabulary.
_COMPLETE_FILES = (*_MODEL_FILES, ranks.QWEN_FILE, ranks.TEKKEN_FILE)


def read_vocabulary(checkpoint: Checkpoint, n_rows: int, *, pre_tokenizer: str | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint whose embedding has `n_rows` rows; rows without a token get `[PADn]`.

    Args:
        pre_tokenizer: GGUF's name of the pre-tokenizer, instead of the one found in tokenizer.json.

    Raises:
        ConvertError: no tokenizer, a kind that GGUF does not have, or an inconsistent one.
    """
    if pre_tokenizer is not None and pre_tokenizer not in pre_tokenizers.NAMES:
        known = ", ".join(sorted(pre_tokenizers.NAMES))
        raise ConvertError(f"unknown pre-tokenizer {pre_tokenizer!r}; known are {known}")
    tokenizer = checkpoint.json("tokenizer.json") or {}
    config = checkpoint.json("tokenizer_config.json") or {}
    changes: list[str] = []
    if tokenizer:
        tokenizer, changes = as_loaded(checkpoint, tokenizer, config)
        tokenizer = _with_lowercase(checkpoint, tokenizer)
    elif not any(checkpoint.has(name) for name in _COMPLETE_FILES):
        tokenizer, config = vocab_and_merges.from_files(checkpoint, config) or (tokenizer, config)
    extra = checkpoint.json("added_tokens.json") or {}
    tokenizer, config, warnings = without_rows(tokenizer, config, extra, n_rows)
    tokenizer, config, duplicates = without_duplicates(tokenizer, config)
    special = read_special_tokens(checkpoint, tokenizer, config, n_rows)
    vocabulary = _read(_Source(checkpoint, tokenizer, config, n_rows, special, pre_tokenizer))
    vocabulary.warnings[:0] = [*changes, *warnings, *duplicates, *special.warnings]
    _drop_unset_ends(vocabulary)
    _warn_of_ends(vocabulary, tokenizer, is_bert(checkpoint, config))
    _template_texts(vocabulary)
    if pre_tokenizer is not None:
        _check_named(vocabulary, pre_tokenizer, f"{checkpoint.folder}")
    where = f"{checkpoint.folder / 'tokenizer.json'}"
    vocabulary.added = {
        i: AddedToken(content=vocabulary.tokens[i], special=False, flags=0)
        for i in np.flatnonzero(np.isin(vocabulary.types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    } | {i: token for i, token in added_tokens(tokenizer, config, where).items() if i < n_rows}
    prefix = config.get("add_prefix_space")
    if isinstance(prefix, bool) and vocabulary.model == "llama":
        vocabulary.add_space_prefix = prefix
    model = tokenizer.get("model")
    if isinstance(model, dict) and model.get("type", "BPE") == _JSON_KINDS[vocabulary.model]:
        if vocabulary.model == "llama":
            _merges(
                model, ids_in_vocab(model.get("vocab"), n_rows, where), where
            )  # check them; tokenizer.model is read instead
        add_steps(vocabulary, tokenizer, added_tokens(tokenizer, config, where), where, named=pre_tokenizer is not None)
    else:
        warn_of_flags(vocabulary, f"{checkpoint.folder / 'tokenizer_config.json'}")
    return vocabulary


def _with_lowercase(checkpoint: Checkpoint, tokenizer: JsonObject) -> JsonObject:
    """tokenizer.json as sentence-transformers uses it: `do_lower_case` adds a Lowercase before the normalizers."""
    lowers = bool(modules(checkpoint)) and transformer_settings(checkpoint).flag("do_lower_case", False)
    if not tokenizer or not lowers or _lowercases(tokenizer.get("normalizer")):
        return tokenizer
    normalizers = [{"type": "Lowercase"}, *steps(tokenizer.get("normalizer"), "normalizers")]
    return tokenizer | {"normalizer": {"type": "Sequence", "normalizers": normalizers}}


def _lowercases(normalizer: object) -> bool:
    """Whether a normalizer of tokenizer.json converts texts to lower case."""
    return any(
        step.get("type") == "Lowercase"
        or (step.get("type") == "BertNormalizer" and step.get("lowercase", True) is True)
        for step in steps(normalizer, "normalizers")
    )


def _drop_unset_ends(vocabulary: Vocabulary) -> None:
    """Add no token that does not exist, as in transformers; GGUF readers would refuse the file."""
    ids = {**KINDS[vocabulary.model].special, **vocabulary.special.ids}
    for kind in [kind for kind, wanted in vocabulary.special.add.items() if wanted and kind not in ids]:
        del vocabulary.special.add[kind]
        vocabulary.warnings.append(f"add_{kind}_token is true, but the tokenizer has no {kind}_token: gumba adds none")


def _warn_of_ends(vocabulary: Vocabulary, tokenizer: JsonObject, by_class: bool) -> None:
    """Warn if readers of a WordPiece vocabulary add other tokens around a text than tokenizer.json."""
    around = tokens_around(tokenizer.get("post_processor"))
    if vocabulary.model != "bert" or not tokenizer or by_class:
        return
    ends = [[vocabulary.tokens[vocabulary.special.ids[kind]]] for kind in ("cls", "sep")]
    if [[text for text, _ in side] for side in around] != ends:
        texts = [text for side in around for text, _ in side]
        vocabulary.warnings.append(
            f"tokenizer.json adds {' and '.join(texts) or 'nothing'} to a text; GGUF readers always add the class token "
            "before and the separator after the text of a WordPiece vocabulary"
        )


def _template_texts(vocabulary: Vocabulary) -> None:
    """Store bos_token etc. of chat templates if they differ from the text of the file's special token."""
    special = vocabulary.special
    ids = {**KINDS[vocabulary.model].special, **special.ids}
    undefined = []
    for name, kind in TEMPLATE_NAMES.items():
        if kind not in special.texts or not special.named_in_templates(name):
            continue
        text, token = special.texts[kind], vocabulary.tokens[ids[kind]] if kind in ids else None
        if text is None and token is not None:
            undefined.append(name)
            vocabulary.template_texts[UNDEFINED_KEY] = strings(undefined)
        elif text is not None and text != token:
            vocabulary.template_texts[TEMPLATE_PREFIX + name] = string(text)
        else:
            continue
        vocabulary.warnings.append(
            f"the chat template's {name} is {'undefined' if text is None else repr(text)}, from the tokenizer's files; "
            f"llama.cpp uses {token or ''!r}"
        )


def _check_named(vocabulary: Vocabulary, pre_tokenizer: str, where: str) -> None:
    """Refuse the name of a pre-tokenizer that has no effect."""
    if vocabulary.model in _OTHER_KINDS:
        own = f"its vocabulary is {_OTHER_KINDS[vocabulary.model]}, only byte-level BPE has pre-tokenizers"
    elif vocabulary.pre != pre_tokenizer:
        own = f"the form of its vocabulary implies {vocabulary.pre!r}"
    else:
        return
    raise ConvertError(f"{where}: a pre-tokenizer cannot be named (--pre-tokenizer, pre_tokenizer=): {own}")


class _Source(NamedTuple):
    """The files of a vocabulary and what was read of them; `tokenizer`: tokenizer.json, `config`: tokenizer_config.json."""

    checkpoint: Checkpoint
    tokenizer: JsonObject
    config: JsonObject
    n_rows: int
    special: SpecialTokens
    pre_tokenizer: str | None


def _read(source: _Source) -> Vocabulary:
    checkpoint, tokenizer, config, n_rows, special, pre_tokenizer = source
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind == "WordPiece":
        return word_piece.from_json(checkpoint, tokenizer, config, n_rows, special)
    if kind == "Unigram":
        return sentence_piece.unigram_from_json(checkpoint, tokenizer, config, n_rows, special)
    for name in _MODEL_FILES:
        data = checkpoint.bytes(name)
        if data is not None and ranks.is_tiktoken(data):
            if tokenizer:  # which defines the pre-tokenizer
                break
            return ranks.from_model(checkpoint, data, config, n_rows, special, pre_tokenizer)
        if data is not None:
            return sentence_piece.from_model(checkpoint, name, data, tokenizer, config, n_rows, special)
    if tokenizer:
        return _tokenizer_json(source)
    ranked = checkpoint.bytes(ranks.QWEN_FILE)
    if ranked is not None:
        return ranks.qwen(checkpoint, ranked, n_rows, special)
    tekken = checkpoint.json(ranks.TEKKEN_FILE)
    if tekken is not None:
        return ranks.tekken(checkpoint, tekken, n_rows, special)
    words = checkpoint.text("vocab.txt")
    if words is not None:
        return word_piece.from_text(checkpoint, words, config, n_rows, special)
    raise ConvertError(
        f"{checkpoint.folder}: no tokenizer.json and no tokenizer.model (nor {ranks.QWEN_FILE}, {ranks.TEKKEN_FILE}, "
        "spiece.model, vocab.json with merges.txt, vocab.txt)"
    )


def _tokenizer_json(source: _Source) -> Vocabulary:
    checkpoint, tokenizer, config, n_rows, special, pre_tokenizer = source
    where = f"{checkpoint.folder / 'tokenizer.json'}"
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise ConvertError(f"{where}: model of type {kind!r}; only BPE, WordPiece and Unigram are supported")
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ConvertError(f"{where}: {option} {model[option]!r} is not supported")
    vocab = ids_in_vocab(model.get("vocab"), n_rows, where)
    tokens, types = padding(n_rows)
    for text, i in vocab.items():
        tokens[i], types[i] = text, NORMAL
    added = added_tokens(tokenizer, config, where)
    for i, token in added.items():
        if i < n_rows and types[i] != UNUSED and tokens[i] != token["content"]:
            raise ConvertError(f"{where}: id {i} is both {tokens[i]!r} and the added token {token['content']!r}")
    merges = _merges(model, vocab, where)
    if model.get("byte_fallback"):
        unknown = model.get("unk_token") or config.get("unk_token") or "<unk>"
        if isinstance(unknown, str) and unknown in vocab:
            types[vocab[unknown]] = UNKNOWN
            special.ids.setdefault("unk", vocab[unknown])
        for text, i in vocab.items():
            if BYTE_TOKEN.fullmatch(text):
                types[i] = BYTE
        scores = _scores(tokens, merges)
        add(tokens, types, added)
        name = pre_tokenizer or ("gemma4" if _is_gemma4(checkpoint) else "default")
        if PRE_TOKENIZERS[name].characters:
            if name == "gemma4":
                types[[i for i, text in enumerate(tokens) if text in _GEMMA4_MARKS]] = USER_DEFINED
            joined = [f"{left} {right}" for left, right in merges]
            special.add.setdefault("bos", PRE_TOKENIZERS[name].add_bos)
            return Vocabulary("gemma4" if name == "gemma4" else "gpt2", name, tokens, types, special, merges=joined)
        scores[types != NORMAL] = 0.0
        scores[types == USER_DEFINED] = ADDED_SCORE
        scores[types == UNUSED] = PAD_SCORE
        prefix = None if _has_dummy_prefix(tokenizer) else False
        if not _has_bos_by_code(checkpoint, config):  # readers add a BOS by default; the post-processor adds none
            special.add.setdefault("bos", False)
        special.add.setdefault("eos", False)
        return Vocabulary("llama", "default", tokens, types, special, scores=scores, add_space_prefix=prefix)
    add(tokens, types, added)
    pre = pre_tokenizer
    if pre is None:
        ignore_merges = bool(model.get("ignore_merges"))
        pre = pre_tokenizers.detect(tokenizer.get("pre_tokenizer"), ignore_merges=ignore_merges)[0] or "default"
    special.add.setdefault("bos", False)  # readers differ in their default; the post-processor adds none
    joined = [f"{left} {right}" for left, right in merges]
    vocabulary = Vocabulary("gpt2", pre, tokens, types, special, merges=joined)
    if pre == "whitespace":
        lowercase = any(step.get("type") == "Lowercase" for step in steps(tokenizer.get("normalizer"), "normalizers"))
        vocabulary.more["normalizer.lowercase"] = boolean(lowercase)
    return vocabulary


def _has_bos_by_code(checkpoint: Checkpoint, config: JsonObject) -> bool:
    """Whether the code of the tokenizer's class (by default that of the model's type) adds a BOS."""
    name = config.get("tokenizer_class") or checkpoint.config.get("model_type")
    return isinstance(name, str) and name.lower().startswith(_BOS_BY_CODE)


def _is_gemma4(checkpoint: Checkpoint) -> bool:
    """Gemma 4 has merges whose order scores cannot express; its GGUF files keep them."""
    text_config = checkpoint.config.get("text_config")
    kinds = [
        checkpoint.config.get("model_type"),
        text_config.get("model_type") if isinstance(text_config, dict) else None,
    ]
    return any(isinstance(kind, str) and kind.startswith("gemma4") for kind in kinds)


def _merges(model: JsonObject, vocab: dict[str, int], where: str) -> list[tuple[str, str]]:
    """The merges as pairs, from either form ("a b" or ["a", "b"]); both parts and their concatenation are tokens."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise ConvertError(f"{where}: no list of merges")
    pairs: list[tuple[str, str]] = []
    for i, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise ConvertError(f"{where}: merge {i}, {str(merge)[:80]!r}, is not a pair of tokens")
        left, right = parts
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ConvertError(f"{where}: merge {i}, {left!r} + {right!r}, contains or forms an unknown token")
        if " " in left or " " in right:
            raise ConvertError(f"{where}: merge {i}, {left!r} + {right!r}, has a space, which GGUF cannot store")
        pairs.append((left, right))
    return pairs


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> np.ndarray:
    """Scores for which merging the best-scored pair first equals applying the merges in order.

    llama.cpp's converter gives every token -1000 here, which loses the order.
    """
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    n = len(ranks)
    return np.array([-float(ranks.get(text, n + i)) for i, text in enumerate(tokens)], np.float32)


def _has_dummy_prefix(tokenizer: JsonObject) -> bool:
    """Whether the tokenizer adds a space before the text."""
    if any(step.get("type") == "Prepend" for step in steps(tokenizer.get("normalizer"), "normalizers")):
        return True
    return any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    )
