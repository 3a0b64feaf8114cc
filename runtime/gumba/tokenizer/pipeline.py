"""Runs the steps of a tokenizer.json that have no GGUF key, from gumba's own keys.

Keys, all under ``gumba.tokenizer.``; llama.cpp reads none of them:

- ``added_tokens``, an array of token ids, and ``added_token_flags``, as many numbers (bits of ``added_tokens.LSTRIP`` ...):
  the tokens that are cut out of a text, and how;
- ``normalizer`` and ``pre_tokenizer``: the steps as JSON, in the form of tokenizer.json ("null" for none). A Precompiled
  step has its table in ``tokenizer.ggml.precompiled_charsmap``;
- ``model``: options of the model as JSON: ``unk_id``, ``fuse_unk``, ``byte_fallback``, ``ignore_merges`` of BPE,
  ``max_input_chars_per_word`` and ``continuing_subword_prefix`` of WordPiece;
- ``scores``, an array of float64: those of a Unigram vocabulary, where float32 cannot hold them;
- ``merges``: merges of a BPE vocabulary of SentencePiece's kind, whose order scores cannot say.

``pre_tokenizer`` replaces everything that the kind of vocabulary does before its model; without it, ``normalizer`` comes
before that. A file with none of these keys has no pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gumba.errors import TokenizerError
from gumba.tokenizer.added_tokens import ALL_FLAGS, LONGEST_TOKEN, NORMALIZED, SPACES, AddedToken, Matcher
from gumba.tokenizer.normalizers import Normalizer, normalizer
from gumba.tokenizer.patterns import deadline_of
from gumba.tokenizer.sentence_piece import GraphemeCharsmap
from gumba.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, metadata_array, metadata_numbers, metadata_value
from gumba.tokenizer.words import Cutter, Pieces, cutter, metaspace_options

KEYS = "gumba.tokenizer."
ADDED_TOKENS, ADDED_TOKEN_FLAGS = KEYS + "added_tokens", KEYS + "added_token_flags"
_ALL_KEYS = (
    ADDED_TOKENS,
    ADDED_TOKEN_FLAGS,
    *(KEYS + name for name in ("normalizer", "pre_tokenizer", "model", "merges", "scores")),
)
_LONGEST_STEPS, _MOST_STEPS, _DEEPEST = 1 << 20, 64, 8  # characters of JSON, number of steps, nesting of sequences
_LONGEST_WORD = 1 << 30
#: Options of a model and their types; bool ones default to false.
_OPTIONS = {
    "unk_id": int, "fuse_unk": bool, "byte_fallback": bool, "ignore_merges": bool, "max_input_chars_per_word": int,
    "continuing_subword_prefix": str,
}  # fmt: skip
_BOUNDARY = "\u2581"


class Steps:
    """The checked keys of one file.

    ``has_normalizer``, ``has_words``: whether the file has the keys ``normalizer`` and ``pre_tokenizer``; ``normalizer_step``
    and ``pre_tokenizer_step``: their JSON values, and ``normalizer`` and ``cutter`` the same as functions, None without one;
    ``options``: the model's options; ``scores``: float64[n_vocab]; ``added``: the added tokens, None without the keys;
    ``byte_level``: whether token texts are in GPT-2's byte mapping; ``mark``: the character for a space in tokens, "" for none;
    ``prefix``: "always", "first" or "never": when a space is added before a text.
    """

    def __init__(self, metadata: Mapping[str, object], vocabulary: Vocabulary) -> None:
        self.normalizer_step = normalizing = _json(metadata, "normalizer")
        self.pre_tokenizer_step = cutting = _json(metadata, "pre_tokenizer")
        self.has_normalizer, self.has_words = KEYS + "normalizer" in metadata, KEYS + "pre_tokenizer" in metadata
        charsmap = GraphemeCharsmap(vocabulary.charsmap) if vocabulary.charsmap else None
        self.normalizer = _built("normalizer", lambda: normalizer(normalizing, charsmap)) if normalizing else None
        self.cutter = _built("pre_tokenizer", lambda: cutter(cutting)) if cutting else None
        self.options = _options(metadata, len(vocabulary.texts))
        self.added = _added_tokens(metadata, vocabulary)
        scores = metadata_array(metadata, KEYS + "scores", "f", len(vocabulary.texts))
        self.scores = (vocabulary.scores if scores is None else scores).astype(np.float64)
        steps = [*_leaves(normalizing, "normalizers"), *_leaves(cutting, "pretokenizers")]
        self.byte_level = any(step.get("type") == "ByteLevel" for step in steps)
        self.mark, self.prefix = _spaces(steps)


def read_steps(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Steps | None:
    """The steps of a file's keys; None if it has none. Raises TokenizerError that names the invalid key."""
    return Steps(metadata, vocabulary) if any(key in metadata for key in _ALL_KEYS) else None


class Pipeline:
    """Encodes text to token ids as Hugging Face's tokenizers library does: added tokens, normalizer, pre-tokenizer, model.

    Args:
        encode: Returns the ids of a text; used if the file has no key ``pre_tokenizer``.
        encode_words: Returns the ids of words; used if it has one.
        space_before: Whether to add a space before a text for ``encode``.
    """

    def __init__(
        self,
        steps: Steps,
        vocabulary: Vocabulary,
        *,
        encode: Callable[[str], list[int]],
        encode_words: Callable[[Sequence[str]], list[int]] | None,
        space_before: bool,
    ) -> None:
        self._normalizer: Normalizer | None = steps.normalizer
        self._cutter: Cutter | None = steps.cutter
        self._encode, self._space_before = encode, space_before
        self._encode_words = encode_words if steps.has_words else None
        added = default_added_tokens(vocabulary) if steps.added is None else steps.added
        self._tokens = added
        plain = [token for token in added if not token.flags & NORMALIZED]
        normalized = [token for token in added if token.flags & NORMALIZED]
        self._before = Matcher(plain)
        self._after = Matcher([token._replace(text=self._normalized(token.text)) for token in normalized])
        # In the text of a template, control tokens are matched before normalization, so that no text of a message can
        # become one.
        self._in_template = Matcher([*plain, *(token for token in normalized if token.special)])

    @property
    def control_texts(self) -> tuple[str, ...]:
        """The texts of the control tokens among the added ones, longest first."""
        return tuple(sorted((token.text for token in self._tokens if token.special), key=len, reverse=True))

    def encode(self, text: str, parse_special: bool, shield: str = "") -> list[int]:
        """Token ids of a text; see ``Tokenizer.encode``. Raises TokenizerError if a pattern takes too long."""
        deadline = deadline_of(text)
        ids: list[int] = []
        at_start = True
        for outer in self._in_template.cut(text, parse_special) if shield else [text]:
            if isinstance(outer, int):
                ids.append(outer)
                at_start = False
                continue
            stretch = outer.replace(shield, "") if shield else outer
            for piece in self._before.cut(stretch, parse_special and not shield):
                if isinstance(piece, int):
                    ids.append(piece)
                else:
                    ids += self._encode_stretch(piece, at_start, parse_special and not shield, deadline)
                at_start = False
        return ids

    def _encode_stretch(self, text: str, at_start: bool, parse_special: bool, deadline: float) -> list[int]:
        normalized = text if self._normalizer is None else self._normalizer(text, deadline)
        if at_start and self._normalizer is not None and normalized:
            at_start = self._normalizer(text[:1], deadline) != ""  # what begins later in the text is not at its start
        ids: list[int] = []
        for piece in self._after.cut(normalized, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            elif self._encode_words is not None:
                pieces = Pieces([piece], at_start)
                words = pieces.texts if self._cutter is None else self._cutter(pieces, deadline).texts
                ids += self._encode_words(words)
            else:
                ids += self._encode(" " + piece if self._space_before else piece)
            at_start = False
        return ids

    def _normalized(self, text: str) -> str:
        return text if self._normalizer is None else self._normalizer(text, deadline_of(text))


def default_added_tokens(vocabulary: Vocabulary) -> list[AddedToken]:
    """The tokens to match in a text if the file has no keys for added tokens."""
    user_defined = {token for _, token in vocabulary.special_texts[False]}
    tokens = []
    for text, token in vocabulary.special_texts[True]:
        flags = (token in vocabulary.eats_before) * 1 | (token in vocabulary.eats_after) * 2
        tokens.append(AddedToken(token, text, flags, token not in user_defined))
    return tokens


def _json(metadata: Mapping[str, object], name: str) -> Any:
    """The steps at a key; None if it has none. Raises TokenizerError for invalid or too large JSON."""
    text = metadata_value(metadata, KEYS + name, str, "null")
    if len(text) > _LONGEST_STEPS:
        raise TokenizerError(f"{KEYS}{name}: {len(text)} characters; the limit is {_LONGEST_STEPS}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise TokenizerError(f"{KEYS}{name}: not JSON: {text!r:.80}") from None
    if value is not None and not isinstance(value, dict):
        raise TokenizerError(f"{KEYS}{name}: expected an object or null, found {text!r:.80}")
    if _count(value) > _MOST_STEPS:
        raise TokenizerError(f"{KEYS}{name}: more than {_MOST_STEPS} steps, or nested deeper than {_DEEPEST}")
    return value


def _count(step: object, depth: int = 0) -> int:
    if depth > _DEEPEST:
        return _MOST_STEPS + 1
    inner = (
        [item for value in step.values() if isinstance(value, list) for item in value] if isinstance(step, dict) else []
    )
    return 1 + sum(_count(item, depth + 1) for item in inner)


def _leaves(step: object, children: str) -> list[Mapping[str, Any]]:
    """The steps, with sequences flattened."""
    if not isinstance(step, dict):
        return []
    if step.get("type") != "Sequence":
        return [step]
    inner = step.get(children)
    return [leaf for item in inner for leaf in _leaves(item, children)] if isinstance(inner, list) else []


def _built(name: str, make: Any) -> Any:
    try:
        return make()
    except TokenizerError as error:
        raise TokenizerError(f"{KEYS}{name}: {error}") from None


def _options(metadata: Mapping[str, object], n_vocab: int) -> dict[str, Any]:
    options = _json(metadata, "model") or {}
    for name, value in options.items():
        if type(value) is not _OPTIONS.get(name):
            raise TokenizerError(f"{KEYS}model: {name!r:.80} is {value!r:.80}; known are {', '.join(_OPTIONS)}")
    if not 0 <= options.get("unk_id", 0) < n_vocab:
        raise TokenizerError(f"{KEYS}model: unk_id {options['unk_id']} is outside the vocabulary of {n_vocab} tokens")
    if not 0 <= options.get("max_input_chars_per_word", 0) <= _LONGEST_WORD:
        raise TokenizerError(f"{KEYS}model: max_input_chars_per_word is {options['max_input_chars_per_word']}")
    return dict(options)


def _added_tokens(metadata: Mapping[str, object], vocabulary: Vocabulary) -> list[AddedToken] | None:
    names = (ADDED_TOKENS, ADDED_TOKEN_FLAGS)
    if not any(name in metadata for name in names):
        return None
    ids, flags = (metadata_numbers(metadata, name) for name in names)
    if len(ids) != len(flags):
        raise TokenizerError(f"{names[1]}: {len(flags)} elements, but {names[0]} has {len(ids)}")
    tokens, n_vocab = [], len(vocabulary.texts)
    for token, bits in zip(ids, flags):
        if not 0 <= token < n_vocab:
            raise TokenizerError(f"{names[0]}: {token} is outside the vocabulary of {n_vocab} tokens")
        if not 0 <= bits <= ALL_FLAGS:
            raise TokenizerError(f"{names[1]}: {bits} of token {token} has unknown bits")
        text = vocabulary.texts[token].decode()
        if not 0 < len(text) <= LONGEST_TOKEN:
            raise TokenizerError(f"{PREFIX}tokens: added token {token} has {len(text)} characters")
        special = vocabulary.types[token] in (TokenType.CONTROL, TokenType.UNKNOWN)
        tokens.append(AddedToken(token, text.replace(" ", _BOUNDARY) if bits & SPACES else text, bits, bool(special)))
    return tokens


def _spaces(steps: Sequence[Mapping[str, object]]) -> tuple[str, str]:
    """The character that represents a space, and where one is prepended to a text."""
    mark, prefix = "", "never"
    for step in steps:
        if step.get("type") == "Metaspace":
            mark, prefix, _ = metaspace_options(step)
        elif step.get("type") == "Prepend" and prefix == "never":
            prefix = "always"
        elif step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and not mark:
            mark = str(step.get("content"))
    return mark, prefix
