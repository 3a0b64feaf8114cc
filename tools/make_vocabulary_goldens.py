"""Makes tests/data/vocabulary_goldens.json: small vocabularies of every kind, and how the originals cut hard texts.

    python tools/make_vocabulary_goldens.py --llama-python PYTHON

Runs where tokenizers, sentencepiece, gguf and gumba_convert are; PYTHON is an interpreter that has llama-cpp-python. The
texts are those of tokenizer_goldens.json and the converter's probe. Written are:

- "words": for every chain of pre-tokenizer steps that the converter knows, the words that the tokenizers library makes of
  each text (``packed``), and the texts on which llama.cpp's ids under the same name are others;
- "ids": llama.cpp's ids for the pre-tokenizers that have no such chain;
- "kinds": WordPiece, SentencePiece unigram and character BPE: a vocabulary, what goes with it into a file, and the ids of
  the original library; and the texts on which llama.cpp's are others.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gumba.tokenizer.pretokenize import PRE_TOKENIZERS
from gumba_convert.vocabulary.pre_tokenizer_probe import PROBE
from gumba_convert.vocabulary.pre_tokenizers import CHAINS, to_json
from make_tokenizer_goldens import LLAMA, corpus

DATA = Path(__file__).parent.parent / "tests" / "data"
TEXTS = [*json.loads((DATA / "tokenizer_goldens.json").read_text())["texts"], PROBE]
#: What no tokenizer.json says as llama.cpp does it.
NO_CHAIN = ("falcon", "afmoe", "chameleon")
#: A pre-tokenizer of Unicode's characters that fold to others, for the unigram model's normalizer.
RULES = {"\ufb01": "fi", "\u216b": "XII", "\u00bd": "1/2", "\u3000": " ", "\u00a0": " ", "\u2003": " ", "\t": " ",
         "\n": " ", "\r": "", "\u200b": "", "\u2126": "\u03a9", "\u212a": "K", "\u2026": "...", "\uff14": "4",
         "\uff15": "5", "\uff16": "6", "e\u0301": "\u00e9", "\ufdfa": "\u0635\u0644\u0649 \u0627\u0644\u0644\u0647"}  # fmt: skip


def packed(lengths: list[int]) -> str:
    """Lengths of words as text: one character each (counted up from "0"), or (n)."""
    return "".join(chr(48 + n) if n < 79 else f"({n})" for n in lengths)


def byte_level_vocabulary() -> dict[str, Any]:
    """Trained without any pre-tokenizer, so that merges reach across everything that one may cut."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1600, initial_alphabet=alphabet, show_progress=False, min_frequency=2,
                                  max_token_length=12)  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, *corpus()[:2]], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return {"tokens": sorted(state["vocab"], key=state["vocab"].get), "merges": [" ".join(m) for m in state["merges"]]}


def write(path: Path, model: str, arrays: dict[str, Any], scalars: dict[str, Any]) -> Path:
    out = gguf.GGUFWriter(path, "llama")
    out.add_tokenizer_model(model)
    for key, value in arrays.items():
        out.add_array("tokenizer.ggml." + key, bytes(value) if key == "precompiled_charsmap" else value)
    for key, value in scalars.items():
        add = {bool: out.add_bool, int: out.add_uint32, str: out.add_string}[type(value)]
        add("tokenizer.ggml." + key, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    return path


def llama(python: str, folder: Path, files: list[Path], modes: list[list[bool]]) -> list[list[list[list[int]]]]:
    """llama.cpp's ids: [file][mode (add_special, parse_special)][text]."""
    job, result = folder / "job", folder / "result"
    job.write_text(json.dumps({"files": [str(f) for f in files], "texts": TEXTS, "modes": modes}))
    subprocess.run([python, "-c", LLAMA, job, result], check=True, stderr=subprocess.DEVNULL)
    found = json.loads(result.read_text())
    return [found[str(file)]["ids"] for file in files]


def of_pre_tokenizers(python: str, folder: Path) -> dict[str, Any]:
    vocabulary = byte_level_vocabulary()
    arrays = {
        "tokens": vocabulary["tokens"],
        "token_type": [1] * len(vocabulary["tokens"]),
        "merges": vocabulary["merges"],
    }
    names = [name for name, each in PRE_TOKENIZERS.items() if not each.characters]
    files = [write(folder / f"{name}.gguf", "gpt2", arrays, {"pre": name}) for name in names]
    ids = {name: row[0] for name, row in zip(names, known(python, folder, names, files), strict=True) if row}
    words = {}
    for name, _ in CHAINS:
        if name in NO_CHAIN:
            continue
        tokenizer = tokenizers.Tokenizer(models.BPE())
        state = json.loads(tokenizer.to_str())
        state["pre_tokenizer"] = to_json(name)
        vocab = {text: i for i, text in enumerate(vocabulary["tokens"])}
        whole = PRE_TOKENIZERS[name].whole_words
        state["model"] |= {"vocab": vocab, "merges": vocabulary["merges"], "ignore_merges": whole}
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
        if tokenizer.pre_tokenizer is None:
            raise SystemExit(f"{name}: tokenizers made no pre-tokenizer from its JSON")
        rows = [tokenizer.pre_tokenizer.pre_tokenize_str(text) for text in TEXTS]
        lengths = [[end - begin for _, (begin, end) in row] for row in rows]
        for text, row, counts in zip(TEXTS, rows, lengths, strict=True):
            if sum(counts) != len(text):
                raise SystemExit(f"{name}: pre-tokenizing {text!r} lost or added characters: {row}")
        differs = [i for i, text in enumerate(TEXTS) if name not in ids or tokenizer.encode(text).ids != ids[name][i]]
        words[name] = {"words": [packed(row) for row in lengths], "llama_differs": differs}
        print(name, "llama.cpp differs:", differs)
    for name, row in ids.items():
        twins = [other for other in ids if PRE_TOKENIZERS[other].steps == PRE_TOKENIZERS[name].steps]
        whole = [other for other in twins if PRE_TOKENIZERS[other].whole_words == PRE_TOKENIZERS[name].whole_words]
        if ids[whole[0]] != row:
            print("llama.cpp tells apart:", name, whole[0], [i for i, r in enumerate(row) if r != ids[whole[0]][i]])
    return {
        "vocabulary": vocabulary,
        "words": words,
        "ids": {name: ids[name] for name in NO_CHAIN},
        "named": sorted(ids),
    }


def known(python: str, folder: Path, names: list[str], files: list[Path]) -> list[list[list[list[int]]]]:
    """llama.cpp's ids for each name; none for a name that it refuses."""
    rows: list[Any] = []
    try:
        return llama(python, folder, files, [[False, False]])
    except subprocess.CalledProcessError:
        for name, file in zip(names, files, strict=True):
            try:
                rows += llama(python, folder, [file], [[False, False]])
            except subprocess.CalledProcessError:
                print("llama.cpp refuses", name)
                rows.append([])
    return rows


def word_piece() -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """A vocabulary, and the ids by options (lowercase and strip accents, or neither)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    lower = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    some = [text.replace("\u2581", "_") for text in TEXTS[:-30]]  # GGUF has its own use of U+2581
    tokenizer.train_from_iterator([*some, *map(lower.normalize_str, some), *corpus()[:8]], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    ids = {}
    for key, option in (("small", True), ("as it is", False)):
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=option, strip_accents=option)
        ids[key] = [tokenizer.encode(text).ids for text in TEXTS]
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [t if t in special else t[2:] if t.startswith("##") else "\u2581" + t for t, _ in vocab]
    arrays = {"tokens": tokens, "token_type": [3 if t in special else 1 for t in tokens]}
    scalars = {"padding_token_id": 0, "unknown_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "seperator_token_id": 3,
               "mask_token_id": 4, "token_type_count": 2}  # fmt: skip
    return {"model": "bert", "arrays": arrays, "scalars": scalars}, ids


def unigram(folder: Path, rules: str) -> tuple[dict[str, Any], list[list[int]]]:
    """A unigram model with a normalizer: ``rules`` names one of the library's, or is a file."""
    trained = io.BytesIO()
    named = {"normalization_rule_tsv": rules} if rules.endswith(".tsv") else {"normalization_rule_name": rules}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join([*corpus(), *TEXTS]).split("\n")), model_writer=trained, vocab_size=1000,
        model_type="unigram", minloglevel=2, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=["<tool>"],
        character_coverage=0.98, **named,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained.getvalue())
    spec = proto.normalizer_spec
    arrays = {
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "precompiled_charsmap": list(spec.precompiled_charsmap),
    }
    scalars = {"add_space_prefix": spec.add_dummy_prefix, "remove_extra_whitespaces": spec.remove_extra_whitespaces,
               "padding_token_id": 0, "eos_token_id": 1, "unknown_token_id": 2}  # fmt: skip
    return {"model": "t5", "arrays": arrays, "scalars": scalars}, [[*model.encode(text), 1] for text in TEXTS]


def characters() -> tuple[dict[str, Any], list[list[int]]]:
    """BPE over characters with byte tokens, as Gemma 4 has it."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[^\n]+|\n+"), "isolated")
    tokenizer.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=[*special, *octets], show_progress=False,
                                  limit_alphabet=300, max_token_length=12)  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, *corpus()[:8]], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] in special[:3]]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    vocab = state["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    kinds = dict.fromkeys(special, 3) | dict.fromkeys(octets, 6)
    arrays = {"tokens": tokens, "token_type": [kinds.get(t, 1) for t in tokens],
              "merges": [" ".join(pair) for pair in state["model"]["merges"]]}  # fmt: skip
    scalars = {"padding_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "unknown_token_id": 3}
    return {"model": "gemma4", "arrays": arrays, "scalars": scalars}, [[2, *tokenizer.encode(t).ids] for t in TEXTS]


def words() -> tuple[dict[str, Any], list[list[int]]]:
    """BPE over characters in small letters, in words that white space parts, as Jina's Chinese embeddings have it."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, show_progress=False, limit_alphabet=300,
                                  max_token_length=12)  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, *corpus()[:8]], trainer)
    state = json.loads(tokenizer.to_str())
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**state, "added_tokens": []}))
    model = state["model"]
    vocab = model["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    arrays = {"tokens": tokens, "token_type": [3 if t in special else 1 for t in tokens],
              "merges": [" ".join(pair) for pair in model["merges"]]}  # fmt: skip
    scalars = {"pre": "whitespace", "normalizer.lowercase": True, "bos_token_id": 0, "padding_token_id": 1,
               "eos_token_id": 2, "unknown_token_id": 3, "add_bos_token": False, "add_eos_token": False}  # fmt: skip
    return {"model": "gpt2", "arrays": arrays, "scalars": scalars}, [tokenizer.encode(t).ids for t in TEXTS]


def of_kinds(python: str, folder: Path) -> dict[str, Any]:
    rules = folder / "rules.tsv"
    codes = {tuple(f"{ord(c):X}" for c in k): [f"{ord(c):X}" for c in v] for k, v in RULES.items()}
    rules.write_text("".join(f"{' '.join(k)}\t{' '.join(v)}\n" for k, v in codes.items()))
    bert, bert_ids = word_piece()
    t5, t5_ids = unigram(folder, str(rules))
    gemma, gemma_ids = characters()
    cased = bert | {"scalars": bert["scalars"] | {"normalizer.lowercase": False, "normalizer.strip_accents": False}}
    full, full_ids = unigram(folder, "nmt_nfkc")  # too big to be kept: only looked at
    kinds = {
        "bert": (bert, bert_ids["small"]),
        "bert_cased": (cased, bert_ids["as it is"]),
        "t5": (t5, t5_ids),
        "gemma4": (gemma, gemma_ids),
        "t5_nfkc": (full, full_ids),
    }
    files = [write(folder / f"{name}.gguf", k["model"], k["arrays"], k["scalars"]) for name, (k, _) in kinds.items()]
    result = {}
    for (name, (kind, ids)), rows in zip(kinds.items(), llama(python, folder, files, [[True, False]]), strict=True):
        differs = [i for i, row in enumerate(ids) if rows[0][i] != row]
        print(name, "llama.cpp differs:", differs)
        if name == "bert_cased":
            kind = {**kind, "arrays": None}
        if name != "t5_nfkc":
            result[name] = {**kind, "ids": ids, "llama_differs": differs}
    # llama.cpp ends the process where a line ends inside a text.
    spaced, spaced_ids = words()
    result["whitespace"] = {**spaced, "ids": spaced_ids}
    if python:
        (folder / "t5_nfkc.ids").write_text(json.dumps(full_ids))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--keep", type=Path, help="a folder for the files made on the way")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        golden = of_pre_tokenizers(args.llama_python, folder)
        golden["kinds"] = of_kinds(args.llama_python, folder)
    text = json.dumps(golden, separators=(",", ":"), ensure_ascii=False) + "\n"
    (DATA / "vocabulary_goldens.json").write_text(text, encoding="utf-8")
    print(len(text.encode()), "bytes")


if __name__ == "__main__":
    main()
