"""The vocabulary of a checkpoint, as GGUF stores it.

Three kinds of source:

- tokenizer.model, a SentencePiece model of kind BPE: pieces, scores and types are taken as they are;
- tokenizer.json of kind BPE with byte fallback, which is a SentencePiece model in another form: the scores are rebuilt
  from the merges;
- tokenizer.json of kind byte-level BPE: tokens, merges and the name of the pre-tokenizer.

Special tokens and the chat template come from tokenizer_config.json and config.json, by the rules of llama.cpp's
converter, so that both converters write the same ids and flags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gumba.errors import ConvertError
from gumba_convert import pre_tokenizers
from gumba_convert.checkpoint import Checkpoint
from gumba_convert.gguf_writer import Value, boolean, f32_array, i32_array, string, strings, u32
from gumba_convert.special_tokens import SpecialTokens, added_tokens, read_special_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Added tokens of this look are control tokens even where the checkpoint does not say so.
CONTROL_LOOK = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)


@dataclass
class Vocabulary:
    """Tokens with their GGUF types, one per row of the embedding; `scores` for SentencePiece, `merges` for BPE."""

    model: str
    pre: str
    tokens: list[str]
    types: np.ndarray
    special: SpecialTokens
    scores: np.ndarray | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    warnings: list[str] = field(default_factory=list)

    def metadata(self) -> dict[str, Value]:
        """The `tokenizer.*` metadata."""
        result = {
            "tokenizer.ggml.model": string(self.model),
            "tokenizer.ggml.pre": string(self.pre),
            "tokenizer.ggml.tokens": strings(self.tokens),
            "tokenizer.ggml.token_type": i32_array(self.types),
        }
        if self.scores is not None:
            result["tokenizer.ggml.scores"] = f32_array(self.scores)
        if self.merges is not None:
            result["tokenizer.ggml.merges"] = strings(self.merges)
        if self.add_space_prefix is not None:
            result["tokenizer.ggml.add_space_prefix"] = boolean(self.add_space_prefix)
        for kind, token in self.special.ids.items():
            key = {"unk": "unknown", "sep": "seperator", "pad": "padding"}.get(kind, kind)  # GGUF's own spelling
            result[f"tokenizer.ggml.{key}_token_id"] = u32(token)
        for kind, add in self.special.add.items():
            result[f"tokenizer.ggml.add_{kind}_token"] = boolean(add)
        result |= self.special.template_metadata()
        return result


def read_vocabulary(checkpoint: Checkpoint, n_rows: int, *, pre_tokenizer: str | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint whose embedding has `n_rows` rows; rows without a token get `[PADn]`.

    Args:
        pre_tokenizer: GGUF's name of the pre-tokenizer, instead of the one found in tokenizer.json.

    Raises:
        ConvertError: no tokenizer, a kind that GGUF's llama models do not have, or an inconsistent one.
    """
    if pre_tokenizer is not None and pre_tokenizer not in pre_tokenizers.NAMES:
        raise ConvertError(f"unknown pre-tokenizer {pre_tokenizer!r}; known are {', '.join(pre_tokenizers.NAMES)}")
    tokenizer = checkpoint.json("tokenizer.json") or {}
    config = checkpoint.json("tokenizer_config.json") or {}
    special = read_special_tokens(checkpoint, tokenizer, config, n_rows)
    proto = checkpoint.bytes("tokenizer.model")
    if proto is not None:
        vocabulary = _sentencepiece(checkpoint, proto, tokenizer, config, n_rows, special)
    elif not tokenizer:
        raise ConvertError(f"{checkpoint.folder}: no tokenizer.json and no tokenizer.model")
    else:
        vocabulary = _tokenizer_json(checkpoint, tokenizer, config, n_rows, special, pre_tokenizer)
    prefix = config.get("add_prefix_space")
    if isinstance(prefix, bool):
        vocabulary.add_space_prefix = prefix
    return vocabulary


def _added_type(token: dict[str, Any]) -> int:
    return CONTROL if token["special"] or CONTROL_LOOK.fullmatch(token["content"]) else USER_DEFINED


def _add(tokens: list[str], types: np.ndarray, added: dict[int, dict[str, Any]], where: str) -> None:
    """Put the added tokens in their places."""
    for token_id, token in added.items():
        if token_id >= len(tokens):
            raise ConvertError(
                f"{where}: added token {token['content']!r} has id {token_id}, "
                f"but the model's embedding has {len(tokens)} rows"
            )
        kind = _added_type(token)
        if types[token_id] not in (UNKNOWN, BYTE):
            types[token_id] = kind
        tokens[token_id] = token["content"].replace("▁", " ") if kind == USER_DEFINED else token["content"]


def _sentencepiece(
    checkpoint: Checkpoint,
    proto: bytes,
    tokenizer: dict[str, Any],
    config: dict[str, Any],
    n_rows: int,
    special: SpecialTokens,
) -> Vocabulary:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    where = f"{checkpoint.folder / 'tokenizer.model'}"
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(proto)
    except DecodeError:
        raise ConvertError(f"{where}: not a SentencePiece model") from None
    if model.trainer_spec.model_type != 2:
        raise ConvertError(f"{where}: only SentencePiece models of kind BPE are supported")
    if not 0 < len(model.pieces) <= n_rows:
        raise ConvertError(f"{where}: {len(model.pieces)} pieces, but the model's embedding has {n_rows} rows")
    tokens = [f"[PAD{i}]" for i in range(n_rows)]
    scores = np.full(n_rows, PAD_SCORE, np.float32)
    types = np.full(n_rows, UNUSED, np.int32)
    for i, piece in enumerate(model.pieces):
        tokens[i], scores[i], types[i] = piece.piece, piece.score, piece.type
    # Where there is no list of added tokens with their kinds, added_tokens.json has at least their ids.
    extra = checkpoint.json("added_tokens.json") or {}
    added = {
        i: {"content": text, "special": False}
        for text, i in extra.items()
        if type(i) is int and len(model.pieces) <= i < n_rows
    }
    added |= added_tokens(tokenizer, config, where)
    added = {i: token for i, token in added.items() if tokens[i : i + 1] != [token["content"]] or types[i] == NORMAL}
    for i in added:
        scores[i : i + 1] = ADDED_SCORE
    _add(tokens, types, added, where)
    trainer = model.trainer_spec
    for kind, i in (("bos", trainer.bos_id), ("eos", trainer.eos_id), ("unk", trainer.unk_id)):
        if 0 <= i < len(model.pieces):
            special.ids.setdefault(kind, i)
    prefix = None if model.normalizer_spec.add_dummy_prefix else False
    return Vocabulary("llama", "default", tokens, types, special, scores=scores, add_space_prefix=prefix)


def _tokenizer_json(
    checkpoint: Checkpoint,
    tokenizer: dict[str, Any],
    config: dict[str, Any],
    n_rows: int,
    special: SpecialTokens,
    pre_tokenizer: str | None,
) -> Vocabulary:
    where = f"{checkpoint.folder / 'tokenizer.json'}"
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise ConvertError(f"{where}: model of type {kind!r}; only BPE is supported")
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ConvertError(f"{where}: {option} {model[option]!r} is not supported")
    tokens, types, vocab = _tokens(model, n_rows, where)
    added = added_tokens(tokenizer, config, where)
    for i, token in added.items():
        if i < n_rows and types[i] != UNUSED and tokens[i] != token["content"]:
            raise ConvertError(f"{where}: id {i} is both {tokens[i]!r} and the added token {token['content']!r}")
    merges = _merges(model, vocab, where)
    if model.get("byte_fallback"):
        scores = _scores(tokens, merges)
        unknown = model.get("unk_token") or config.get("unk_token") or "<unk>"
        if isinstance(unknown, str) and unknown in vocab:
            types[vocab[unknown]] = UNKNOWN
            special.ids.setdefault("unk", vocab[unknown])
        for text, i in vocab.items():
            if BYTE_TOKEN.fullmatch(text):
                types[i] = BYTE
        _add(tokens, types, added, where)
        scores[types != NORMAL] = 0.0
        scores[types == USER_DEFINED] = ADDED_SCORE
        scores[types == UNUSED] = PAD_SCORE
        prefix = None if _has_dummy_prefix(tokenizer) else False
        return Vocabulary("llama", "default", tokens, types, special, scores=scores, add_space_prefix=prefix)
    _add(tokens, types, added, where)
    pre = pre_tokenizer or pre_tokenizers.detect(tokenizer.get("pre_tokenizer"), where)
    special.add.setdefault("bos", False)  # readers differ in their default; the post-processor adds none
    joined = [f"{left} {right}" for left, right in merges]
    vocabulary = Vocabulary("gpt2", pre, tokens, types, special, merges=joined)
    _check_options(vocabulary, tokenizer, where)
    return vocabulary


def _check_options(vocabulary: Vocabulary, tokenizer: dict[str, Any], where: str) -> None:
    """Options that GGUF cannot say: refuse those that change every text, warn of those that change few."""
    normalizer = tokenizer.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise ConvertError(f"{where}: normalizer {str(normalizer)[:200]} is not supported with byte-level BPE")
    if normalizer is not None:
        vocabulary.warnings.append("the tokenizer normalizes text to NFC; GGUF readers do not")
    ignores = bool(tokenizer["model"].get("ignore_merges"))
    if ignores != (vocabulary.pre == "llama-bpe"):
        vocabulary.warnings.append(
            f"ignore_merges is {str(ignores).lower()}, unlike what pre-tokenizer {vocabulary.pre!r} implies: "
            "a word that is a token, but not reached by merges, is cut differently"
        )


def _tokens(model: dict[str, Any], n_rows: int, where: str) -> tuple[list[str], np.ndarray, dict[str, int]]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise ConvertError(f"{where}: no vocabulary")
    tokens: list[str | None] = [None] * n_rows
    for text, i in vocab.items():
        if type(i) is not int or i < 0:
            raise ConvertError(f"{where}: token {text!r} has id {i!r}")
        if i >= n_rows:
            raise ConvertError(f"{where}: token {text!r} has id {i}, but the model's embedding has {n_rows} rows")
        if tokens[i] is not None:
            raise ConvertError(f"{where}: id {i} is both {tokens[i]!r} and {text!r}")
        tokens[i] = text
    types = np.fromiter((UNUSED if text is None else NORMAL for text in tokens), np.int32, n_rows)
    return [f"[PAD{i}]" if text is None else text for i, text in enumerate(tokens)], types, vocab


def _merges(model: dict[str, Any], vocab: dict[str, int], where: str) -> list[tuple[str, str]]:
    """The merges as pairs, from either spelling ("a b" or ["a", "b"]); both parts and their join are tokens."""
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
            raise ConvertError(f"{where}: merge {i}, {left!r} + {right!r}, is of or makes no token")
        if " " in left or " " in right:
            raise ConvertError(f"{where}: merge {i}, {left!r} + {right!r}, has a space, which GGUF cannot store")
        pairs.append((left, right))
    return pairs


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> np.ndarray:
    """Scores under which joining the best-scored pair first does the same as applying the merges in order.

    llama.cpp's converter gives every token -1000 here, and loses the order.
    """
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    n = len(ranks)
    return np.array([-float(ranks.get(text, n + i)) for i, text in enumerate(tokens)], np.float32)


def _has_dummy_prefix(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer puts a space before the text."""

    def steps(step: Any, children: str) -> list[dict[str, Any]]:
        if not isinstance(step, dict):
            return []
        inner = step.get(children)
        return [s for s in inner if isinstance(s, dict)] if isinstance(inner, list) else [step]

    if any(step.get("type") == "Prepend" for step in steps(tokenizer.get("normalizer"), "normalizers")):
        return True
    return any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    )
