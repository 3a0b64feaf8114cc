"""SentencePiece, BPE (``tokenizer.ggml.model = llama``) and unigram (``t5``), run by the sentencepiece library.

The library gets a model built from the file: its pieces and scores, with an identity normalizer: spaces become U+2581, nothing
else changes. The caller handles special tokens, and for BPE the space before a text, as in llama.cpp. The normalization of a
unigram vocabulary is done here, because the library does not check the bounds of an untrusted table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gumba.errors import TokenizerError
from gumba.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, byte_ids

SPACE = "▁".encode()
_BPE, _UNIGRAM = 2, 1  # the library's numbers
_MAX_CACHED = 1 << 16  # clusters of characters
_LONGEST_REPLACEMENT = 1024  # bytes; Unicode's longest has 33, and a text must not grow without bounds


def _table(data: bytes) -> tuple[Any, Any]:
    """The trie and the replacements of a table (see ``kernels.charsmap``). Raises TokenizerError for a damaged one."""
    length = int.from_bytes(data[:4], "little")
    if length % 4 or length == 0 or 4 + length >= len(data) or data[-1] != 0:
        raise TokenizerError(f"{PREFIX}precompiled_charsmap: expected a table of replacements, found {len(data)} bytes")
    trie = np.frombuffer(data, "<u4", length // 4, 4).astype(np.uint32)
    replacements = np.frombuffer(data, np.uint8, offset=4 + length)
    longest = int(np.diff(np.flatnonzero(replacements == 0), prepend=-1).max()) - 1
    if longest > _LONGEST_REPLACEMENT:
        raise TokenizerError(f"{PREFIX}precompiled_charsmap: a replacement of {longest} bytes is too long")
    return trie, replacements


class GraphemeCharsmap:
    """A normalization table as Hugging Face's tokenizers library applies it, which differs from SentencePiece.

    A grapheme cluster of fewer than six bytes that begins with a string of the table becomes the replacement of the shortest
    such string; in other clusters the characters are replaced one by one. Raises TokenizerError for a damaged table.
    """

    def __init__(self, data: bytes) -> None:
        import regex

        self._trie, self._replacements = _table(data)
        self._clusters: Any = regex.compile(r"\X").findall
        self._known: dict[str, str | None] = {}

    def __call__(self, text: str) -> str:
        """The text with replacements."""
        parts = []
        for cluster in text if text.isascii() and "\r\n" not in text else self._clusters(text):
            whole = self._replaced(cluster) if len(cluster) == 1 or len(cluster.encode()) < 6 else None
            if whole is not None:
                parts.append(whole)
            elif len(cluster) == 1:
                parts.append(cluster)
            else:
                for character in cluster:
                    replaced = self._replaced(character)
                    parts.append(character if replaced is None else replaced)
        return "".join(parts)

    def _replaced(self, text: str) -> str | None:
        try:
            return self._known[text]
        except KeyError:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            ids = self._known[text] = self._found(text.encode())
            return ids

    def _found(self, key: bytes) -> str | None:
        """The replacement of the shortest string in the table that ``key`` begins with; None when there is none."""

        def unit(at: int) -> int:
            if at >= len(self._trie):
                raise TokenizerError(f"{PREFIX}precompiled_charsmap: damaged: it points outside of itself")
            return int(self._trie[at])

        def base(value: int) -> int:
            return (value >> 10) << ((value & 0x200) >> 6)

        node = base(unit(0))
        for byte in key:
            if byte == 0:
                return None
            node ^= byte
            value = unit(node)
            if value & 0x800000FF != byte:
                return None
            node ^= base(value)
            if value & 0x100:
                begin = unit(node) & 0x7FFFFFFF
                if begin >= len(self._replacements):
                    raise TokenizerError(f"{PREFIX}precompiled_charsmap: damaged: it points outside of itself")
                rest: bytes = self._replacements[begin : begin + _LONGEST_REPLACEMENT + 1].tobytes()
                return rest.split(b"\0", 1)[0].decode("utf-8", "replace")
        return None


class Normalizer:
    """What is done to a text before the unigram model sees it: replacements, then spaces.

    Raises TokenizerError when the table of replacements is damaged.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._merge_spaces = vocabulary.remove_extra_whitespaces
        self._space_prefix = vocabulary.add_space_prefix
        self._trie: Any = None
        data = vocabulary.charsmap
        if not data:
            return
        self._trie, self._replacements = _table(data)

    def __call__(self, text: str) -> str:
        """The normalized text."""
        if self._trie is not None:
            text = self._replaced(text)
        if self._merge_spaces:
            text = " ".join(filter(None, text.split(" "))).rstrip(" \u2581")
        return " " + text if text and self._space_prefix else text

    def _replaced(self, text: str) -> str:
        from gumba.tokenizer.kernels.charsmap import normalize

        data = np.frombuffer(text.encode(), np.uint8)
        room = 2 * len(data) + 64
        while True:
            out = np.empty(room, np.uint8)
            count = normalize(data, self._trie, self._replacements, out)
            if count < 0:
                raise TokenizerError(f"{PREFIX}precompiled_charsmap: damaged: it points outside of itself")
            if count <= room:
                try:
                    return out[:count].tobytes().decode()
                except UnicodeDecodeError:
                    raise TokenizerError(
                        f"{PREFIX}precompiled_charsmap: damaged: it makes text that is not UTF-8"
                    ) from None
            room = count


class SentencePieceEncoder:
    """Encodes text without special tokens. Raises TokenizerError when the pieces do not make a model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        bytes_found = byte_ids(vocabulary)
        if not np.isfinite(vocabulary.scores).all():
            raise TokenizerError(f"{PREFIX}scores: element {int(np.isinf(vocabulary.scores).argmax())} is infinite")
        self._unknown = self._unknown_id(vocabulary)
        self._n_vocab = len(vocabulary.texts)
        self._byte_fallback = bool(bytes_found)
        model: Any = vars(sentencepiece_model_pb2)["ModelProto"]()  # protobuf makes its classes when imported
        unigram = vocabulary.model == "t5"
        self._normalized = Normalizer(vocabulary) if unigram else None
        model.trainer_spec.model_type = _UNIGRAM if unigram else _BPE
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
            piece = text.decode() if text else f"<empty token {token}>"
            type_ = 2 if token == self._unknown else kinds.get(kind, 1) if text else 3
            model.pieces.add(piece=piece, score=score, type=type_)
        if self._unknown == len(vocabulary.texts):
            model.pieces.add(piece="<no unknown token>", score=0.0, type=2)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises TokenizerError for a character that the vocabulary cannot express."""
        if self._normalized is not None:
            text = self._normalized(text)
        ids: list[int] = self._processor.EncodeAsIds(text)
        if not self._byte_fallback and self._unknown == self._n_vocab and self._n_vocab in ids:
            raise TokenizerError(f"{PREFIX}tokens: the vocabulary has no piece for some character of the text, no byte "
                                 "tokens and no unknown token")  # fmt: skip
        return ids
