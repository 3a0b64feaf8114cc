"""Makes tests/data/tokenizer_*.gguf (vocabularies only) and tokenizer_goldens.json: what llama.cpp makes of hard texts.

    python tools/make_tokenizer_goldens.py --llama-python PYTHON [--model FILE.gguf]

Runs where tokenizers, sentencepiece, gguf and transformers are; PYTHON is an interpreter that has llama-cpp-python. The
byte-level vocabularies are trained here with each family's own pre-tokenizer, and their ids are taken from the tokenizers
library as well: texts on which the two differ are listed in the JSON. With --model, the ids of the page of hard text for
that model go to tokenizer_model_golden.json.
"""

from __future__ import annotations

import argparse
import io
import json
import pydoc_data.topics
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

DATA = Path(__file__).parent.parent / "tests" / "data"
PAGE = (DATA / "tokenizer_page.txt").read_bytes().decode()

TIKTOKEN_STYLE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    regex = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


#: GGUF's name -> the same rule in the tokenizers library (None: it has none, llama.cpp alone is the oracle)
FAMILIES = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": split(TIKTOKEN_STYLE % "{1,3}"),
    "qwen2": split(TIKTOKEN_STYLE % ""),
    "default": None,
}
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>", "<tool>>", "\n\n\n"]
#: Tokens that no merge makes: a family that looks words up whole finds them, the others never do.
UNREACHABLE = [" tokenization", "Привет", "日本語の"]

LLAMA = """
import json, sys
from llama_cpp import Llama
import llama_cpp
job = json.load(open(sys.argv[1]))
out = {}
for path in job["files"]:
    model = Llama(path, vocab_only=True, verbose=False)
    vocab = model._model.vocab
    rows = [[model.tokenize(t.encode(), add_bos=a, special=s) for t in job["texts"]] for a, s in job["modes"]]
    n = llama_cpp.llama_vocab_n_tokens(vocab)
    out[path] = {
        "ids": rows,
        "eog": [i for i in range(n) if llama_cpp.llama_vocab_is_eog(vocab, i)],
        "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
        "add_eos": bool(llama_cpp.llama_vocab_get_add_eos(vocab)),
    }
json.dump(out, open(sys.argv[2], "w"))
"""
MODES = [[False, False], [True, True]]  # add_special, parse_special


def texts() -> list[str]:
    """The page line by line and whole, then random mixtures of everything that pre-tokenizers tell apart."""
    pools = [
        "abcXYZ", "0123456789", " ", " \t\n\r", "'stmdrevlSTMDREVL", "!?.,;:-+=<>$^~|`\"()[]{}", "éßñüſİ", "日本語한국어中文",
        "Приветعربيहिन्दी", "½²Ⅻ٣４①", "\u0301\u0308\u200d\ufe0f\u20e3", "😀👍🏽👨👩👧🇩🇪",
        "\u00a0\u2003\u3000\u0085\u2028\u200b\ufeff",
        "▁Ġ", "\x00\x01\x1c\x7f", "\u0378\ue000\U000e0001\U00010348",
    ]  # fmt: skip
    rng = random.Random(7)
    mixed = []
    for _ in range(60):
        chosen = rng.sample(pools, rng.randint(1, 5))
        mixed.append("".join(rng.choice(rng.choice(chosen)) * rng.choice((1, 1, 1, 2, 3, 7)) for _ in range(20)))
    marked = ["<|im_start|>user\nHi<|im_end|>\n", "a<tool>b <tool> c<tool>>d", " <|im_end|> x\n\n\n\ny",
              "tokenization tokenization", "<s>a</s> b", "<s> ▁▁x", "<unk>", "<0x41>", "", " ", "  ", "a"]  # fmt: skip
    return [PAGE, *marked, *mixed]


def corpus() -> list[str]:
    topics = list(pydoc_data.topics.topics.values())[:30]
    return [*topics, *[PAGE] * 3]


def writer(path: Path, model: str) -> gguf.GGUFWriter:
    out = gguf.GGUFWriter(path, "llama")
    out.add_tokenizer_model(model)
    return out


def close(out: gguf.GGUFWriter) -> None:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()


def byte_level(name: str, rule: pre_tokenizers.PreTokenizer | None, path: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = rule or FAMILIES["gpt-2"]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    as_bytes = [pre_tokenizers.ByteLevel(False, False).pre_tokenize_str(text)[0][0] for text in UNREACHABLE]
    for text in as_bytes:
        vocabulary.setdefault(text, len(vocabulary))
    state["model"]["ignore_merges"] = name == "llama-bpe"
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in USER_DEFINED])
    every = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    kinds = dict.fromkeys(CONTROL, 3) | dict.fromkeys(USER_DEFINED, 4)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    out = writer(path, "gpt2")
    out.add_tokenizer_pre(name)
    out.add_token_list([text for text, _ in every])
    out.add_token_types([kinds.get(text, 1) for text, _ in every])
    out.add_token_merges(merges)
    out.add_bos_token_id(tokenizer.token_to_id("<|im_start|>"))
    out.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    close(out)
    return tokenizer


def sentence_piece(path: Path, space_prefix: bool) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(corpus()).split("\n")), model_writer=trained, vocab_size=1300, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        user_defined_symbols=["<tool>"], split_digits=True, allow_whitespace_only_pieces=True,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(model.get_piece_size())
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 4
        if model.id_to_piece(i) == "<tool>" else 1 for i in ids
    ]  # fmt: skip
    out = writer(path, "llama")
    out.add_tokenizer_pre("default")
    out.add_token_list([model.id_to_piece(i) for i in ids])
    out.add_token_scores([model.get_score(i) for i in ids])
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_space_prefix(space_prefix)
    if not space_prefix:
        out.add_add_eos_token(True)
    close(out)


def llama(python: str, files: list[Path], job_texts: list[str]) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder, "job"), Path(folder, "result")
        job.write_text(json.dumps({"files": [str(f) for f in files], "texts": job_texts, "modes": MODES}))
        subprocess.run([python, "-c", LLAMA, job, result], check=True, stderr=subprocess.DEVNULL)
        return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    if args.model:
        rows = llama(args.llama_python, [args.model], [PAGE])[str(args.model)]
        golden = {"ids": rows["ids"][0][0], "eog": rows["eog"]}
        (DATA / "tokenizer_model_golden.json").write_text(json.dumps(golden) + "\n")
    all_texts = texts()
    others = {}
    files = []
    for name, rule in FAMILIES.items():
        files.append(DATA / f"tokenizer_{name.replace('-', '_')}.gguf")
        others[files[-1]] = byte_level(name, rule, files[-1]) if rule else byte_level(name, None, files[-1]) and None
    for name, space_prefix in (("sentencepiece", True), ("sentencepiece_bare", False)):
        files.append(DATA / f"tokenizer_{name}.gguf")
        sentence_piece(files[-1], space_prefix)
    rows = llama(args.llama_python, files, all_texts)
    result = {}
    for file in files:
        row = rows[str(file)]
        other = others.get(file)
        plain = [other.encode(t, add_special_tokens=False).ids for t in all_texts] if other else row["ids"][0]
        # The tokenizers library always parses special tokens, so only texts without them can be compared.
        row["tokenizers_differs"] = [
            i for i, text in enumerate(all_texts)
            if plain[i] != row["ids"][0][i] and not any(special in text for special in CONTROL)
        ]  # fmt: skip
        print(file.name, file.stat().st_size, "texts on which tokenizers differs:", row["tokenizers_differs"])
        result[file.name] = row
    golden = {"modes": MODES, "texts": all_texts, "files": result}
    (DATA / "tokenizer_goldens.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
