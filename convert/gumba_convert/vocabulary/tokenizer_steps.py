"""Settings of tokenizer.json without a GGUF key, written to keys of gumba (see `gumba.tokenizer.pipeline`).

GGUF names a kind of vocabulary, which implies a normalizer, a pre-tokenizer and a model; tokenizer.json contains them. If they
differ, the steps are stored in the file as they are, with the added tokens and their flags. llama.cpp reads none of these keys:
a warning names the difference.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import numpy as np

from gumba.errors import ConvertError, TokenizerError
from gumba.tokenizer import added_tokens as rules
from gumba.tokenizer.byte_bpe import BYTE_TO_CHARACTER
from gumba.tokenizer.normalizers import normalizer
from gumba.tokenizer.patterns import deadline_of
from gumba.tokenizer.pipeline import ADDED_TOKENS, KEYS
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS
from gumba.tokenizer.words import Pieces, cutter
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.gguf_writer import f64_array, string, strings
from gumba_convert.vocabulary import pre_tokenizers
from gumba_convert.vocabulary.pre_tokenizer_probe import PROBE
from gumba_convert.vocabulary.special_tokens import AddedToken, tokens_around
from gumba_convert.vocabulary.tokens import BYTE, NORMAL, Vocabulary, steps

_SPACE = "▁"
_MAX_SHOWN = 300  # characters of the steps in a warning
#: Decoders that decode tokens as gumba does.
_DECODERS = ("ByteLevel", "Metaspace", "WordPiece", "ByteFallback", "Fuse", "Strip", "Replace")
_SPACES_MARKED: JsonObject = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
#: Texts for testing a file's patterns: one that takes too long on these is refused.
_TEST_TEXTS = (PROBE, "a" * 3000, " " * 3000, "a " * 1500, "1" * 3000, "a1!\n" * 750)


def add_steps(
    vocabulary: Vocabulary, tokenizer: JsonObject, added: dict[int, AddedToken], where: str, *, named: bool
) -> None:
    """Add the settings of tokenizer.json without a GGUF key, and warnings, to a vocabulary.

    Args:
        tokenizer: tokenizer.json. added: its added tokens, as `special_tokens.added_tokens` has them.
        named: the user has named the pre-tokenizer (`vocabulary.pre`), which overrides tokenizer.json.

    Raises:
        ConvertError: gumba does not support a step, or some byte tokens are missing.
    """
    n_bytes = int((vocabulary.types == BYTE).sum())
    if 0 < n_bytes < 256:
        raise ConvertError(f"{where}: byte_fallback, but only {n_bytes} of the 256 byte tokens")
    for name, children in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        if not _is_step(tokenizer.get(name), children):
            raise ConvertError(f"{where}: {name} is not a tokenizer step: {tokenizer[name]!s:.200}")
    if isinstance(tokenizer.get("added_tokens"), list):
        vocabulary.added = {i: token for i, token in added.items() if i < len(vocabulary.tokens)}
    normalizers, model = steps(tokenizer.get("normalizer"), "normalizers"), tokenizer["model"]
    reasons = [] if named else _REASONS[vocabulary.model](vocabulary, tokenizer)
    alone = vocabulary.model == "gpt2" and bool(normalizers) and not reasons and vocabulary.pre != "whitespace"
    _warn(vocabulary, tokenizer, where, differs=bool(reasons))
    vocabulary.adds_tokens = bool(reasons) or _is_ambiguous(vocabulary.added.values())
    if not reasons and not alone:
        warn_of_flags(vocabulary, where)
        return
    _check(tokenizer, where)
    keys = {"normalizer": string(_to_json(tokenizer.get("normalizer")))}
    if reasons:
        keys["pre_tokenizer"] = string(_to_json(tokenizer.get("pre_tokenizer")))
        keys["model"] = string(json.dumps(_options(vocabulary, model)))
        if vocabulary.model == "llama":
            keys["merges"] = strings(f"{left} {right}" for left, right in _pairs(model))
        if vocabulary.model == "t5":
            assert vocabulary.scores is not None
            scores = vocabulary.scores.astype(np.float64)
            scores[: len(model["vocab"])] = [score for _, score in model["vocab"]]
            if (scores.astype(np.float32) != scores).any():
                keys["scores"] = f64_array(scores)
    vocabulary.steps = {KEYS + name: value for name, value in keys.items()}
    vocabulary.adds_tokens = vocabulary.adds_tokens or any(
        token["flags"] & rules.NORMALIZED for token in added.values()
    )
    reason = "; ".join(reasons) or f"the tokenizer normalizes text: {_shown(normalizers)}"
    warn_of_flags(vocabulary, where)
    vocabulary.warnings.append(
        f"{where}: {reason}. GGUF has no key for it: gumba uses its own ({KEYS}*), llama.cpp gives other ids for some texts"
    )


def _is_step(step: object, children: str) -> bool:
    """Whether `step` is a step or null, and the items of a sequence are steps."""
    if not isinstance(step, dict):
        return step is None
    inner = step.get(children) if step.get("type") == "Sequence" else []
    return isinstance(inner, list) and all(isinstance(item, dict) and _is_step(item, children) for item in inner)


def warn_of_flags(vocabulary: Vocabulary, where: str) -> None:
    """Warn about added tokens that llama.cpp matches differently."""
    odd = [token["content"] for token in vocabulary.added.values() if token["flags"] & ~rules.NORMALIZED]
    if not vocabulary.flags_are_known(""):
        what = (
            f"added tokens strip whitespace or match whole words only ({', '.join(map(repr, odd[:5]))})"
            if odd
            else "no added token strips whitespace, unlike in other models of its family"
        )
    elif vocabulary.adds_tokens and not vocabulary.steps:
        what = "added tokens overlap"
    else:
        return
    vocabulary.warnings.append(f"{where}: {what}: gumba follows their flags ({ADDED_TOKENS}), llama.cpp does not")


def _to_json(step: object) -> str:
    """A step as JSON, without the table of a Precompiled normalizer, which has a GGUF key."""

    def without_table(value: object) -> object:
        if isinstance(value, dict):
            return {key: without_table(item) for key, item in value.items() if key != "precompiled_charsmap"}
        return [without_table(item) for item in value] if isinstance(value, list) else value

    return json.dumps(without_table(step), ensure_ascii=False, separators=(",", ":"))


def _shown(listed: Iterable[JsonObject]) -> str:
    text = ", ".join(
        " ".join(
            [str(step.get("type")), *(_to_json({k: v}) for k, v in step.items() if k not in ("type", "trim_offsets"))]
        )
        for step in listed
    )
    return f"{text[:_MAX_SHOWN]} ..." if len(text) > _MAX_SHOWN else text or "none"


def _check(tokenizer: JsonObject, where: str) -> None:
    """Refuse steps that the runtime refuses, and patterns that take too long."""
    try:
        step = tokenizer.get("normalizer")
        normalize = normalizer(step, lambda text: text) if step else None
        texts = [normalize(text, deadline_of(text)) if normalize else text for text in _TEST_TEXTS]
    except TokenizerError as error:
        raise ConvertError(f"{where}: {error}") from None
    try:
        step = tokenizer.get("pre_tokenizer")
        for split in [cutter(step)] if step else []:
            for text in texts:
                split(Pieces([text], True), deadline_of(text))
    except TokenizerError as error:
        raise ConvertError(
            f"{where}: {error}. If GGUF has a name for this pre-tokenizer, give it: `gumba convert SOURCE -o OUT.gguf "
            f"--pre-tokenizer NAME` (in Python, pre_tokenizer=NAME); known are {', '.join(sorted(pre_tokenizers.NAMES))}"
        ) from None


# The reasons why GGUF's keys are insufficient, by kind of vocabulary.


def _reasons_gpt2(vocabulary: Vocabulary, tokenizer: JsonObject) -> list[str]:
    model, family = tokenizer["model"], PRE_TOKENIZERS[vocabulary.pre]
    cutters, normalizers = (_leaves(tokenizer, name) for name in ("pre_tokenizer", "normalizer"))
    ignores = bool(model.get("ignore_merges"))
    reasons = []
    name, exact = pre_tokenizers.detect(tokenizer.get("pre_tokenizer"), ignore_merges=ignores)
    if not exact or PRE_TOKENIZERS[str(name)].steps != family.steps:
        reasons.append(f"pre-tokenizer {_shown(cutters)}")
    if ignores != family.whole_words and not family.characters:
        reasons.append(
            f"ignore_merges is {str(ignores).lower()}, but pre-tokenizer {vocabulary.pre!r} implies the opposite"
        )
    if vocabulary.pre == "whitespace":
        reasons += [f"normalizer {_shown(normalizers)}"] if normalizers not in ([], [{"type": "Lowercase"}]) else []
        unknown = vocabulary.special.ids.get("unk")
        if model.get("fuse_unk") or ignores or _unknown_id(vocabulary, model) != unknown:
            reasons.append("options of the BPE model")
    elif model.get("unk_token") and not set(BYTE_TO_CHARACTER.values()) <= set(vocabulary.tokens):
        reasons.append(f"unk_token {model['unk_token']!r} of BPE over characters")
    elif any(step.get("type") == "ByteLevel" for step in normalizers):
        reasons.append("a ByteLevel normalizer")
    return reasons


def _reasons_gemma4(vocabulary: Vocabulary, tokenizer: JsonObject) -> list[str]:
    return _unlisted_steps(tokenizer, [[_SPACES_MARKED]], [[], *_SPLIT_AT_SPACES])


def _reasons_llama(vocabulary: Vocabulary, tokenizer: JsonObject) -> list[str]:
    model, added = tokenizer["model"], vocabulary.added.values()
    prefix = vocabulary.add_space_prefix is not False
    normalizers: list[JsonObject] = (
        [{"type": "Prepend", "prepend": _SPACE}, _SPACES_MARKED] if prefix else [_SPACES_MARKED]
    )
    bare = [] if prefix else [[{"type": "Metaspace", "prepend_scheme": "never", "split": False, "replacement": _SPACE}]]
    reasons = _unlisted_steps(tokenizer, [normalizers], [[], *_SPLIT_AT_SPACES])
    if reasons and bare and not _unlisted_steps(tokenizer, [[]], bare):
        reasons = []
    if model.get("ignore_merges"):
        reasons.append("ignore_merges is true")
    if not reasons and not _is_order_of_scores(vocabulary, model):
        reasons.append("merges whose order scores cannot express")
    normalized = [token["content"] for token in added if token["flags"] & rules.NORMALIZED]
    if not reasons and any(prefix or " " in text or _SPACE in text for text in normalized):
        reasons.append(f"added tokens that match normalized text ({normalized[0]!r} ...)")
    return reasons


def _reasons_t5(vocabulary: Vocabulary, tokenizer: JsonObject) -> list[str]:
    # Hugging Face's tables replace grapheme clusters, SentencePiece's the longest strings; Metaspace adds no second space.
    named = (f"{name} {_shown(_leaves(tokenizer, name))}" for name in ("normalizer", "pre_tokenizer"))
    return [" and ".join(named)]


def _reasons_bert(vocabulary: Vocabulary, tokenizer: JsonObject) -> list[str]:
    model, normalizers = tokenizer["model"], _leaves(tokenizer, "normalizer")
    reasons = _unlisted_steps(tokenizer, [normalizers], [[{"type": "BertPreTokenizer"}]])
    step = normalizers[0] if len(normalizers) == 1 else {}
    if step.get("type") != "BertNormalizer" or not (
        step.get("clean_text", True) and step.get("handle_chinese_chars", True)
    ):
        reasons.append(f"normalizer {_shown(normalizers)}")
    if model.get("max_input_chars_per_word", 100) != 100:
        reasons.append(f"max_input_chars_per_word is {model['max_input_chars_per_word']}")
    if any(token["flags"] & rules.NORMALIZED for token in vocabulary.added.values()):
        reasons.append("added tokens that match normalized text")
    return reasons


_REASONS = {
    "gpt2": _reasons_gpt2, "gemma4": _reasons_gemma4, "llama": _reasons_llama, "t5": _reasons_t5, "bert": _reasons_bert,
}  # fmt: skip
#: Pre-tokenizers that split nothing after spaces became U+2581.
_SPLIT_AT_SPACES = [
    [{"type": "Split", "pattern": {"String": " "}, "behavior": behavior, "invert": False}]
    for behavior in ("MergedWithPrevious", "MergedWithNext", "Isolated")
]


def _leaves(tokenizer: JsonObject, name: str) -> list[JsonObject]:
    """The steps of the normalizer or pre-tokenizer, with nested sequences flattened."""

    def flat(step: object) -> list[JsonObject]:
        inner = steps(step, "normalizers" if name == "normalizer" else "pretokenizers")
        return inner if inner == [step] else [leaf for item in inner for leaf in flat(item)]

    return flat(tokenizer.get(name))


def _unlisted_steps(
    tokenizer: JsonObject, normalizers: list[list[JsonObject]], cutters: list[list[JsonObject]]
) -> list[str]:
    """Reasons for a normalizer or pre-tokenizer that is not among those listed."""
    parts = ((name, _leaves(tokenizer, name), listed) for name, listed in
             (("normalizer", normalizers), ("pre_tokenizer", cutters)))  # fmt: skip
    return [f"{name} {_shown(leaves)}" for name, leaves, listed in parts if leaves not in listed]


def _pairs(model: JsonObject) -> Iterable[tuple[str, str]]:
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield (left, right)


def _is_order_of_scores(vocabulary: Vocabulary, model: JsonObject) -> bool:
    """Whether merging by scores equals merging in order: all pairs that form a token are listed, best scores first."""
    assert vocabulary.scores is not None
    normal = vocabulary.types == NORMAL
    scores = dict(zip(itertools.compress(vocabulary.tokens, normal), vocabulary.scores[normal].tolist()))
    last, listed = float("inf"), set()
    for pair in _pairs(model):
        score = scores.get("".join(pair))
        if score is None or pair[0] not in scores or pair[1] not in scores:
            continue
        if score > last:
            return False
        last = score
        listed.add(pair)
    # Every listed pair forms a token: if there are as many pairs in all, none is missing.
    ways = sum(text[:at] in scores and text[at:] in scores for text in scores for at in range(1, len(text)))
    return ways == len(listed)


def _unknown_id(vocabulary: Vocabulary, model: JsonObject) -> int | None:
    unknown = model.get("unk_token")
    return vocabulary.tokens.index(unknown) if isinstance(unknown, str) and unknown in vocabulary.tokens else None


def _options(vocabulary: Vocabulary, model: JsonObject) -> JsonObject:
    if vocabulary.model == "t5":
        return {"unk_id": model["unk_id"]} if type(model.get("unk_id")) is int else {}
    if vocabulary.model == "bert":
        return {
            "max_input_chars_per_word": model.get("max_input_chars_per_word", 100),
            "continuing_subword_prefix": model.get("continuing_subword_prefix", "##"),
        }
    unknown = _unknown_id(vocabulary, model)
    options: JsonObject = {} if unknown is None else {"unk_id": unknown}
    return options | {name: bool(model.get(name)) for name in ("fuse_unk", "byte_fallback", "ignore_merges")}


# Added tokens.


def _is_ambiguous(added: Iterable[AddedToken]) -> bool:
    """Whether leftmost-first matching of added tokens can differ from llama.cpp's longest-first."""
    texts = [(token["content"], bool(token["flags"] & rules.NORMALIZED)) for token in added]
    plain = {text for text, normalized in texts if not normalized}
    if any(normalized and any(other in text for other in plain) for text, normalized in texts):
        return True  # a token that is not normalized is matched first, however short
    beginnings = {text[:n] for text, _ in texts for n in range(1, len(text))}
    ends = {text[n:] for text, _ in texts for n in range(1, len(text)) if len(set(text)) > 1}
    runs = {text for text, _ in texts if len(set(text)) == 1 and len(text) > 1}
    mixed = {text[:n] for text, _ in texts for n in range(1, len(text)) if len(set(text)) > 1}
    return bool(beginnings & ends) or any(run[1:] in mixed for run in runs)


def _warn(vocabulary: Vocabulary, tokenizer: JsonObject, where: str, *, differs: bool) -> None:
    """Warn about settings that gumba does not implement."""
    if tokenizer["model"].get("dropout"):
        vocabulary.warnings.append(
            f"{where}: dropout {tokenizer['model']['dropout']!r} of BPE applies to training only: omitted"
        )
    decoder = tokenizer.get("decoder")
    unknown = [step for step in steps(decoder, "decoders") if step.get("type") not in _DECODERS]
    if unknown or (differs and decoder is None and vocabulary.model != "bert"):
        vocabulary.warnings.append(f"{where}: decoder {_shown(unknown)}: gumba decodes ids differently")
    around = tokens_around(tokenizer.get("post_processor"))
    if max(map(len, around)) > 1:
        texts = [text for side in around for text, _ in side]
        vocabulary.warnings.append(
            f"{where}: the post-processor puts {len(texts)} tokens around a text ({', '.join(texts)!s:.100}); GGUF "
            "has a key for one before and one after it; the others are omitted"
        )
