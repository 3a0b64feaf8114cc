"""Text to token ids and back, from the vocabulary in a GGUF file."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from gumba.errors import RequestError, TokenizerError
from gumba.tokenizer.byte_bpe import BytePairEncoder, CharacterPairEncoder, decode_byte_text
from gumba.tokenizer.pipeline import KEYS, Pipeline, Steps, read_steps
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS
from gumba.tokenizer.sentence_piece import SPACE, SentencePieceEncoder
from gumba.tokenizer.unigram import UnigramEncoder
from gumba.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, byte_value, metadata_strings, read_vocabulary
from gumba.tokenizer.word_piece import LONGEST_WORD, WordPieceEncoder

if TYPE_CHECKING:
    from gumba.gguf.parser import Header
    from gumba.gguf.reader import GGUFFile

_MARKERS = frozenset((int(TokenType.CONTROL), int(TokenType.UNKNOWN)))
_WHITESPACE = " \t\n\v\f\r"
_NORMAL, _USER_DEFINED = int(TokenType.NORMAL), int(TokenType.USER_DEFINED)

Encoder = BytePairEncoder | CharacterPairEncoder | SentencePieceEncoder | UnigramEncoder | WordPieceEncoder


def _of_characters(vocabulary: Vocabulary) -> bool:
    family = PRE_TOKENIZERS.get(vocabulary.pre)
    return family is not None and family.characters


def _encoder_of_words(metadata: Mapping[str, object], vocabulary: Vocabulary, steps: Steps) -> Encoder:
    """The encoder for words that the file's own pre-tokenizer steps cut."""
    if vocabulary.model == "t5":
        return UnigramEncoder(vocabulary, steps.scores, steps.options.get("unk_id", vocabulary.special.get("unk")))
    if vocabulary.model == "bert":
        longest = steps.options.get("max_input_chars_per_word", LONGEST_WORD)
        return WordPieceEncoder(vocabulary, longest, steps.options.get("continuing_subword_prefix", "##"))
    merges = metadata_strings(metadata, KEYS + "merges" if vocabulary.model == "llama" else PREFIX + "merges")
    return CharacterPairEncoder(
        vocabulary, merges, steps.options, {token.id: token.text for token in steps.added or ()}
    )


class Tokenizer:
    """Encodes and decodes text with the same token ids as llama.cpp and the model's own code.

    Vocabularies: ``gpt2`` (byte-level BPE), ``gemma4`` (BPE over characters), ``llama`` (SentencePiece BPE), ``t5``
    (SentencePiece unigram) and ``bert`` (WordPiece).

    ``bos_id``, ``eos_id`` ...: special tokens, None if undefined. ``fim_pre_id``, ``fim_suf_id``, ``fim_mid_id``: the infill
    tokens before the prefix, the suffix and the middle; ``fim_rep_id`` and ``fim_sep_id`` come before names of repositories
    and files. ``token_type_count``: number of token types of an encoder (0: none). Thread-safe.
    """

    def __init__(self, vocabulary: Vocabulary, encoder: Encoder, steps: Steps | None = None) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._bytes: dict[int, bytes] = {}
        self._mark = SPACE
        self._types = vocabulary.types.astype(np.uint8).tobytes()  # indexed much faster than an array
        special = vocabulary.special
        self.n_vocab: int = len(vocabulary.texts)
        self.bos_id: int | None = special.get("bos")
        self.eos_id: int | None = special.get("eos")
        self.unk_id: int | None = special.get("unk")
        self.pad_id: int | None = special.get("pad")
        self.eot_id: int | None = special.get("eot")
        self.eom_id: int | None = special.get("eom")
        self.sep_id: int | None = special.get("sep")
        self.cls_id: int | None = special.get("cls")
        self.mask_id: int | None = special.get("mask")
        self.fim_pre_id: int | None = special.get("fim_pre")
        self.fim_suf_id: int | None = special.get("fim_suf")
        self.fim_mid_id: int | None = special.get("fim_mid")
        self.fim_pad_id: int | None = special.get("fim_pad")
        self.fim_rep_id: int | None = special.get("fim_rep")
        self.fim_sep_id: int | None = special.get("fim_sep")
        self.eog_ids: frozenset[int] = vocabulary.eog_ids
        self.template_texts: Mapping[str, str | None] = vocabulary.template_texts
        self.add_bos: bool = vocabulary.add_bos
        self.add_eos: bool = vocabulary.add_eos
        self.add_sep: bool = vocabulary.add_sep
        self.add_space_prefix: bool = vocabulary.add_space_prefix and isinstance(encoder, SentencePieceEncoder)
        self.token_type_count: int = vocabulary.token_type_count
        has_byte_texts = isinstance(encoder, BytePairEncoder)
        if steps is not None and steps.has_words:
            self.add_space_prefix = steps.prefix != "never"
            has_byte_texts, self._mark = steps.byte_level, steps.mark.encode() or SPACE
        self._has_byte_texts = has_byte_texts
        # Whether the encoder adds a space before the first word, and before the first word after a special token.
        self._space_first = self.add_space_prefix or isinstance(encoder, WordPieceEncoder)
        self._space_after_special = self._space_first and not (steps is not None and steps.prefix == "first")
        self._spaced = self.add_space_prefix and vocabulary.model == "llama"  # the encoder of t5 adds its own
        self._pipeline = None
        if steps is not None:
            words = None if isinstance(encoder, BytePairEncoder | SentencePieceEncoder) else encoder.encode_words
            self._pipeline = Pipeline(
                steps, vocabulary, encode=encoder.encode, encode_words=words, space_before=self._spaced
            )
        last = self.sep_id if vocabulary.model == "bert" else self.eos_id if self.add_eos else None
        self._ends = () if last is None else (last,)

    @classmethod
    def from_gguf(cls, source: str | PathLike[str] | GGUFFile | Header) -> Tokenizer:
        """The tokenizer of a GGUF file, given as a path, an open file or its header; the file may contain only a vocabulary.

        Raises GGUFError for a malformed file, TokenizerError (naming the file and the key) for a vocabulary that is
        inconsistent or of an unknown kind.
        """
        if isinstance(source, str | PathLike):
            from gumba.gguf.reader import GGUFFile

            with GGUFFile(source) as file:
                return cls.from_gguf(file)
        try:
            return cls._of_metadata(source.metadata)
        except TokenizerError as error:
            raise TokenizerError(f"{source.path}: {error}") from None

    @classmethod
    def _of_metadata(cls, metadata: Mapping[str, object]) -> Tokenizer:
        vocabulary = read_vocabulary(metadata, PRE_TOKENIZERS)
        steps = read_steps(metadata, vocabulary)
        encoder: Encoder
        if steps is not None and steps.has_words:
            encoder = _encoder_of_words(metadata, vocabulary, steps)
        elif vocabulary.model in ("llama", "t5"):
            encoder = SentencePieceEncoder(vocabulary)
        elif vocabulary.model == "bert":
            encoder = WordPieceEncoder(vocabulary)
        else:
            merges = metadata_strings(metadata, PREFIX + "merges")
            kind = CharacterPairEncoder if _of_characters(vocabulary) else BytePairEncoder
            encoder = kind(vocabulary, merges)
        return cls(vocabulary, encoder, steps)

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether every token id has the same text and type in both."""
        mine, theirs = self._vocabulary, other._vocabulary
        return self._types == other._types and list(mine.texts) == list(theirs.texts)

    def __repr__(self) -> str:
        return f"Tokenizer({self._vocabulary.model}, {self._vocabulary.pre}, {self.n_vocab} tokens)"

    @functools.cached_property
    def control_texts(self) -> tuple[str, ...]:
        """The texts that ``parse_special`` parses as control (or unknown) tokens, longest first."""
        if self._pipeline is not None:
            return self._pipeline.control_texts
        specials = self._vocabulary.special_texts[True]
        return tuple(text for text, token in specials if self._types[token] in _MARKERS)

    def encode(
        self, text: str, add_special: bool = True, parse_special: bool = False, *, shield: str = ""
    ) -> list[int]:
        """Token ids of ``text``.

        ``add_special``: add the BOS and EOS tokens (BERT: CLS and SEP) as the file specifies. ``parse_special``: parse the
        texts of control tokens ("<|im_end|>") as these tokens; never do that with untrusted text. User-defined tokens are
        always parsed. ``shield``: a character that is removed from the text after control tokens have been matched; inside
        the text of a control token it prevents the match.

        Takes linear time (n log n within a single word). Bytes that the vocabulary cannot express are dropped with a warning.
        Raises TokenizerError for a lone surrogate.
        """
        if not isinstance(text, str):
            raise RequestError(f"text to encode: expected str, found {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text is {text[error.start]!r}, half of a surrogate pair: not Unicode text"
            ) from None
        ids: list[int] = []
        if add_special and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        if self._pipeline is not None:
            ids += self._pipeline.encode(text, parse_special, shield)
            return ids + [*self._ends] if add_special else ids
        after_special = True
        for fragment in self._fragments(text, parse_special, shield):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                spaced = self._spaced and after_special
                ids += self._encoder.encode(" " + fragment if spaced else fragment)
            after_special = isinstance(fragment, int)
        if add_special:
            ids += self._ends
        return ids

    def encode_pair(self, first: str, second: str, max_length: int | None = None) -> tuple[list[int], list[int]]:
        """Token ids and token types of two texts that an encoder reads together (a query and a document).

        The ids are: begin, first text, end, second text, end; with ``add_sep`` also the separator between the texts. Types are
        1 from the second text on if the model has token types, else 0. ``max_length``: the longer text is truncated at its end
        to fit. Raises the errors of ``encode``, and RequestError if the special tokens alone exceed ``max_length``.
        """
        left, right = self.encode(first), self.encode(second, add_special=False)
        between = []
        if self.add_sep and self.sep_id is not None and self._vocabulary.model != "bert":
            between.append(self.sep_id)
        between, ends = [*self._ends, *between], list(self._ends)
        left = left[: len(left) - len(ends)]
        if max_length is not None and len(left) + len(between) + len(right) + len(ends) > max_length:
            n_begin = self._n_begin(left)
            room = max_length - n_begin - len(between) - len(ends)
            n_left, n_right = _longest_first(len(left) - n_begin, len(right), self._checked_room(room, max_length))
            left, right = left[: n_begin + n_left], right[:n_right]
        left, right = left + between, right + ends
        return left + right, [0] * len(left) + [int(self.token_type_count > 1)] * len(right)

    def truncated(self, ids: Sequence[int], max_length: int, side: str = "right") -> list[int]:
        """``ids`` of one text, truncated to ``max_length``; special tokens at both ends are kept.

        ``side``: "right" truncates the end of the text, "left" its start. Raises RequestError if the special tokens alone
        exceed ``max_length``.
        """
        if len(ids) <= max_length:
            return list(ids)
        begin, n_end = self._n_begin(ids), len(self._ends)
        end = len(ids) - (n_end if n_end and tuple(ids[-n_end:]) == self._ends else 0)
        room = self._checked_room(max_length - begin - (len(ids) - end), max_length)
        text = ids[begin : begin + room] if side == "right" else ids[end - room : end]
        return [*ids[:begin], *text, *ids[end:]]

    def _n_begin(self, ids: Sequence[int]) -> int:
        """The number of leading tokens of ``ids`` that begin every text (0 or 1)."""
        return int(self.add_bos and self.bos_id is not None and list(ids[:1]) == [self.bos_id])

    @staticmethod
    def _checked_room(room: int, max_length: int) -> int:
        if room < 0:
            raise RequestError(f"{max_length} tokens leave no room for the special tokens of a text")
        return room

    def _fragments(self, text: str, parse_special: bool, shield: str = "") -> list[str | int]:
        """Split the text at special tokens; of overlapping ones the longest wins, wherever it begins."""
        if shield and shield in text:
            outer = self._fragments(text, parse_special)
            inner = (
                [part] if isinstance(part, int) else self._fragments(part.replace(shield, ""), False) for part in outer
            )
            return [part for fragments in inner for part in fragments]
        fragments: list[str | int] = [text] if text else []
        for special, token in self._vocabulary.special_texts[parse_special]:
            if special not in text:
                continue
            cut: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int) or special not in fragment:
                    cut.append(fragment)
                    continue
                for piece in self._trimmed(fragment.split(special), token):
                    if piece:
                        cut.append(piece)
                    cut.append(token)
                cut.pop()
            fragments = cut
        return fragments

    def _trimmed(self, pieces: list[str], token: int) -> list[str]:
        """The texts between occurrences of a token, without the whitespace that it strips."""
        if token in self._vocabulary.eats_after:
            pieces = [pieces[0], *(piece.lstrip(_WHITESPACE) for piece in pieces[1:])]
        if token in self._vocabulary.eats_before:
            pieces = [*(piece.rstrip(_WHITESPACE) for piece in pieces[:-1]), pieces[-1]]
        return pieces

    def check_id(self, token: object) -> int:
        """``token`` as an int. Raises RequestError unless it is an integer (not a bool) inside the vocabulary."""
        try:
            if isinstance(token, bool):
                raise TypeError
            number = index(token)  # type: ignore[arg-type]
        except TypeError:
            raise RequestError(f"token id: expected an integer, found {token!r:.80}") from None
        if not 0 <= number < self.n_vocab:
            raise RequestError(f"token id {number}: outside the vocabulary of {self.n_vocab} tokens")
        return number

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; b"" for unused tokens. Raises RequestError for an id out of range."""
        known = self._bytes.get(token)
        if known is None or isinstance(token, bool):
            token = self.check_id(token)
            known = self._bytes[token] = self._token_bytes(token)
        return known

    def _token_bytes(self, token: int) -> bytes:
        text, kind = self._vocabulary.texts[token], self._types[token]
        if kind == TokenType.UNUSED:
            return b""
        if kind == TokenType.BYTE:
            return bytes([byte_value(token, text)])
        if kind != TokenType.NORMAL:
            return text
        return decode_byte_text(text) if self._has_byte_texts else text.replace(self._mark, b" ")

    def token_text(self, token: int) -> str:
        """The text of a token in the file ("Ġhello"). Raises RequestError for an id out of range."""
        return self._vocabulary.texts[self.check_id(token)].decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        """The token with exactly this text in the file, in the file's byte encoding; None if there is none."""
        return self._vocabulary.ids.get(text.encode("utf-8", "surrogatepass"))

    def special_id(self, name: str) -> int | None:
        """The special token ``name`` (``bos``, ``sep``, ``fim_pre``: the keys of ``SPECIAL_KEYS``); None if undefined."""
        return self._vocabulary.special.get(name)

    def is_special(self, token: int) -> bool:
        """Whether a token is a control or unknown token, which ``skip_special`` skips."""
        return self._types[self.check_id(token)] in _MARKERS

    def token_type(self, token: int) -> TokenType:
        """The type of a token. Raises RequestError for an id out of range."""
        return TokenType(self._types[self.check_id(token)])

    def pieces(self, ids: Iterable[int], skip_special: bool = False, continuation: bool = False) -> Iterable[bytes]:
        """The bytes of the tokens, one by one, without the spaces that ``encode`` adds before text (not byte-level BPE).

        ``continuation``: the ids continue a prompt, so that a leading space is text.
        """
        if not self._space_first and not skip_special:
            yield from map(self.token_bytes, ids)
            return
        at_start = self._space_first and not continuation
        for token in ids:
            piece = self.token_bytes(token)
            kind = self._types[token]
            marker = kind in _MARKERS
            if marker and skip_special:
                piece = b""
            elif at_start and kind == _NORMAL and piece.startswith(b" "):
                piece = piece[1:]
            at_start = self._space_after_special and (marker or kind == _USER_DEFINED)
            yield piece

    def decode_bytes(self, ids: Sequence[int], skip_special: bool = False, *, continuation: bool = False) -> bytes:
        """The bytes of token ids, which ``decode`` decodes as UTF-8."""
        return b"".join(self.pieces(ids, skip_special, continuation))

    def decode(self, ids: Sequence[int], skip_special: bool = False, *, continuation: bool = False) -> str:
        """The text of token ids; incomplete or invalid UTF-8 becomes U+FFFD.

        ``skip_special``: skip control tokens. ``continuation``: the ids continue a prompt (see ``pieces``).
        Raises RequestError for an id that is not in the vocabulary.
        """
        return self.decode_bytes(ids, skip_special, continuation=continuation).decode("utf-8", "replace")


def _longest_first(n_first: int, n_second: int, room: int) -> tuple[int, int]:
    """Lengths of two texts truncated to fit ``room`` tokens: the longer one first (Hugging Face's rule)."""
    shorter = min(n_first, n_second)
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (shorter, longer) if n_first <= n_second else (longer, shorter)
