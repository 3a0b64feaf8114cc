"""SentencePiece BPE (``tokenizer.ggml.model = llama``), run by the sentencepiece library on a model made from the file.

The model is the file's pieces and scores with an identity normalizer: spaces become U+2581, nothing else changes. The
space in front of a text, and special tokens, are the caller's business, as in llama.cpp.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from gumba.errors import TokenizerError
from gumba.text.vocabulary import PREFIX, TokenType, Vocabulary

SPACE = "▁".encode()
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


def byte_value(token: int, text: bytes) -> int:
    """The byte that the text of a BYTE token names. Raises TokenizerError when it is not ``<0xXX>``."""
    match = _BYTE.fullmatch(text)
    if match is None:
        raise TokenizerError(
            f"{PREFIX}tokens: token {token} is of type BYTE, but its text is {text!r:.80}, not '<0xXX>'"
        )
    return int(match[1], 16)


class SentencePieceEncoder:
    """Encodes text without special tokens. Raises TokenizerError when the pieces do not make a model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        types = vocabulary.types
        bytes_found = {byte_value(int(i), vocabulary.texts[i]) for i in np.flatnonzero(types == TokenType.BYTE)}
        if 0 < len(bytes_found) < 256:
            missing = min(set(range(256)) - bytes_found)
            raise TokenizerError(
                f"{PREFIX}tokens: {len(bytes_found)} of the 256 byte tokens; <0x{missing:02X}> is the first one missing"
            )
        if not np.isfinite(vocabulary.scores).all():
            raise TokenizerError(f"{PREFIX}scores: element {int(np.isinf(vocabulary.scores).argmax())} is infinite")
        self._unknown = self._unknown_id(vocabulary)
        self._n_vocab = len(vocabulary.texts)
        self._byte_fallback = bool(bytes_found)
        model: Any = vars(sentencepiece_model_pb2)["ModelProto"]()  # protobuf makes its classes when imported
        model.trainer_spec.model_type = 2  # BPE
        model.trainer_spec.byte_fallback = self._byte_fallback
        model.normalizer_spec.name = "identity"
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        model.normalizer_spec.escape_whitespaces = True
        self._add_pieces(model, vocabulary)
        self._processor: Any = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model.SerializeToString())
        except RuntimeError as error:
            raise TokenizerError(f"{PREFIX}tokens: sentencepiece refuses them: {error}") from None

    @staticmethod
    def _unknown_id(vocabulary: Vocabulary) -> int:
        """The one token that the library may use for unknown text; one past the last when the file has none."""
        candidates = np.flatnonzero(vocabulary.types == TokenType.UNKNOWN)
        named = vocabulary.special.get("unk")
        if named is not None and (named in candidates if len(candidates) else named not in vocabulary.eog_ids):
            return named
        return int(candidates[0]) if len(candidates) else len(vocabulary.texts)

    def _add_pieces(self, model: Any, vocabulary: Vocabulary) -> None:
        """The library's NORMAL pieces are those that merges may give: here as in llama.cpp USER_DEFINED and UNUSED too."""
        kinds = {TokenType.BYTE: 6, TokenType.CONTROL: 3, TokenType.UNKNOWN: 3}
        rows = zip(vocabulary.texts, vocabulary.scores.tolist(), vocabulary.types.tolist())
        for token, (text, score, kind) in enumerate(rows):
            try:
                piece = text.decode() if text else f"<empty token {token}>"
            except UnicodeDecodeError:
                raise TokenizerError(f"{PREFIX}tokens: token {token} is not UTF-8: {text!r:.80}") from None
            type_ = 2 if token == self._unknown else kinds.get(kind, 1) if text else 3
            model.pieces.add(piece=piece, score=score, type=type_)
        if self._unknown == len(vocabulary.texts):
            model.pieces.add(piece="<no unknown token>", score=0.0, type=2)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises TokenizerError for a character that the vocabulary cannot express."""
        ids: list[int] = self._processor.EncodeAsIds(text)
        if not self._byte_fallback and self._unknown == self._n_vocab and self._n_vocab in ids:
            raise TokenizerError(f"{PREFIX}tokens: the vocabulary has no piece for some character of the text, no byte "
                                 "tokens and no unknown token")  # fmt: skip
        return ids
