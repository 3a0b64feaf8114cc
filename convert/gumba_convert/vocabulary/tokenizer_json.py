"""Exports the tokenizer of a GGUF file: tokenizer.json, tokenizer_config.json and generation_config.json."""

from __future__ import annotations

import numpy as np

from gumba.errors import ConvertError, TokenizerError
from gumba.gguf import GGUFArray, GGUFFile
from gumba.tokenizer.pipeline import KEYS, Steps, read_steps
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS
from gumba.tokenizer.vocabulary import more_end_ids, read_vocabulary, template_texts
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.vocabulary import pre_tokenizers
from gumba_convert.vocabulary.special_tokens import FLAGS
from gumba_convert.vocabulary.tokens import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

_MODELS = ("gpt2", "llama")
#: Sampler settings: general.sampling.* -> generation_config.json.
SAMPLING = (("temp", "temperature"), ("top_p", "top_p"), ("min_p", "min_p"), ("penalty_repeat", "repetition_penalty"))


def tokenizer_files(file: GGUFFile, n_ctx: int) -> dict[str, JsonObject]:
    """The contents of tokenizer.json, tokenizer_config.json and generation_config.json by file name.

    Raises:
        ConvertError: the vocabulary is of an unknown kind, or inconsistent.
    """
    model = file.require("tokenizer.ggml.model", str)
    if model not in _MODELS:
        raise ConvertError(f"{file.path}: tokenizer.ggml.model is {model!r}; known are {', '.join(_MODELS)}")
    tokens = [str(token) for token in file.require("tokenizer.ggml.tokens", GGUFArray).to_list()]
    types = file.get("tokenizer.ggml.token_type", GGUFArray)
    kinds = np.full(len(tokens), NORMAL) if types is None else types.to_numpy()
    if len(kinds) != len(tokens):
        raise ConvertError(f"{file.path}: {len(tokens)} tokens, but {len(kinds)} token types")
    vocab = {text: i for i, text in enumerate(tokens) if kinds[i] != UNUSED}
    ids = {name: _special(file, name, len(tokens)) for name in ("bos", "eos", "unknown", "padding", "eot", "eom")}
    texts = {name: tokens[i] for name, i in ids.items() if i is not None}
    steps = _steps(file)
    special = {i: text for i, text in enumerate(tokens) if kinds[i] in (CONTROL, USER_DEFINED, UNKNOWN)}
    flags = dict.fromkeys(special, 0)
    if steps is not None and steps.added is not None:
        flags = {token.id: token.flags for token in steps.added}
        special = {token.id: token.text for token in steps.added}
        vocab = {special.get(i, text): i for text, i in vocab.items()}
    tokenizer = (
        _gpt2(file, tokens, vocab, steps)
        if model == "gpt2"
        else _llama(file, tokens, kinds, vocab, texts.get("unknown"), steps)
    )
    added = [
        {"id": i, "content": text, **{name: bool(flags[i] & bit) for name, bit in FLAGS.items()}}
        | {"special": bool(kinds[i] != USER_DEFINED)}
        for i, text in special.items()
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **tokenizer,
        "post_processor": _post_processor(file, model, texts, vocab),
    }
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _config(file, texts, n_ctx),
        "generation_config.json": _generation(file, ids, more_end_ids(file.metadata, len(tokens))),
    }


def _config(file: GGUFFile, texts: dict[str, str], n_ctx: int) -> JsonObject:
    """tokenizer_config.json; `texts`: special tokens by GGUF's names."""
    config: JsonObject = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
    }
    for ours, theirs in (
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
    ):
        if ours in texts:
            config[theirs] = texts[ours]
    config |= template_texts(file.metadata)
    template = _chat_template(file)
    if template:
        config["chat_template"] = template
    return config


def special_ids(file: GGUFFile, n_tokens: int) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id for config.json."""
    pairs = (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id"))
    ids = {theirs: _special(file, ours, n_tokens) for ours, theirs in pairs}
    return {name: i for name, i in ids.items() if i is not None}


def _special(file: GGUFFile, name: str, n_tokens: int) -> int | None:
    i = file.get(f"tokenizer.ggml.{name}_token_id", int)
    if i is not None and not 0 <= i < n_tokens:
        raise ConvertError(f"{file.path}: tokenizer.ggml.{name}_token_id is {i}, but there are {n_tokens} tokens")
    return i


def _steps(file: GGUFFile) -> Steps | None:
    """The steps in the file's `gumba.tokenizer.*` keys; None without any."""
    try:
        return read_steps(file.metadata, read_vocabulary(file.metadata, PRE_TOKENIZERS))
    except TokenizerError as error:
        raise ConvertError(f"{file.path}: {error}") from None


def _with_steps(
    tokenizer: JsonObject, file: GGUFFile, tokens: list[str], vocab: dict[str, int], steps: Steps | None
) -> JsonObject:
    """`tokenizer` with the file's own steps instead of those that the kind of vocabulary implies."""
    if steps is None or not (steps.has_normalizer or steps.has_words):
        return tokenizer
    tokenizer |= {"normalizer": steps.normalizer_step}
    if not steps.has_words:
        return tokenizer
    options = {"unk_id": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False} | steps.options
    unknown = options.pop("unk_id")
    model = tokenizer["model"] | options | {"unk_token": None if unknown is None else tokens[unknown]}
    if KEYS + "merges" in file.metadata:
        model["merges"] = _pairs(file, KEYS + "merges", vocab)
    return tokenizer | {"pre_tokenizer": steps.pre_tokenizer_step, "model": model}


def _pairs(file: GGUFFile, key: str, vocab: dict[str, int]) -> list[list[str]]:
    """The merges of a file, each as two tokens."""
    merges = [str(merge).split(" ") for merge in file.require(key, GGUFArray).to_list()]
    for i, pair in enumerate(merges):
        if len(pair) != 2 or "".join(pair) not in vocab or pair[0] not in vocab or pair[1] not in vocab:
            raise ConvertError(f"{file.path}: {key}[{i}] {' '.join(pair)!r} contains or forms an unknown token")
    return merges


def _gpt2(file: GGUFFile, tokens: list[str], vocab: dict[str, int], steps: Steps | None) -> JsonObject:
    pre = file.get("tokenizer.ggml.pre", str, "default")
    merges = _pairs(file, "tokenizer.ggml.merges", vocab)
    own_words = steps is not None and steps.has_words
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "normalizer": None,
        "pre_tokenizer": None if own_words else pre_tokenizers.to_json(pre),
        "decoder": {"type": "Fuse"} if steps is not None and own_words and not steps.byte_level else byte_level,
        "model": _bpe(vocab, merges, None, byte_fallback=False, ignore_merges=PRE_TOKENIZERS[pre].whole_words),
    }
    return _with_steps(tokenizer, file, tokens, vocab, steps)


def _llama(
    file: GGUFFile,
    tokens: list[str],
    kinds: np.ndarray,
    vocab: dict[str, int],
    unknown: str | None,
    steps: Steps | None,
) -> JsonObject:
    stored = file.get("tokenizer.ggml.scores", GGUFArray)
    scores = np.zeros(len(tokens), np.float32) if stored is None else stored.to_numpy()
    if len(scores) != len(tokens):
        raise ConvertError(f"{file.path}: {len(tokens)} tokens, but {len(scores)} scores")
    merges = _merges(tokens, np.asarray(scores, np.float64), kinds, vocab)
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    if steps is not None and steps.has_words:
        prefix = steps.prefix != "never"
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    decoders: list[JsonObject] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    tokenizer = {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace] if prefix else [replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, merges, unknown, byte_fallback=True, ignore_merges=False),
    }
    return _with_steps(tokenizer, file, tokens, vocab, steps)


def _merges(tokens: list[str], scores: np.ndarray, kinds: np.ndarray, vocab: dict[str, int]) -> list[list[str]]:
    """All pairs that form a token, best-scored token first: SentencePiece's order as a list of merges."""
    normal = np.flatnonzero(kinds == NORMAL)
    merges: list[list[str]] = []
    usable = {text for text, i in vocab.items() if kinds[i] == NORMAL}
    for i in normal[np.argsort(-scores[normal], kind="stable")]:
        text = tokens[i]
        splits = [(text[:at], text[at:]) for at in range(1, len(text))]
        pairs = [pair for pair in splits if pair[0] in usable and pair[1] in usable]
        merges += sorted(([left, right] for left, right in pairs), key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


def _bpe(
    vocab: dict[str, int], merges: list[list[str]], unknown: str | None, *, byte_fallback: bool, ignore_merges: bool
) -> JsonObject:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _post_processor(file: GGUFFile, model: str, texts: dict[str, str], vocab: dict[str, int]) -> JsonObject | None:
    """A post-processor that adds BOS and EOS if the file sets it; defaults as of GGUF readers."""
    family = PRE_TOKENIZERS.get(file.get("tokenizer.ggml.pre", str, "default"))
    starts = model == "llama" or (family is not None and family.add_bos)
    before = ["bos"] if "bos" in texts and file.get("tokenizer.ggml.add_bos_token", bool, starts) else []
    after = ["eos"] if "eos" in texts and file.get("tokenizer.ggml.add_eos_token", bool, False) else []
    if not before and not after:
        return None

    def part(sequence: str, type_id: int) -> list[JsonObject]:
        middle = {"Sequence": {"id": sequence, "type_id": type_id}}
        around = [
            [{"SpecialToken": {"id": texts[name], "type_id": type_id}} for name in side] for side in (before, after)
        ]
        return [*around[0], middle, *around[1]]

    used = {texts[name] for name in (*before, *after)}
    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": {text: {"id": text, "ids": [vocab[text]], "tokens": [text]} for text in sorted(used)},
    }


def _chat_template(file: GGUFFile) -> str | list[dict[str, str]] | None:
    default = file.get("tokenizer.chat_template", str)
    names = file.get("tokenizer.chat_templates", GGUFArray)
    if names is None:
        return default
    named = [(str(name), file.require(f"tokenizer.chat_template.{name}", str)) for name in names.to_list()]
    return [{"name": name, "template": text} for name, text in [("default", default), *named] if text]


def _generation(file: GGUFFile, ids: dict[str, int | None], more: frozenset[int]) -> JsonObject:
    result: JsonObject = {}
    named = [i for name in ("eos", "eot", "eom") if (i := ids[name]) is not None]
    ends = list(dict.fromkeys([*named, *sorted(more)]))
    if ends:
        result["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    for ours, theirs in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if ids[ours] is not None:
            result[theirs] = ids[ours]
    for ours, theirs in SAMPLING:
        value = file.get(f"general.sampling.{ours}", float)
        if value is not None:
            result[theirs] = float(str(np.float32(value)))
    top_k = file.get("general.sampling.top_k", int)
    if top_k is not None:
        result["top_k"] = top_k
    if result.keys() & {"temperature", "top_p", "min_p", "top_k"}:
        result["do_sample"] = True
    return result
