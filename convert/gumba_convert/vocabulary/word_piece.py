"""WordPiece vocabularies (BERT): tokenizer.json of that kind, or vocab.txt."""

from __future__ import annotations

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.gguf_writer import boolean, u32
from gumba_convert.vocabulary.special_tokens import AddedToken, SpecialTokens, added_tokens
from gumba_convert.vocabulary.tokens import CONTROL, NORMAL, Vocabulary, add, ids_in_vocab, padding, steps

_DEFAULTS = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
_MARK = "▁"


def from_json(
    checkpoint: Checkpoint, tokenizer: JsonObject, config: JsonObject, n_rows: int, special: SpecialTokens
) -> Vocabulary:
    """Read tokenizer.json; `tokenizer_steps` handles steps other than BERT's. Raises ConvertError for an invalid vocabulary."""
    where = f"{checkpoint.folder / 'tokenizer.json'}"
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    if not isinstance(prefix, str) or not prefix:
        raise ConvertError(f"{where}: continuing_subword_prefix {prefix!r} is not supported")
    normalizer = next((step for step in steps(tokenizer.get("normalizer"), "normalizers")
                       if step.get("type") == "BertNormalizer"), {"lowercase": False})  # fmt: skip
    vocab = ids_in_vocab(model.get("vocab"), n_rows, where)
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in vocab:
        special.ids["unk"] = vocab[unknown]
    lowercase = bool(normalizer.get("lowercase", True))
    strip = normalizer.get("strip_accents")
    return _vocabulary(
        checkpoint, vocab, added_tokens(tokenizer, config, where), n_rows, special, where, lowercase, strip, prefix
    )


def from_text(checkpoint: Checkpoint, text: str, config: JsonObject, n_rows: int, special: SpecialTokens) -> Vocabulary:
    """Read vocab.txt, with one token per line."""
    where = f"{checkpoint.folder / 'vocab.txt'}"
    lines = text.removesuffix("\n").split("\n")
    vocab = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise ConvertError(f"{where}: {len(lines)} lines, but only {len(vocab)} different tokens")
    if config.get("tokenize_chinese_chars", True) is False:
        raise ConvertError(
            f"{where}: tokenize_chinese_chars is false, which only a tokenizer.json can express: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        )
    lowercase = config.get("do_lower_case", True) is not False
    vocab = ids_in_vocab(vocab, n_rows, where)
    strip = config.get("strip_accents")
    return _vocabulary(checkpoint, vocab, added_tokens({}, config, where), n_rows, special, where, lowercase, strip)


def _vocabulary(
    checkpoint: Checkpoint,
    vocab: dict[str, int],
    added: dict[int, AddedToken],
    n_rows: int,
    special: SpecialTokens,
    where: str,
    lowercase: bool,
    strip_accents: object,
    prefix: str = "##",
) -> Vocabulary:
    tokens, types = padding(n_rows)
    for text, i in vocab.items():
        tokens[i], types[i] = text, NORMAL
    add(tokens, types, added)
    for kind, text in _DEFAULTS.items():
        if text in vocab:
            special.ids.setdefault(kind, vocab[text])
    for i in special.ids.values():
        types[i] = CONTROL
    # GGUF marks the pieces that begin a word, not those that continue one.
    ambiguous = []
    for i in range(n_rows):
        if types[i] == NORMAL:
            continues = tokens[i].startswith(prefix) and len(tokens[i]) > len(prefix)
            tokens[i] = tokens[i][len(prefix) :] if continues else _MARK + tokens[i]
            ambiguous += [tokens[i]] if continues and tokens[i].startswith(_MARK) and tokens[i] != _MARK else []
    if "unk" not in special.ids or "cls" not in special.ids or "sep" not in special.ids:
        raise ConvertError(f"{where}: no unknown, class or separator token")
    if len(set(tokens)) != n_rows:
        twice = next(text for i, text in enumerate(tokens) if text in tokens[:i])
        raise ConvertError(f"{where}: the token {twice!r} occurs twice")
    special.ids["bos"] = special.ids["cls"]  # readers look for either
    special.ids.setdefault("eos", special.ids["sep"])
    special.add = {}  # the class and the separator are always added
    vocabulary = Vocabulary("bert", "bert-bge", tokens, types, special)
    if ambiguous:
        vocabulary.warnings.append(
            f"{where}: GGUF cannot tell pieces such as {prefix + ambiguous[0]!r} from {ambiguous[0][1:]!r} at the start of a word"
        )
    strip = lowercase if not isinstance(strip_accents, bool) else strip_accents
    vocabulary.more = {
        "normalizer.lowercase": boolean(lowercase),
        "normalizer.strip_accents": boolean(strip),
        "token_type_count": u32(token_types(checkpoint, 2)),
    }
    return vocabulary


def token_types(checkpoint: Checkpoint, default: int) -> int:
    """The number of token types in the model's embedding."""
    count = checkpoint.config.get("type_vocab_size", default)
    if type(count) is not int or not 0 <= count < 2**16:
        raise ConvertError(f"{checkpoint.folder / 'config.json'}: type_vocab_size is {count!r}")
    return count
