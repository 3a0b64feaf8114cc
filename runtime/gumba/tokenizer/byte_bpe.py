"""BPE (``tokenizer.ggml.model = gpt2`` and ``gemma4``): words, then merges of token pairs by rank.

Byte-level BPE merges bytes: a token text represents each byte by one printable character in GPT-2's mapping (Radford et al.
2019), where bytes that are printable in Latin-1 represent themselves and the others are numbered from U+0100. The families of
Gemma 4 merge characters, with U+2581 for the space, and fall back to byte tokens for characters without a token.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gumba.errors import TokenizerError
from gumba.gguf.array import GGUFArray
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS, splitter
from gumba.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, byte_ids

log = logging.getLogger("gumba")

MAX_MERGES = 1 << 21  # four times the largest in use


def _byte_characters() -> dict[int, str]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


BYTE_TO_CHARACTER = _byte_characters()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def decode_byte_text(text: bytes) -> bytes:
    """Decode a token text in GPT-2's byte mapping; characters outside the mapping become their UTF-8 bytes."""
    try:
        characters = text.decode()
    except UnicodeDecodeError:
        return text
    try:
        return bytes([CHARACTER_TO_BYTE[character] for character in characters])
    except KeyError:
        known = CHARACTER_TO_BYTE
        return b"".join(bytes([known[c]]) if c in known else c.encode() for c in characters)


def _joined(texts: list[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The texts as one buffer uint8[bytes] and offsets int64[n + 1]."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return np.frombuffer(b"".join(texts), np.uint8), offsets


def _room(n: int) -> int:
    """Capacity of an open-addressing table for n entries."""
    return 1 << max(4, (2 * n).bit_length())


class _Symbols(dict[str, int]):
    """Characters and their tokens; -1 - code point for characters without one."""

    def __missing__(self, character: str) -> int:
        return -1 - ord(character)


class _Merges:
    """The tables of ``gumba.tokenizer.kernels.bpe`` over the texts of a vocabulary and its merges.

    Raises TokenizerError naming the key when the two disagree.
    """

    def __init__(self, texts: list[bytes], merges: GGUFArray) -> None:
        from gumba.tokenizer.kernels import bpe

        self.multiplier = secrets.randbits(62) | 1
        self.tokens, self.offsets = _joined(texts)
        self.table = np.full(_room(len(texts)), -1, np.int32)
        twin = bpe.index_tokens(self.tokens, self.offsets, self.multiplier, self.table)
        if twin >= 0:
            raise TokenizerError(f"{PREFIX}tokens: token {twin} has the text of another token: {texts[twin]!r:.80}")
        data, bounds = merges.string_view()
        if len(merges) > MAX_MERGES:
            raise TokenizerError(f"{PREFIX}merges: {len(merges)} merges; the limit is {MAX_MERGES}")
        self.pairs = np.full((_room(len(merges)), 2), -1, np.int64)
        fault = bpe.index_merges(self.table, self.tokens, self.offsets, data, bounds, self.multiplier, self.pairs)
        if fault >= 0:
            merge, why = merges.to_bytes_list()[fault // 4], bpe.MERGE_FAULTS[fault % 4]
            raise TokenizerError(f"{PREFIX}merges: merge {fault // 4}, {merge!r:.80}, {why}")


class BytePairEncoder:
    """Encodes text without special tokens, merging bytes.

    Raises TokenizerError naming the key when vocabulary and merges disagree.
    """

    def __init__(self, vocabulary: Vocabulary, merges: GGUFArray) -> None:
        from gumba.tokenizer.kernels import bpe

        self._words = splitter(vocabulary.pre)
        self._byte_ids = np.full(256, -1, np.int32)
        self._byte_texts = np.zeros((256, 3), np.uint8)
        for byte, character in BYTE_TO_CHARACTER.items():
            spelling = character.encode()
            self._byte_ids[byte] = vocabulary.ids.get(spelling, -1)
            self._byte_texts[byte, : 1 + len(spelling)] = (len(spelling), *spelling)
        if (self._byte_ids < 0).all():
            raise TokenizerError(f"{PREFIX}tokens: not one single-byte token, which a gpt2 vocabulary builds upon")
        self._merges = _Merges(vocabulary.texts, merges)
        # Only normal tokens are looked up as whole words: the text of a control token stays text.
        whole = vocabulary.types == TokenType.NORMAL
        self._whole = whole.astype(np.uint8)
        self._longest_whole = 0
        if PRE_TOKENIZERS[vocabulary.pre].whole_words:
            self._longest_whole = int(np.diff(self._merges.offsets)[whole].max(initial=0))
        self._warned = False
        self._encode: Any = bpe.encode_words

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, any Unicode but lone surrogates."""
        words = self._words(text)
        data = np.frombuffer(text.encode(), np.uint8)
        ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
        longest_word = int(np.diff(ends, prepend=0).max(initial=0)) * (1 if text.isascii() else 4)
        if len(data) != len(text):
            characters = np.flatnonzero((data & 0xC0) != 0x80)
            ends = np.append(characters, len(data))[ends]
        scratch = np.empty(7 * longest_word, np.int64)
        word_bytes = np.empty(2 * self._longest_whole, np.uint8)
        out = np.empty(len(data), np.int32)
        tables = self._merges
        count = self._encode(
            data, ends, self._byte_ids, self._byte_texts, tables.pairs, tables.multiplier, tables.table, tables.tokens,
            tables.offsets, self._whole, scratch, word_bytes, out,
        )  # fmt: skip
        ids = out[:count]
        if count and ids.min() < 0:
            if not self._warned:
                missing = -1 - int(ids.min())
                log.warning("the vocabulary has no token for some bytes of this text (0x%02X): left out", missing)
                self._warned = True
            ids = ids[ids >= 0]
        token_ids: list[int] = ids.tolist()
        return token_ids


class CharacterPairEncoder:
    """Encodes text without special tokens, merging characters.

    ``options``: the options of ``gumba.tokenizer.model`` for words that are cut already (``encode_words``); None if the family
    of ``tokenizer.ggml.pre`` defines everything. ``texts``: texts of tokens that differ from the file's.
    Raises TokenizerError naming the key when vocabulary and merges disagree.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: GGUFArray,
        options: Mapping[str, Any] | None = None,
        texts: Mapping[int, str] | None = None,
    ) -> None:
        from gumba.tokenizer.kernels import bpe

        of_words, kinds, own_texts = options is not None, vocabulary.types, list(vocabulary.texts)
        for token, text in (texts or {}).items():
            own_texts[token] = text.encode()
        options = {"byte_fallback": True, "unk_id": vocabulary.special.get("unk")} if options is None else options
        if not of_words:
            self._words = splitter(vocabulary.pre)
            self._spaces, self._lowercase = PRE_TOKENIZERS[vocabulary.pre].spaces, vocabulary.lowercase
        self._merges = _Merges(own_texts, merges)
        self._bytes = byte_ids(vocabulary) if options.get("byte_fallback") else {}
        self._symbols = _Symbols()
        self._whole: dict[str, int] = {}  # words that are taken without merging
        taken = np.isin(kinds, (TokenType.NORMAL, TokenType.USER_DEFINED)) if of_words else kinds == TokenType.NORMAL
        for token in np.flatnonzero(taken).tolist():
            with contextlib.suppress(UnicodeDecodeError):
                text = own_texts[token].decode()
                if len(text) == 1:
                    self._symbols[text] = token
                if options.get("ignore_merges") if of_words else text and not text.strip("\n"):
                    self._whole[text] = token
        self._unknown, self._fuse = options.get("unk_id"), bool(options.get("fuse_unk"))
        self._warned = False
        self._merge: Any = bpe.merge_words

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, any Unicode but lone surrogates; runs of newlines that are a token are not merged."""
        if self._spaces:
            text = text.replace(" ", "\u2581")
        elif self._lowercase:
            text = "".join(map(str.lower, text))  # character by character, so that no sigma becomes a final one
        return self.encode_words(self._words(text))

    def encode_words(self, words: Iterable[str]) -> list[int]:
        """Token ids of words, encoded separately."""
        symbols: list[int] = []
        ends: list[int] = []
        for word in words:
            whole = self._whole.get(word)
            symbols += [whole] if whole is not None else map(self._symbols.__getitem__, word)
            ends.append(len(symbols))
        if symbols and min(symbols) < 0:
            symbols, ends = self._without_unknown(symbols, ends)
        longest_word = int(np.diff(ends, prepend=0).max(initial=0))
        out = np.empty(len(symbols), np.int32)
        tables = self._merges
        scratch = np.empty(7 * longest_word, np.int64)
        count = self._merge(
            np.array(symbols, np.int32), np.array(ends, np.int64), tables.pairs, tables.multiplier, scratch, out
        )
        ids: list[int] = out[:count].tolist()
        return ids

    def _without_unknown(self, symbols: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
        """The symbols of words with characters without a token replaced by byte tokens or unknown tokens, or dropped."""
        expanded: list[int] = []
        bounds: list[int] = []
        begin = 0
        for end in ends:
            unknown = False  # whether the symbol before this one is an unknown token
            for symbol in symbols[begin:end]:
                if symbol >= 0 or self._bytes:
                    expanded += [symbol] if symbol >= 0 else (self._bytes[byte] for byte in chr(-1 - symbol).encode())
                    unknown = False
                elif self._unknown is not None:
                    expanded += [] if unknown and self._fuse else [self._unknown]
                    unknown = True
                elif not self._warned:
                    character = chr(-1 - symbol)
                    log.warning(
                        "the vocabulary has no token for some characters of this text (%r): left out", character
                    )
                    self._warned = True
            bounds.append(len(expanded))
            begin = end
        return expanded, bounds
