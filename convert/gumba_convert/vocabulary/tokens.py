"""``Vocabulary``, as written to a GGUF file, and helpers for reading all kinds of vocabularies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from gumba.errors import ConvertError
from gumba.tokenizer.added_tokens import LSTRIP, NORMALIZED, RSTRIP, SPACES
from gumba.tokenizer.pipeline import ADDED_TOKEN_FLAGS, ADDED_TOKENS
from gumba.tokenizer.vocabulary import INFILL_TEXTS, stripping_tokens
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.gguf_writer import Value, boolean, f32_array, i32_array, string, strings, u32
from gumba_convert.vocabulary.special_tokens import AddedToken, SpecialTokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Added tokens of these forms are control tokens even if the checkpoint does not mark them.
CONTROL_FORM = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)


@dataclass
class Vocabulary:
    """Tokens with their GGUF types, one per row of the embedding; `scores` for SentencePiece, `merges` for BPE.

    `more`: further metadata of the tokenizer, keys without "tokenizer.ggml."; `template_texts`: metadata of the texts of special
    tokens in chat templates; `added`: the added tokens by id; `adds_tokens`: whether they are written to the file; `steps`:
    gumba's own keys (see `tokenizer_steps`).
    """

    model: str
    pre: str
    tokens: list[str]
    types: np.ndarray
    special: SpecialTokens
    scores: np.ndarray | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    more: dict[str, Value] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    template_texts: dict[str, Value] = field(default_factory=dict)
    added: dict[int, AddedToken] = field(default_factory=dict)
    adds_tokens: bool = False
    steps: dict[str, Value] = field(default_factory=dict)

    def metadata(self, name: str = "") -> dict[str, Value]:
        """The `tokenizer.*` and `gumba.tokenizer.*` metadata of a file with this `general.name`."""
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
        for kind, token in {**self.special.ids, **self._infill_ids()}.items():
            key = {"unk": "unknown", "sep": "seperator", "pad": "padding"}.get(kind, kind)  # GGUF's own names
            result[f"tokenizer.ggml.{key}_token_id"] = u32(token)
        for kind, add in self.special.add.items():
            result[f"tokenizer.ggml.add_{kind}_token"] = boolean(add)
        result |= {f"tokenizer.ggml.{key}": value for key, value in self.more.items()}
        result |= self.special.template_metadata() | self.template_texts
        result |= self.steps
        if self.adds_tokens or (self.added and not self.flags_are_known(name)):
            ids = sorted(self.added)
            flags = [self.added[i]["flags"] | SPACES * self._has_marks(i) for i in ids]
            result |= {ADDED_TOKENS: i32_array(ids), ADDED_TOKEN_FLAGS: i32_array(flags)}
        return result

    def flags_are_known(self, name: str) -> bool:
        """Whether readers know the flags of the added tokens from the kind of vocabulary alone."""
        ids = {text.encode("utf-8", "surrogatepass"): i for i, text in enumerate(self.tokens)}
        before, after = stripping_tokens({"general.name": name}, ids, self.types, self.model, self.pre)
        stripping = {i for i in (*before, *after) if self.types[i] in (UNKNOWN, CONTROL, USER_DEFINED)}
        known = {i: LSTRIP * (i in before) | RSTRIP * (i in after) for i in {*self.added, *stripping}}
        flags = {i: token["flags"] & ~NORMALIZED for i, token in self.added.items()}
        return all(flags.get(i, 0) == bits for i, bits in known.items())

    def _has_marks(self, i: int) -> bool:
        """Whether the file's text of a token has spaces instead of U+2581."""
        content = self.added[i]["content"]
        return "▁" in content and self.tokens[i] == content.replace("▁", " ")

    def _infill_ids(self) -> dict[str, int]:
        """Fill-in-the-middle tokens by their texts; empty unless prefix, suffix and middle tokens exist."""
        wanted = {text for texts in INFILL_TEXTS.values() for text in texts}
        ids = {text: i for i, text in enumerate(self.tokens) if text in wanted and self.types[i] != UNUSED}
        infill = {
            name: next(ids[text] for text in texts if text in ids)
            for name, texts in INFILL_TEXTS.items()
            if not ids.keys().isdisjoint(texts)
        }
        return infill if infill.keys() >= {"fim_pre", "fim_suf", "fim_mid"} else {}


def padding(n_rows: int) -> tuple[list[str], np.ndarray]:
    """`n_rows` unused tokens and their types."""
    return [f"[PAD{i}]" for i in range(n_rows)], np.full(n_rows, UNUSED, np.int32)


def add(tokens: list[str], types: np.ndarray, added: dict[int, AddedToken]) -> None:
    """Set the added tokens, whose ids are all below the number of rows (`without_rows`)."""
    for token_id, token in added.items():
        control = token["special"] or CONTROL_FORM.fullmatch(token["content"])
        kind = CONTROL if control else USER_DEFINED
        if types[token_id] not in (UNKNOWN, BYTE):
            types[token_id] = kind
        tokens[token_id] = token["content"].replace("▁", " ") if kind == USER_DEFINED else token["content"]


def ids_in_vocab(vocab: object, n_rows: int, where: str) -> dict[str, int]:
    """Check a mapping of token texts to ids: not empty, with distinct ids below `n_rows`."""
    if not isinstance(vocab, dict) or not vocab:
        raise ConvertError(f"{where}: no vocabulary")
    taken: dict[int, str] = {}
    for text, i in vocab.items():
        if type(i) is not int or i < 0:
            raise ConvertError(f"{where}: token {text!r} has id {i!r}")
        if i >= n_rows:
            raise ConvertError(f"{where}: token {text!r} has id {i}, but the model's embedding has {n_rows} rows")
        if i in taken:
            raise ConvertError(f"{where}: id {i} is both {taken[i]!r} and {text!r}")
        taken[i] = text
    return vocab


def steps(step: object, children: str) -> list[JsonObject]:
    """The steps of a normalizer or pre-tokenizer of tokenizer.json: the items of its list `children`, or itself."""
    if not isinstance(step, dict):
        return []
    inner = step.get(children)
    return [s for s in inner if isinstance(s, dict)] if isinstance(inner, list) else [step]
