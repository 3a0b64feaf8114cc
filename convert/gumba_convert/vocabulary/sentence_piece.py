"""SentencePiece vocabularies: the library's own files, BPE or unigram, and tokenizer.json of kind Unigram."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.gguf_writer import Value, boolean, u8_array, u32
from gumba_convert.vocabulary.special_tokens import AddedToken, SpecialTokens, added_tokens, text_of
from gumba_convert.vocabulary.tokenizer_class import named_tokens
from gumba_convert.vocabulary.tokens import (
    ADDED_SCORE,
    BYTE,
    BYTE_TOKEN,
    CONTROL,
    NORMAL,
    PAD_SCORE,
    UNKNOWN,
    Vocabulary,
    add,
    padding,
    steps,
)
from gumba_convert.vocabulary.word_piece import token_types

FAIRSEQ_FILE = "sentencepiece.bpe.model"
_UNIGRAM, _BPE = 1, 2
#: Classes that add no tokens to a text without a post-processor.
_WITHOUT_ENDS = ("PreTrainedTokenizerFast", "TokenizersBackend")
#: Special tokens of ChatGLM2 and 3 after the last piece, from their code.
_GLM_ADDED = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_GLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def from_model(
    checkpoint: Checkpoint,
    name: str,
    data: bytes,
    tokenizer: JsonObject,
    config: JsonObject,
    n_rows: int,
    special: SpecialTokens,
) -> Vocabulary:
    """Read a model file of the sentencepiece library.

    Raises:
        ConvertError: the file is not one, is neither BPE nor unigram, or has too many pieces for the model.
    """
    where = f"{checkpoint.folder / name}"
    model = _parse(data, n_rows, where)
    tokens, types = padding(n_rows)
    scores = np.full(n_rows, PAD_SCORE, np.float32)
    for i, piece in enumerate(model.pieces):
        tokens[i], scores[i], types[i] = piece.piece, piece.score, piece.type
    if name == FAIRSEQ_FILE:
        return _from_fairseq(checkpoint, model, n_rows, special, where)
    added = _added(checkpoint, len(model.pieces), tokenizer, config, n_rows, where)
    added = {i: token for i, token in added.items() if tokens[i : i + 1] != [token["content"]] or types[i] == NORMAL}
    without_ids, warnings = _named_only(model, added, tokenizer, config, n_rows)
    added |= without_ids
    for i in added:
        scores[i : i + 1] = ADDED_SCORE
    add(tokens, types, added)
    if config.get("legacy") is False and not tokenizer and model.normalizer_spec.add_dummy_prefix:
        warnings.append(
            f"{where}: tokenizer_config.json sets legacy false, so transformers adds no space after a special token; gumba "
            "supports that with a tokenizer.json only, which AutoTokenizer...save_pretrained(FOLDER) writes"
        )
    trainer = model.trainer_spec
    for role, i in (("bos", trainer.bos_id), ("eos", trainer.eos_id), ("unk", trainer.unk_id), ("pad", trainer.pad_id)):
        if 0 <= i < len(model.pieces) and (role != "pad" or trainer.model_type == _UNIGRAM):
            special.ids.setdefault(role, i)
    spec = model.normalizer_spec
    if model.trainer_spec.model_type == _UNIGRAM:
        vocabulary = Vocabulary("t5", "default", tokens, types, special, scores=scores, warnings=warnings)
        vocabulary.add_space_prefix = bool(spec.add_dummy_prefix)
        vocabulary.more = _normalizer(spec.precompiled_charsmap, bool(spec.remove_extra_whitespaces))
        vocabulary.more["token_type_count"] = u32(token_types(checkpoint, 1))
        return vocabulary
    prefix = None if spec.add_dummy_prefix else False
    vocabulary = Vocabulary(
        "llama", "default", tokens, types, special, scores=scores, add_space_prefix=prefix, warnings=warnings
    )
    if spec.precompiled_charsmap:
        vocabulary.warnings.append(f"{where} normalizes text ({spec.name or 'unnamed rules'}); GGUF readers do not")
    return vocabulary


def _parse(data: bytes, n_rows: int, where: str) -> Any:
    """The ModelProto in a file of the sentencepiece library. Raises ConvertError as `from_model`."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ConvertError(f"{where}: not a SentencePiece model") from None
    kind = model.trainer_spec.model_type
    if kind not in (_BPE, _UNIGRAM):
        raise ConvertError(f"{where}: only SentencePiece models of kind BPE and unigram are supported")
    if not 0 < len(model.pieces) <= n_rows:
        raise ConvertError(f"{where}: {len(model.pieces)} pieces, but the model's embedding has {n_rows} rows")
    return model


def _from_fairseq(checkpoint: Checkpoint, model: Any, n_rows: int, special: SpecialTokens, where: str) -> Vocabulary:
    """XLM-RoBERTa's vocabulary: four own tokens, then the pieces after the third, then the mask token."""
    pieces = model.pieces[3:]
    if model.trainer_spec.model_type != _UNIGRAM or len(pieces) + 5 > n_rows:
        raise ConvertError(f"{where}: not a unigram model of at most {n_rows - 5} pieces, as {FAIRSEQ_FILE} usually is")
    tokens, types = padding(n_rows)
    scores = np.full(n_rows, PAD_SCORE, np.float32)
    tokens[:4], types[:4], scores[:4] = ["<s>", "<pad>", "</s>", "<unk>"], (CONTROL, CONTROL, CONTROL, UNKNOWN), 0.0
    for i, piece in enumerate(pieces, 4):
        tokens[i], scores[i], types[i] = piece.piece, piece.score, piece.type
    mask = 4 + len(pieces)
    tokens[mask], types[mask], scores[mask] = "<mask>", CONTROL, 0.0
    for role, i in (("bos", 0), ("pad", 1), ("eos", 2), ("sep", 2), ("unk", 3), ("mask", mask)):
        special.ids[role] = i
    special.add |= {"bos": True, "eos": True}
    spec = model.normalizer_spec
    vocabulary = Vocabulary("t5", "default", tokens, types, special, scores=scores)
    vocabulary.add_space_prefix = bool(spec.add_dummy_prefix)
    vocabulary.more = _normalizer(spec.precompiled_charsmap, bool(spec.remove_extra_whitespaces))
    vocabulary.more["token_type_count"] = u32(token_types(checkpoint, 1))
    return vocabulary


def _added(
    checkpoint: Checkpoint, n_pieces: int, tokenizer: JsonObject, config: JsonObject, n_rows: int, where: str
) -> dict[int, AddedToken]:
    """Tokens that are not pieces, from the model's code, added_tokens.json and the lists of added tokens."""
    added: dict[int, AddedToken] = {}
    if checkpoint.config.get("model_type") == "chatglm":
        code = checkpoint.text("tokenization_chatglm.py") or ""
        names = _GLM_ADDED + (_GLM_ROLES if _GLM_ROLES[1] in code else ())
        added |= {
            n_pieces + i: {"content": text, "special": True, "flags": 0}
            for i, text in enumerate(names)
            if n_pieces + i < n_rows
        }
    extra = checkpoint.json("added_tokens.json") or {}
    added |= {
        i: {"content": text, "special": False, "flags": 0}
        for text, i in extra.items()
        if type(i) is int and n_pieces <= i < n_rows
    }
    return added | added_tokens(tokenizer, config, where)


def _named_only(
    model: Any, added: dict[int, AddedToken], tokenizer: JsonObject, config: JsonObject, n_rows: int
) -> tuple[dict[int, AddedToken], list[str]]:
    """Special tokens that tokenizer_config.json names without an id, with the next ids as in transformers, and warnings.

    Empty if there is a tokenizer.json, which lists them (`tokenizer_class.as_loaded`).
    """
    known = {piece.piece for piece in model.pieces} | {token["content"] for token in added.values()}
    names = [] if tokenizer else dict.fromkeys(map(text_of, named_tokens(config)))
    first = max(len(model.pieces), *(i + 1 for i in added)) if added else len(model.pieces)
    new = dict(enumerate((text for text in names if text is not None and text not in known), first))
    warnings = [
        f"special token {text!r:.100} would have id {i}, but the model's embedding has {n_rows} rows: it is omitted"
        for i, text in new.items()
        if i >= n_rows
    ]
    return {i: {"content": text, "special": True, "flags": 0} for i, text in new.items() if i < n_rows}, warnings[:8]


def _normalizer(charsmap: bytes, remove_extra_whitespaces: bool) -> dict[str, Value]:
    more = {"remove_extra_whitespaces": boolean(remove_extra_whitespaces)}
    return more | ({"precompiled_charsmap": u8_array(charsmap)} if charsmap else {})


def unigram_from_json(
    checkpoint: Checkpoint, tokenizer: JsonObject, config: JsonObject, n_rows: int, special: SpecialTokens
) -> Vocabulary:
    """Read a tokenizer.json of kind Unigram.

    Raises:
        ConvertError: an inconsistent vocabulary.
    """
    where = f"{checkpoint.folder / 'tokenizer.json'}"
    model = tokenizer["model"]
    pieces = model.get("vocab")
    if not isinstance(pieces, list) or not 0 < len(pieces) <= n_rows:
        n = len(pieces) if isinstance(pieces, list) else "no"
        raise ConvertError(f"{where}: {n} pieces, but the model's embedding has {n_rows} rows")
    tokens, types = padding(n_rows)
    scores = np.full(n_rows, PAD_SCORE, np.float32)
    for i, piece in enumerate(pieces):
        if not isinstance(piece, list) or len(piece) != 2 or not isinstance(piece[0], str):
            raise ConvertError(f"{where}: piece {i}, {piece!r:.80}, is not a text and a score")
        text, score = piece
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not -1e30 < score < 1e30:
            raise ConvertError(f"{where}: piece {i}, {text!r:.80}, has the score {score!r}")
        tokens[i], scores[i], types[i] = text, score, BYTE if BYTE_TOKEN.fullmatch(text) else NORMAL
    if not model.get("byte_fallback"):
        types[types == BYTE] = NORMAL
    unknown = model.get("unk_id")
    if type(unknown) is int and 0 <= unknown < len(pieces):
        types[unknown] = UNKNOWN
        special.ids.setdefault("unk", unknown)
    add(tokens, types, added_tokens(tokenizer, config, where))
    for i in special.ids.values():
        types[i] = types[i] if types[i] == UNKNOWN else CONTROL
    if tokenizer.get("post_processor") is not None or config.get("tokenizer_class") in _WITHOUT_ENDS:
        special.add.setdefault("eos", False)  # readers add one by default
    charsmap, merged = _read_normalizer(tokenizer.get("normalizer"), where)
    prefix, split = _read_metaspace(tokenizer.get("pre_tokenizer"))
    vocabulary = Vocabulary("t5", "default", tokens, types, special, scores=scores, add_space_prefix=prefix)
    vocabulary.more = _normalizer(charsmap, merged or split)
    vocabulary.more["token_type_count"] = u32(token_types(checkpoint, 1))
    return vocabulary


def _read_normalizer(normalizer: object, where: str) -> tuple[bytes, bool]:
    """The replacement table, and whether runs of spaces are merged; `tokenizer_steps` handles all other steps."""
    tables, merged = [], False
    for step in steps(normalizer, "normalizers"):
        if step.get("type") == "Precompiled":
            try:
                tables.append(base64.b64decode(step.get("precompiled_charsmap") or b"", validate=True))
            except (binascii.Error, TypeError, ValueError):
                raise ConvertError(f"{where}: precompiled_charsmap is not base64") from None
        elif step.get("type") == "Replace" and (step.get("pattern") or {}).get("Regex") == " {2,}":
            merged = True
    if len(tables) > 1:
        raise ConvertError(f"{where}: {len(tables)} Precompiled normalizers; GGUF has a key for one")
    return tables[0] if tables else b"", merged


def _read_metaspace(pre_tokenizer: object) -> tuple[bool, bool]:
    """Whether a space is added before the text, and whether whitespace only separates words."""
    prefix, split = False, False
    for step in steps(pre_tokenizer, "pretokenizers"):
        if step.get("type") == "Metaspace":
            prefix = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True) is not False
        split = split or step.get("type") == "WhitespaceSplit"
    return prefix, split
