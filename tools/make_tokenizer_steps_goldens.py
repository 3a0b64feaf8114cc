"""Makes tests/data/tokenizer_steps_goldens.json: ids of Hugging Face's tokenizers library for steps that GGUF cannot say.

    python tools/make_tokenizer_steps_goldens.py

Runs where tokenizers (0.23.3 made the file) and sentencepiece are. Written are a small trained vocabulary of each kind (the
text of a tokenizer.json), and cases: what of it is replaced, and the ids of the texts; special tokens in them are parsed,
none are added around them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

DATA = Path(__file__).parent.parent / "tests" / "data"
TEXTS = [
    "",
    " ",
    "The quick brown fox: foxes, afox, fox. It's 2025-11-03, isn't it? don't we'll I'M",
    "  def f(x):\n\treturn x + 1  # two\n\n\n    if x==10:   print('hi')  ",
    "<s>user\nHi  there<|end|>\n <s>assistant\n\n",
    "text <|end|>  two<|end|> x<|END|>y [X] a[X]b",
    "a ▁▁ b▁c _d_ ▁",
    "héllo wörld naïve cafe\u0301 ﬁ ½ ² Ⅻ Straße İI ΑΣ Ǆ",
    "日本語 テキスト ｶﾞ ﾊﾟ 中文a測試。 한국어",
    "Привет, мир! العربية हिन्दी ไทย 1234567 ١٢٣ 1,234.56",
    "\xa0nbsp\u3000wide\u2028sep\u200bzero\ufeffbom\x0bvt\x85nel\r\n\x00\x1c",
    "😀 👨\u200d👩\u200d👧 🇩🇪 ❤\ufe0f \u0378 \ue000 \U000e0001 \u1c89 \ua7d0 \ufffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbb a-b--c ... !!??",
    "abcd <tool>> <tool> \n\n\n x",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MARKS = ["<unk>", "<s>", "</s>", "<|end|>"]
PREPEND = {"type": "Prepend", "prepend": "▁"}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LETTERS = WORDS | {"use_regex": False}


def trained(kind: str) -> dict[str, Any]:
    """tokenizer.json of a small vocabulary."""
    # Without marks and spaces of its own, so that any step may come before the model.
    corpus = [text.replace("▁", "_").replace("\0", "") for text in TEXTS if "<" not in text] * 4
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=400, special_tokens=MARKS, initial_alphabet=alphabet)
    elif kind == "fallback":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=[*MARKS, *BYTES], limit_alphabet=90)
    elif kind == "words":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=420, special_tokens=BERT)
        corpus += [text.lower() for text in corpus]
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=MARKS, unk_token="<unk>")
    trainer.show_progress = False
    tokenizer.train_from_iterator(corpus, trainer)
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] not in BYTES]
    return state


def charsmap() -> str:
    """SentencePiece's own table of a few rules, in base64."""
    import base64
    import tempfile

    rules = {"ﬁ": "fi", "½": "1/2", "\u3000": " ", "\xa0": " ", "\t": " ", "\n": " ", "\r": " ", "ｶ": "カ", "ｶﾞ": "ガ",
             "e\u0301": "é", "\u200b": "", "Ⅻ": "XII"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.tsv"
        codes = (tuple(" ".join(f"{ord(c):X}" for c in part) for part in pair) for pair in rules.items())
        path.write_text("".join(f"{key}\t{value}\n" for key, value in codes))
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["hello world"] * 30), model_writer=out, vocab_size=20, hard_vocab_limit=False,
            normalization_rule_tsv=str(path), minloglevel=2,
        )  # fmt: skip
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(out.getvalue())
    return base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()


def split(pattern: str, behavior: str = "Isolated", invert: bool = False, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def normalizing(*steps: dict[str, Any] | str) -> dict[str, Any]:
    listed = [{"type": each} if isinstance(each, str) else each for each in steps]
    return {"normalizer": listed[0] if len(listed) == 1 else {"type": "Sequence", "normalizers": listed}}


def cutting(*steps: dict[str, Any] | str | None) -> dict[str, Any]:
    listed = [{"type": each} if isinstance(each, str) else each for each in steps]
    return {"pre_tokenizer": listed[0] if len(listed) == 1 else {"type": "Sequence", "pretokenizers": listed}}


def flags(**changes: dict[str, Any]) -> dict[str, Any]:
    """Added tokens by text: their flags, or those of a new one."""
    return {"flags": changes}


def metaspace(scheme: str, split: bool = True, mark: str = "▁") -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme, "split": split}


def bert(**options: Any) -> dict[str, Any]:
    usual = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {"type": "BertNormalizer", **usual, **options}


INVERTED = (split(r"[\p{L}\h]+", "Contiguous", True), split("e", "Removed", kind="String"))
PUNCTUATION = {"type": "Punctuation", "behavior": "Isolated"}
DIGITS = {"type": "Digits", "individual_digits": True}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
END, START = "<|end|>", "<s>"


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Cases by name: the vocabulary, and what is replaced in it."""
    return {
        "fallback_lower": ("fallback", normalizing("Lowercase", PREPEND, SPACES)),
        "fallback_nfkc": ("fallback", normalizing("NFKC", PREPEND, SPACES)),
        "fallback_digits": ("fallback", cutting(DIGITS, metaspace("first"))),
        "fallback_punctuation": ("fallback", normalizing(PREPEND, SPACES) | cutting(PUNCTUATION)),
        "fallback_regex": ("fallback", normalizing(SPACES) | cutting(split("▁+"))),
        "fallback_first": ("fallback", {"normalizer": None} | cutting(metaspace("first", False))),
        "fallback_always": ("fallback", {"normalizer": None} | cutting(metaspace("always"))),
        "fallback_never_underscore": ("fallback", {"normalizer": None} | cutting(metaspace("never", mark="_"))),
        "fallback_strip_first": ("fallback", normalizing(STRIP) | cutting("WhitespaceSplit", metaspace("first"))),
        "fallback_normalized_tokens": (
            "fallback",
            normalizing(PREPEND, SPACES) | flags(**{END: {"normalized": True}, "[X]": {"normalized": True, "lstrip": True}}),
        ),
        "fallback_ignore_merges": ("fallback", normalizing(SPACES) | {"model": {"ignore_merges": True}}),
        "fallback_whitespace": ("fallback", {"normalizer": None} | cutting("Whitespace")),
        "fallback_steps": (
            "fallback",
            normalizing("Nmt", "NFD", "StripAccents", {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "_"})
            | cutting({"type": "CharDelimiterSplit", "delimiter": "-"}, {"type": "FixedLength", "length": 4}),
        ),
        "bytes_nfc": ("bytes", normalizing("NFC")),
        "bytes_lower": ("bytes", normalizing("Lowercase") | flags(**{"<|END|>": {"normalized": True}})),
        "bytes_prefix": ("bytes", cutting(WORDS | {"add_prefix_space": True})),
        "bytes_rstrip": ("bytes", flags(**{END: {"rstrip": True}, START: {"rstrip": True}})),
        "bytes_lstrip": ("bytes", flags(**{END: {"lstrip": True, "rstrip": True}, "[X]": {"lstrip": True}})),
        "bytes_single_word": (
            "bytes",
            flags(fox={"single_word": True, "special": False}, **{"[X]": {"single_word": True}}),
        ),
        "bytes_overlap": (
            "bytes",
            flags(**{"ab": {}, "bcd": {}, "<tool>": {}, "<tool>>": {"normalized": True, "special": False}}),
        ),
        "bytes_ignore_merges": ("bytes", {"model": {"ignore_merges": True}}),
        "bytes_split": ("bytes", cutting(split(r"[A-Z]?[a-z]+|\d{2}|\s+$|\s+|."), LETTERS)),
        "bytes_inverted": ("bytes", cutting(*INVERTED, LETTERS)),
        "bytes_merged": (
            "bytes",
            cutting(split(r"\s", "MergedWithNext"), {"type": "Punctuation", "behavior": "MergedWithPrevious"}, LETTERS),
        ),
        "bytes_after": ("bytes", cutting(WORDS, {"type": "Digits", "individual_digits": False}, split("Ġ", kind="String"))),
        "words_ideographs": ("words", normalizing(bert(handle_chinese_chars=False)) | cutting("BertPreTokenizer")),
        "words_unclean": ("words", normalizing(bert(clean_text=False)) | cutting("BertPreTokenizer")),
        "words_longest": (
            "words",
            normalizing(bert()) | cutting("BertPreTokenizer") | {"model": {"max_input_chars_per_word": 20}},
        ),
        "words_plain": ("words", normalizing(bert()) | cutting("BertPreTokenizer")),
        "words_cased": ("words", normalizing(bert(lowercase=False)) | cutting("BertPreTokenizer")),
        "words_steps": ("words", normalizing("NFKC", bert(strip_accents=False)) | cutting("WhitespaceSplit", PUNCTUATION)),
        "pieces_xlm": (
            "pieces",
            normalizing("Precompiled", {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
            | cutting("WhitespaceSplit", metaspace("always")),
        ),
        "pieces_t5": ("pieces", normalizing("Precompiled") | cutting(metaspace("always"))),
        "pieces_strip": ("pieces", normalizing(STRIP) | cutting("WhitespaceSplit", metaspace("always"))),
        "pieces_first": ("pieces", cutting(metaspace("first", False)) | flags(**{"<mask>": {"lstrip": True}})),
        "pieces_albert": (
            "pieces",
            normalizing("NFKD", "StripAccents") | cutting("WhitespaceSplit", metaspace("always"), DIGITS),
        ),
    }  # fmt: skip


def replaced(state: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """What of a tokenizer.json becomes other; `flags` are those of added tokens, new ones get the next ids."""
    made = {key: each for key, each in change.items() if key != "flags"}
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    known = {token["content"]: dict(token) for token in state["added_tokens"]}
    for text, options in change.get("flags", {}).items():
        new = sum(token["id"] >= len(state["model"]["vocab"]) for token in known.values())
        number = len(state["model"]["vocab"]) + new
        if isinstance(state["model"]["vocab"], dict):
            number = state["model"]["vocab"].get(text, number)
        known[text] = {"id": number, "content": text, **usual, **known.get(text, {}), **options}
    return made | ({"added_tokens": list(known.values())} if "flags" in change else {})


def tokenizer_json(state: dict[str, Any], change: dict[str, Any], table: str) -> dict[str, Any]:
    """A tokenizer.json with parts replaced; the table of a Precompiled step is filled in."""
    made = state | change | {"model": state["model"] | change.get("model", {})}
    filled = json.dumps({"type": "Precompiled", "precompiled_charsmap": table})
    result: dict[str, Any] = json.loads(json.dumps(made).replace('{"type": "Precompiled"}', filled))
    return result


def main() -> None:
    kinds = {kind: trained(kind) for kind in ("bytes", "fallback", "words", "pieces")}
    table = charsmap()
    rows = {}
    for name, (kind, change) in cases().items():
        change = replaced(kinds[kind], change)
        tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(kinds[kind], change, table)))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        rows[name] = {"kind": kind, "change": change, "ids": ids}
    golden = {"texts": TEXTS, "kinds": kinds, "charsmap": table, "cases": rows}
    text = json.dumps(golden, separators=(",", ":"), ensure_ascii=False) + "\n"
    (DATA / "tokenizer_steps_goldens.json").write_text(text, encoding="utf-8")
    print(len(text.encode()), "bytes,", len(rows), "cases")


if __name__ == "__main__":
    main()
