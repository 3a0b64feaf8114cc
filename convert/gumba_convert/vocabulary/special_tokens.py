"""Special tokens and chat templates of a checkpoint, by the rules of llama.cpp's converter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

from gumba.errors import ConvertError
from gumba.tokenizer.added_tokens import LSTRIP, NORMALIZED, RSTRIP, SINGLE_WORD
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.gguf_writer import Value, string, strings
from gumba_convert.vocabulary.chat_templates import DEFAULT, read_templates

FLAGS = {"lstrip": LSTRIP, "rstrip": RSTRIP, "single_word": SINGLE_WORD, "normalized": NORMALIZED}
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MAX_NAMED = 8
#: Special tokens that transformers' classes lack unless a file names them.
NO_DEFAULTS = {
    "PreTrainedTokenizer": KINDS,
    "TokenizersBackend": KINDS,
    "Qwen2Tokenizer": ("bos", "sep", "cls", "mask"),
}


class AddedToken(TypedDict):
    """An added token of tokenizer.json; `flags`: bits of `gumba.tokenizer.added_tokens`."""

    content: str
    special: bool
    flags: int


@dataclass
class SpecialTokens:
    """Special tokens and chat templates of a checkpoint.

    `ids`: by kind (bos, eos, eot, unk, ...). `add`: whether bos or eos is added to a text. `templates`: by name. `texts`: by
    kind, None if transformers' tokenizer does not have the token, even if config.json has an id for it.
    """

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def named_in_templates(self, name: str) -> bool:
        """Whether a chat template uses the variable `name`."""
        return any(name in template for template in self.templates.values())

    def template_metadata(self) -> dict[str, Value]:
        """`tokenizer.chat_template` for the default one, `tokenizer.chat_template.NAME` for the others."""
        result = {}
        others = []
        for name, template in self.templates.items():
            if name == DEFAULT:
                result["tokenizer.chat_template"] = string(template)
            else:
                result[f"tokenizer.chat_template.{name}"] = string(template)
                others.append(name)
        if others:
            result["tokenizer.chat_templates"] = strings(others)
        return result


def added_tokens(tokenizer: JsonObject, config: JsonObject, where: str) -> dict[int, AddedToken]:
    """Added tokens by id.

    tokenizer.json lists them; tokenizer_config.json may list them, too, and its flags take precedence, as in transformers.
    """
    result: dict[int, AddedToken] = {}
    listed = tokenizer.get("added_tokens")
    decoder = config.get("added_tokens_decoder")
    entries = (
        [(token.get("id"), token) for token in listed if isinstance(token, dict)] if isinstance(listed, list) else []
    )
    if isinstance(decoder, dict):
        entries += [
            (
                int(i) if i.isdecimal() else i,
                {"normalized": not token.get("special")} | token if isinstance(token, dict) else token,
            )
            for i, token in decoder.items()
        ]
    for i, token in entries:
        content = token.get("content") if isinstance(token, dict) else None
        if type(i) is not int or i < 0 or not isinstance(content, str) or not content:
            raise ConvertError(f"{where}: added token {i!r}: {str(token)[:120]} is not valid")
        special = bool(token.get("special")) or (i in result and result[i]["special"])
        result[i] = {"content": content, "special": special, "flags": _flags(token)}
    named = {text for kind in KINDS if (text := text_of(config.get(f"{kind}_token")))}
    for added in result.values():
        added["special"] = added["special"] or added["content"] in named
    return dict(sorted(result.items()))


def without_rows(
    tokenizer: JsonObject, config: JsonObject, extra: JsonObject, n_rows: int
) -> tuple[JsonObject, JsonObject, list[str]]:
    """Remove added tokens without a row of the embedding from tokenizer.json and tokenizer_config.json, with warnings.

    Gemma 3's `<image_soft_token>` is one: its id is the number of rows. transformers loads such a checkpoint, and
    llama.cpp's converter omits the token.

    Args:
        extra: added_tokens.json, ids by text; it is not changed.
    """
    removed: dict[int, str] = {}
    listed, decoder = tokenizer.get("added_tokens"), config.get("added_tokens_decoder")

    def has_row(i: object, content: object) -> bool:
        number = int(i) if isinstance(i, str) and i.isdecimal() else i
        if type(number) is not int or number < n_rows or not isinstance(content, str):
            return True  # invalid entries are refused when they are read
        removed.setdefault(number, content)
        return False

    if isinstance(listed, list):
        kept = [t for t in listed if not isinstance(t, dict) or has_row(t.get("id"), t.get("content"))]
        tokenizer = {**tokenizer, "added_tokens": kept}
    if isinstance(decoder, dict):
        kept_entries = {i: t for i, t in decoder.items() if not isinstance(t, dict) or has_row(i, t.get("content"))}
        config = {**config, "added_tokens_decoder": kept_entries}
    for text, i in extra.items():
        has_row(i, text)
    model = tokenizer.get("model")
    if removed and isinstance(model, dict) and "vocab" in model:
        tokenizer = {**tokenizer, "model": {**model, "vocab": _without(model["vocab"], removed)}}
    return tokenizer, config, _warnings_of_missing_rows(removed, config, n_rows)


def without_duplicates(tokenizer: JsonObject, config: JsonObject) -> tuple[JsonObject, JsonObject, list[str]]:
    """Remove added tokens whose text another token has from tokenizer.json and tokenizer_config.json, with warnings.

    The tokenizers library has one id per text: that of the model's vocabulary, else the lowest one listed. The other ids are
    never encoded, and have no text.
    """
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = dict(vocab) if isinstance(vocab, dict) else {}
    if isinstance(vocab, list):
        ids = {piece[0]: i for i, piece in enumerate(vocab) if isinstance(piece, list) and piece}
    listed, decoder = tokenizer.get("added_tokens"), config.get("added_tokens_decoder")
    pairs = [(t.get("id"), t.get("content")) for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    for number, content in sorted(pair for pair in pairs if type(pair[0]) is int and isinstance(pair[1], str)):
        ids.setdefault(content, number)
    warnings: dict[str, None] = {}

    def is_first(i: object, content: object) -> bool:
        number = int(i) if isinstance(i, str) and i.isdecimal() else i
        if type(number) is not int or not isinstance(content, str):
            return True
        first = ids.setdefault(content, number)
        if first != number:
            warnings[f"token {number} gets no text: {content!r:.100} is already token {first}"] = None
        return bool(first == number)

    if isinstance(listed, list):
        kept = [t for t in listed if not isinstance(t, dict) or is_first(t.get("id"), t.get("content"))]
        tokenizer = {**tokenizer, "added_tokens": kept}
    if isinstance(decoder, dict):
        kept_entries = {i: t for i, t in decoder.items() if not isinstance(t, dict) or is_first(i, t.get("content"))}
        config = {**config, "added_tokens_decoder": kept_entries}
    return tokenizer, config, [*warnings]


def _without(vocab: object, removed: dict[int, str]) -> object:
    """The vocabulary of tokenizer.json (ids by text, or a list of texts and scores) without the removed added tokens."""
    if isinstance(vocab, dict):
        return {text: i for text, i in vocab.items() if type(i) is not int or removed.get(i) != text}
    while (
        isinstance(vocab, list) and vocab and isinstance(vocab[-1], list) and removed.get(len(vocab) - 1) in vocab[-1]
    ):
        vocab = vocab[:-1]
    return vocab


def _warnings_of_missing_rows(removed: dict[int, str], config: JsonObject, n_rows: int) -> list[str]:
    warnings = []
    for i, text in sorted(removed.items())[:MAX_NAMED]:
        roles = [f"{kind}_token" for kind in KINDS if text_of(config.get(f"{kind}_token")) == text]
        role = f" ({', '.join(roles)})" if roles else ""
        warnings.append(
            f"added token {text!r:.100}{role} has id {i}, but the model's embedding has {n_rows} rows: it is omitted"
        )
    if len(removed) > MAX_NAMED:
        warnings.append(f"{len(removed) - MAX_NAMED} more added tokens without a row are omitted")
    return warnings


def _flags(token: JsonObject) -> int:
    """The flags of an added token as bits; missing ones are unset, as in transformers."""
    return sum(bit for name, bit in FLAGS.items() if token.get(name))


def read_special_tokens(
    checkpoint: Checkpoint, tokenizer: JsonObject, config: JsonObject, n_rows: int
) -> SpecialTokens:
    """Read special tokens and chat templates.

    Args:
        tokenizer: tokenizer.json, or empty. config: tokenizer_config.json, or empty.
        n_rows: ids from here on are not tokens and are omitted.
    """
    templates, warnings = read_templates(checkpoint, config)
    result = SpecialTokens(templates=templates, texts=_texts(checkpoint, config), warnings=warnings)
    texts = {kind: text_of(config.get(f"{kind}_token")) for kind in KINDS}
    kinds = list(KINDS)
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    before, after = tokens_around(tokenizer.get("post_processor"))
    if before:  # the token before a text is GGUF's BOS, whatever token the files name so
        texts["bos"] = before[0][0]
        result.add["bos"] = True
    if after:
        last = after[-1][0]
        if texts["eos"] and last != texts["eos"]:  # the end of a turn differs from the end of a text
            texts["eot"] = texts["eos"]
            kinds.append("eot")
        texts["eos"] = last
        result.add["eos"] = True
    if _has_separator(tokenizer.get("post_processor")):
        result.add["sep"] = True
    ids = {text: i for text, i in (*before, *after) if type(i) is int}
    ids |= {token["content"]: i for i, token in added_tokens(tokenizer, config, str(checkpoint.folder)).items()}
    listed = checkpoint.json("special_tokens_map.json") or {}
    for kind in kinds:
        add = config.get(f"add_{kind}_token")
        if isinstance(add, bool):
            if kind in ("bos", "eos") and tokenizer and add != result.add.get(kind, False):
                result.warnings.append(
                    f"tokenizer_config.json: add_{kind}_token is {str(add).lower()}, unlike the post-processor of "
                    "tokenizer.json, which transformers 5 follows; the GGUF file stores this setting, and llama.cpp follows it"
                )
            result.add[kind] = add
        named = ids.get(text_of(listed.get(f"{kind}_token")) or "")
        candidates = (ids.get(texts.get(kind) or ""), checkpoint.config.get(f"{kind}_token_id"), named)
        for i in candidates:
            i = i[0] if isinstance(i, list) and i else i
            if type(i) is int and 0 <= i < n_rows:
                result.ids[kind] = i
                break
    return result


def _texts(checkpoint: Checkpoint, config: JsonObject) -> dict[str, str | None]:
    """Texts of special tokens by kind; None for null, or if no file names one and the tokenizer's class has no default.

    special_tokens_map.json applies if tokenizer_config.json names none (transformers 5.24).
    """
    listed = checkpoint.json("special_tokens_map.json") or {}
    name = config.get("tokenizer_class")
    no_defaults = NO_DEFAULTS.get(name.removesuffix("Fast"), ()) if isinstance(name, str) else ()
    texts: dict[str, str | None] = {}
    for kind in KINDS:
        key = f"{kind}_token"
        text = text_of(config.get(key)) or text_of(listed.get(key))
        if text is not None or kind in no_defaults or (key in config and config[key] is None):
            texts[kind] = text
    return texts


def text_of(entry: object) -> str | None:
    """The text of a token, which is a string or an object with `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _leaves(processor: object) -> list[JsonObject]:
    """The steps of a post-processor, with nested sequences flattened."""
    if not isinstance(processor, dict):
        return []
    inner = processor.get("processors")
    return [leaf for item in inner for leaf in _leaves(item)] if isinstance(inner, list) else [processor]


def tokens_around(processor: object) -> tuple[list[tuple[str, object]], list[tuple[str, object]]]:
    """The special tokens that a post-processor adds before and after a single text, as pairs of text and id."""
    before: list[tuple[str, object]] = []
    after: list[tuple[str, object]] = []
    for step in _leaves(processor):
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            first, last = (_token_of_pair(step.get(key)) for key in ("cls", "sep"))
        elif step.get("type") == "TemplateProcessing":
            first, last = _tokens_of_template(step)
        else:
            continue
        before, after = first + before, after + last
    return before, after


def _token_of_pair(pair: object) -> list[tuple[str, object]]:
    """The token of a RobertaProcessing or BertProcessing, [text, id]; empty if it is malformed."""
    if not isinstance(pair, list) or len(pair) != 2:
        return []
    text = text_of(pair[0])
    return [] if text is None else [(text, pair[1])]


def _tokens_of_template(step: JsonObject) -> tuple[list[tuple[str, object]], list[tuple[str, object]]]:
    single, listed = step.get("single"), step.get("special_tokens")
    parts = [part for part in single if isinstance(part, dict)] if isinstance(single, list) else []
    texts = [i for i, part in enumerate(parts) if "Sequence" in part]
    if len(texts) != 1:
        return [], []

    def tokens(parts: list[JsonObject]) -> list[tuple[str, object]]:
        names = [part["SpecialToken"].get("id") for part in parts if isinstance(part.get("SpecialToken"), dict)]
        pairs: list[tuple[str, object]] = []
        for name in names:
            entry = listed.get(name) if isinstance(listed, dict) and isinstance(name, str) else None
            texts, ids = (entry.get(key) if isinstance(entry, dict) else None for key in ("tokens", "ids"))
            if isinstance(texts, list) and isinstance(ids, list) and texts and len(texts) == len(ids):
                pairs += [(str(text), i) for text, i in zip(texts, ids)]
            else:
                pairs.append((str(name), None))
        return pairs

    return tokens(parts[: texts[0]]), tokens(parts[texts[0] + 1 :])


def _has_separator(processor: object) -> bool:
    """Whether a pair of texts has more tokens between them than a single text has at its end."""
    leaves = _leaves(processor)
    if any(step.get("type") == "RobertaProcessing" for step in leaves):
        return True
    step = next((step for step in leaves if step.get("type") == "TemplateProcessing"), {})
    single, pair = step.get("single"), step.get("pair")
    if not isinstance(single, list) or not isinstance(pair, list):
        return False
    texts = [i for i, part in enumerate(pair) if isinstance(part, dict) and "Sequence" in part]
    last = [i for i, part in enumerate(single) if isinstance(part, dict) and "Sequence" in part]
    if len(texts) != 2 or len(last) != 1:
        return False
    begin = single[: last[0]]  # the tokens before a text may also precede the second one
    between = [part for part in pair[texts[0] + 1 : texts[1]] if not any(_same_token(part, other) for other in begin)]
    return len(between) > len(single) - last[0] - 1


def _same_token(part: object, other: object) -> bool:
    first, second = (item.get("SpecialToken") if isinstance(item, dict) else None for item in (part, other))
    return isinstance(first, dict) and isinstance(second, dict) and first.get("id") == second.get("id")
