"""Reads and checks the vocabulary of a GGUF file.

Keys (all under ``tokenizer.ggml.``; GGUF specification, "Tokenizer"): ``model``, ``pre``, ``tokens``, ``scores``,
``token_type``, ``merges``, ``precompiled_charsmap``, ``token_type_count``, the special ids ``bos_token_id`` ..., and the
flags ``add_bos_token``, ``add_eos_token``, ``add_sep_token``, ``add_space_prefix``, ``remove_extra_whitespaces``,
``normalizer.lowercase``, ``normalizer.strip_accents``. The defaults of missing keys are llama.cpp's, per kind of vocabulary.

gumba has keys of its own for what GGUF cannot express: EOG_KEY, further end-of-generation tokens (integers); and the values of
special tokens in chat templates that differ from the tokens' texts: UNDEFINED_KEY, the names of undefined ones (strings of
TEMPLATE_NAMES), and TEMPLATE_PREFIX with such a name, its text.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gumba.errors import TokenizerError
from gumba.gguf.array import GGUFArray
from gumba.gguf.types import ValueType

PREFIX = "tokenizer.ggml."
EOG_KEY = "gumba.tokenizer.eog_token_ids"
TEMPLATE_PREFIX = "gumba.chat_template."
UNDEFINED_KEY = TEMPLATE_PREFIX + "undefined"
#: Special tokens whose texts a chat template may use, by their names there.
TEMPLATE_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unk", "pad_token": "pad"}


class TokenType(enum.IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Kind:
    """Defaults for a value of ``tokenizer.ggml.model``: special ids and flags."""

    special: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    add_space_prefix: bool = False


#: The kinds of vocabulary, by ``tokenizer.ggml.model``.
KINDS = {
    "gpt2": Kind(),
    "gemma4": Kind(add_bos=True),
    "llama": Kind({"unk": 0, "bos": 1, "eos": 2}, add_bos=True, add_space_prefix=True),
    "t5": Kind({"pad": 0, "eos": 1, "unk": 2}, add_eos=True),
    "bert": Kind({"pad": 0, "unk": 100, "bos": 101, "sep": 102, "mask": 103}, add_bos=True, add_sep=True),
}

#: Names of special tokens -> the keys of their ids; the first key present counts.
SPECIAL_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "unk": ("unknown_token_id",),
    "pad": ("padding_token_id",),
    "sep": ("seperator_token_id",),  # sic, as in the specification
    "cls": ("cls_token_id",),
    "mask": ("mask_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}

#: Texts of end-of-generation tokens, because files rarely name all of them.
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend▁of▁sentence\uff5c>", "[e~[",
)  # fmt: skip

#: Texts of infill tokens. Those for padding, repository and file are end-of-generation tokens too.
INFILL_TEXTS = {
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim▁begin\uff5c>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim▁hole\uff5c>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim▁end\uff5c>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip

#: Markers of message structure, which are always part of the text and always parsed.
VISIBLE_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def metadata_value(metadata: Mapping[str, object], key: str, kind: type, default: object) -> Any:
    """``metadata[key]``, which must be a ``kind``; ``default`` if absent. Raises TokenizerError naming the key."""
    value = metadata.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TokenizerError(f"{key}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def metadata_strings(metadata: Mapping[str, object], key: str) -> GGUFArray:
    """The array of strings at ``key``. Raises TokenizerError naming the key."""
    value = metadata.get(key)
    if value is None:
        raise TokenizerError(f"{key}: missing")
    if not isinstance(value, GGUFArray) or value.element_type is not ValueType.STRING:
        raise TokenizerError(f"{key}: expected an array of strings, found {value!r:.80}")
    return value


def _array(value: object, key: str, kinds: str) -> npt.NDArray[Any]:
    """The numbers of an array in a file (numpy kinds in ``kinds``)."""
    if not isinstance(value, GGUFArray) or value.element_type in (ValueType.STRING, ValueType.BOOL):
        raise TokenizerError(f"{key}: expected an array of numbers, found {value!r:.80}")
    array = value.to_numpy()
    if array.dtype.kind not in kinds:
        raise TokenizerError(f"{key}: its elements are {value.element_type.name}, which makes no sense here")
    return array


def metadata_numbers(metadata: Mapping[str, object], key: str) -> list[int]:
    """The array of integers at ``key``. Raises TokenizerError naming the key."""
    if key not in metadata:
        raise TokenizerError(f"{key}: missing")
    numbers: list[int] = _array(metadata[key], key, "iu").tolist()
    return numbers


def metadata_array(metadata: Mapping[str, object], key: str, kinds: str, n_vocab: int) -> npt.NDArray[Any] | None:
    """The array of ``n_vocab`` numbers at ``key`` (numpy kinds in ``kinds``); None when absent.

    Raises TokenizerError naming the key.
    """
    value = metadata.get(key)
    if value is None:
        return None
    array = _array(value, key, kinds)
    if len(array) != n_vocab:
        raise TokenizerError(f"{key}: {len(array)} elements, but tokenizer.ggml.tokens has {n_vocab}")
    return array


@dataclass(frozen=True)
class Vocabulary:
    """The tokens and rules of one file.

    ``texts``: the tokens' texts in the file; ``scores`` float32[n] and ``types`` int32[n] (TokenType; without them in the file
    all 0 and NORMAL); ``special``: name (see SPECIAL_KEYS) -> id; ``eog_ids``: end-of-generation tokens; ``template_texts``:
    values of ``bos_token`` and so on in a chat template that differ from the token's text (None: undefined); ``charsmap``: the
    replacements of SentencePiece's normalizer; ``token_type_count``: number of token types (segments) of an encoder;
    ``eats_before`` and ``eats_after``: special tokens that strip the whitespace before or after them.
    """

    model: str
    pre: str
    texts: list[bytes]
    scores: npt.NDArray[np.float32]
    types: npt.NDArray[np.int32]
    special: Mapping[str, int]
    eog_ids: frozenset[int]
    template_texts: Mapping[str, str | None]
    add_bos: bool
    add_eos: bool
    add_sep: bool
    add_space_prefix: bool
    remove_extra_whitespaces: bool
    lowercase: bool
    strip_accents: bool
    token_type_count: int
    charsmap: bytes
    eats_before: frozenset[int]
    eats_after: frozenset[int]
    ids: Mapping[bytes, int] = field(repr=False)

    @functools.cached_property
    def special_texts(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Tokens to match in a text before it is encoded, longest first: (always parsed, also those parsed on request)."""
        wanted = np.isin(self.types, (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED))
        pairs = [(self.texts[token].decode(), token) for token in map(int, np.flatnonzero(wanted)) if self.texts[token]]
        pairs.sort(key=lambda pair: -len(pair[0].encode()))
        return [pair for pair in pairs if self.types[pair[1]] == TokenType.USER_DEFINED], pairs


def read_vocabulary(metadata: Mapping[str, Any], families: Mapping[str, Any]) -> Vocabulary:
    """Read and check a vocabulary.

    ``families``: names of pre-tokenizers -> objects with their defaults of ``add_bos`` and ``add_sep``. Raises TokenizerError
    naming the key at fault.
    """
    model = metadata_value(metadata, PREFIX + "model", str, None)
    if model is None:
        raise TokenizerError("tokenizer.ggml.model: missing (the file has no vocabulary)")
    if model not in KINDS:
        raise TokenizerError(f"tokenizer.ggml.model: unknown tokenizer {model!r:.80}; known are {', '.join(KINDS)}")
    kind = KINDS[model]
    texts = metadata_strings(metadata, PREFIX + "tokens").to_bytes_list()
    n_vocab = len(texts)
    if not 0 < n_vocab < 2**31:
        raise TokenizerError(f"tokenizer.ggml.tokens: {n_vocab} tokens")
    _check_utf8(texts)
    scores, types = _scores(metadata, n_vocab), _types(metadata, n_vocab)
    ids = dict(zip(texts, range(n_vocab)))
    if len(ids) != n_vocab:
        _report_duplicate(texts)
    special = _special_ids(metadata, n_vocab, kind)
    pre = "gemma4" if model == "gemma4" else metadata_value(metadata, PREFIX + "pre", str, "default")
    family = families.get(pre) if model == "gpt2" else None
    add_bos = _flag(metadata, "bos", special, kind.add_bos or (family is not None and family.add_bos))
    if model == "gemma4" and "bos" in special:
        add_bos = True  # the first files of Gemma 4 have it false, and the model fails without it
    add_sep = _flag(metadata, "sep", special, kind.add_sep or (family is not None and family.add_sep))
    # A BERT text always ends with the separator, which converters name as EOS too.
    add_eos = model != "bert" and _flag(metadata, "eos", special, kind.add_eos)
    lowercase = metadata_value(metadata, PREFIX + "normalizer.lowercase", bool, model == "bert")
    eog_ids = end_ids(ids, special, types) | more_end_ids(metadata, n_vocab)
    eats_before, eats_after = stripping_tokens(metadata, ids, types, model, pre)
    count = metadata_value(metadata, PREFIX + "token_type_count", int, 0)
    if count < 0:
        raise TokenizerError(f"{PREFIX}token_type_count: {count}")
    return Vocabulary(
        model=model,
        pre=pre,
        texts=texts,
        scores=scores,
        types=types,
        special=special,
        eog_ids=eog_ids,
        template_texts=template_texts(metadata),
        add_bos=add_bos,
        add_eos=add_eos,
        add_sep=add_sep,
        add_space_prefix=metadata_value(metadata, PREFIX + "add_space_prefix", bool, kind.add_space_prefix),
        remove_extra_whitespaces=metadata_value(metadata, PREFIX + "remove_extra_whitespaces", bool, False),
        lowercase=lowercase,
        strip_accents=metadata_value(metadata, PREFIX + "normalizer.strip_accents", bool, lowercase),
        token_type_count=count,
        charsmap=_charsmap(metadata),
        eats_before=eats_before,
        eats_after=eats_after,
        ids=ids,
    )


def _check_utf8(texts: Sequence[bytes]) -> None:
    """Raise TokenizerError for the first token that is not UTF-8; vocabularies encode raw bytes in other ways."""
    try:
        b"\n".join(texts).decode()
    except UnicodeDecodeError:
        for token, text in enumerate(texts):
            try:
                text.decode()
            except UnicodeDecodeError:
                raise TokenizerError(f"{PREFIX}tokens: token {token}, {text!r:.80}, is not UTF-8") from None


def _scores(metadata: Mapping[str, object], n_vocab: int) -> npt.NDArray[np.float32]:
    scores = metadata_array(metadata, PREFIX + "scores", "fiu", n_vocab)
    if scores is None:
        return np.zeros(n_vocab, np.float32)
    scores = scores.astype(np.float32)
    if np.isnan(scores).any():
        raise TokenizerError(f"tokenizer.ggml.scores: element {int(np.isnan(scores).argmax())} is not a number")
    return scores


def _types(metadata: Mapping[str, object], n_vocab: int) -> npt.NDArray[np.int32]:
    types = metadata_array(metadata, PREFIX + "token_type", "iu", n_vocab)
    if types is None:
        return np.full(n_vocab, TokenType.NORMAL, np.int32)
    wrong = (types < 0) | (types > TokenType.BYTE)
    if wrong.any():
        token = int(wrong.argmax())
        raise TokenizerError(
            f"{PREFIX}token_type: token {token} is of type {types[token]}; expected 0 to {TokenType.BYTE:d}"
        )
    types = types.astype(np.int32)
    types[types == 0] = TokenType.UNUSED  # "undefined" in llama.cpp
    return types


def _charsmap(metadata: Mapping[str, object]) -> bytes:
    key = PREFIX + "precompiled_charsmap"
    value = metadata.get(key)
    if value is None:
        return b""
    if not isinstance(value, GGUFArray) or value.element_type not in (ValueType.INT8, ValueType.UINT8):
        raise TokenizerError(f"{key}: expected an array of bytes, found {value!r:.80}")
    return bytes(value.to_numpy().tobytes())


_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


def byte_value(token: int, text: bytes) -> int:
    """The byte that the text of a BYTE token names. Raises TokenizerError when it is not ``<0xXX>``."""
    match = _BYTE.fullmatch(text)
    if match is None:
        raise TokenizerError(
            f"{PREFIX}tokens: token {token} is of type BYTE, but its text is {text!r:.80}, not '<0xXX>'"
        )
    return int(match[1], 16)


def byte_ids(vocabulary: Vocabulary) -> dict[int, int]:
    """The BYTE tokens by their bytes: none, or all 256. Raises TokenizerError otherwise."""
    tokens = np.flatnonzero(vocabulary.types == TokenType.BYTE).tolist()
    ids = {byte_value(token, vocabulary.texts[token]): token for token in tokens}
    if 0 < len(ids) < 256:
        missing = min(set(range(256)) - ids.keys())
        raise TokenizerError(
            f"{PREFIX}tokens: {len(ids)} of the 256 byte tokens; <0x{missing:02X}> is the first one missing"
        )
    return ids


def _report_duplicate(texts: Sequence[bytes]) -> None:
    """Raise for the first duplicate text; empty texts may repeat, as placeholders that nothing encodes to."""
    seen: dict[bytes, int] = {}
    for token, text in enumerate(texts):
        if text and text in seen:
            raise TokenizerError(f"tokenizer.ggml.tokens: tokens {seen[text]} and {token} are both {text!r:.80}")
        seen[text] = token


def _special_ids(metadata: Mapping[str, object], n_vocab: int, kind: Kind) -> dict[str, int]:
    special = dict(kind.special) if all(token < n_vocab for token in kind.special.values()) else {}
    for name, keys in SPECIAL_KEYS.items():
        for key in keys:
            token = metadata_value(metadata, PREFIX + key, int, None)
            if token is not None:
                if not 0 <= token < n_vocab:
                    raise TokenizerError(f"{PREFIX}{key}: {token} is outside the vocabulary of {n_vocab} tokens")
                special[name] = token
                break
    if kind is KINDS["bert"] and "cls" in special and PREFIX + "bos_token_id" not in metadata:
        special["bos"] = special["cls"]  # two names of the token that begins a text
    return special


def _flag(metadata: Mapping[str, object], name: str, special: Mapping[str, int], default: bool) -> bool:
    """An ``add_..._token`` flag, which needs its token; without the token, a default of true becomes false."""
    key = f"{PREFIX}add_{name}_token"
    flag: bool | None = metadata_value(metadata, key, bool, None)
    if flag and name not in special:
        raise TokenizerError(f"{key}: true, but {PREFIX}{SPECIAL_KEYS[name][0]} is not set")
    return flag if flag is not None else default and name in special


_PHI3 = re.compile(r"phi[- ]?3", re.IGNORECASE)
#: Special tokens of Phi-3 that leave the whitespace after them alone.
_PHI3_OTHERS = (b"<unk>", b"<s>", b"<|endoftext|>")


def stripping_tokens(
    metadata: Mapping[str, object], ids: Mapping[bytes, int], types: npt.NDArray[np.int32], model: str, pre: str
) -> tuple[frozenset[int], frozenset[int]]:
    """Special tokens that strip whitespace before and after them, by model family, as GGUF has no key for it."""
    of_roberta = model == "t5" or (model == "gpt2" and pre.startswith(("jina-", "roberta")))
    mask = ids.get(b"<mask>") if of_roberta else ids.get(b"[MASK]") if pre == "modern-bert" else None
    before = frozenset() if mask is None else frozenset((mask,))
    name = metadata.get("general.name")
    if model != "llama" or not isinstance(name, str) or not _PHI3.search(name):
        return before, frozenset()
    special = np.flatnonzero(np.isin(types, (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)))
    after = {*special.tolist(), *(ids[text] for text in (b"</s>",) if text in ids)}
    return before, frozenset(after - {ids[text] for text in _PHI3_OTHERS if text in ids})


def more_end_ids(metadata: Mapping[str, object], n_vocab: int) -> frozenset[int]:
    """The tokens at EOG_KEY. Raises TokenizerError naming the key."""
    value = metadata.get(EOG_KEY)
    if value is None:
        return frozenset()
    tokens = value.to_list() if isinstance(value, GGUFArray) else [value]
    for token in tokens:
        if type(token) is not int or not 0 <= token < n_vocab:
            raise TokenizerError(f"{EOG_KEY}: expected an array of ids below {n_vocab}, found {token!r:.80}")
    return frozenset(token for token in tokens if isinstance(token, int))


def template_texts(metadata: Mapping[str, object]) -> dict[str, str | None]:
    """What chat templates see as ``bos_token`` and so on, by name, where not the text of that token; None for undefined.

    Raises TokenizerError naming the key.
    """
    undefined = metadata_strings(metadata, UNDEFINED_KEY).to_bytes_list() if UNDEFINED_KEY in metadata else []
    names = {name.encode(): name for name in TEMPLATE_NAMES}
    for name in undefined:
        if name not in names:
            raise TokenizerError(f"{UNDEFINED_KEY}: expected names of {', '.join(TEMPLATE_NAMES)}, found {name!r:.80}")
    given = {name: metadata_value(metadata, TEMPLATE_PREFIX + name, str, None) for name in TEMPLATE_NAMES}
    texts = {name: text for name, text in given.items() if text is not None}
    return {**texts, **{names[name]: None for name in undefined}}


def end_ids(ids: Mapping[bytes, int], special: dict[str, int], types: npt.NDArray[np.int32]) -> frozenset[int]:
    """Tokens that end a generation. Adds infill tokens known by text to ``special`` and corrects ``types``.

    Files often leave such tokens' types NORMAL: their text makes them CONTROL, as llama.cpp does.
    """
    for name, candidates in INFILL_TEXTS.items():
        if name not in special:
            token = next((ids[t.encode()] for t in candidates if t.encode() in ids), None)
            if token is not None:
                special[name] = token
                types[token] = TokenType.CONTROL
    by_text = {text: ids[text.encode()] for text in END_TEXTS if text.encode() in ids}
    for token in by_text.values():
        types[token] = TokenType.CONTROL
    for text in VISIBLE_TEXTS:
        if text.encode() in ids:
            types[ids[text.encode()]] = TokenType.USER_DEFINED
    ends = set(by_text.values())
    ends.update(special[name] for name in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep") if name in special)
    # Where a format has an end of answer and an end of call, "<|end|>" only closes one of several messages.
    calls = by_text.keys() & {"<|call|>", "<|calls|>"}
    if "<|end|>" in by_text and calls and by_text.keys() & {"<|return|>", "<|flush|>"}:
        ends.discard(by_text["<|end|>"])
        types[by_text["<|end|>"]] = TokenType.USER_DEFINED
    if "<|tool_response>" in by_text and "</s>" in by_text:
        ends.discard(by_text["</s>"])
        types[by_text["</s>"]] = TokenType.NORMAL
    return frozenset(ends)
