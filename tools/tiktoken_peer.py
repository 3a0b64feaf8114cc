"""Compare gumba's encoder with the tiktoken library: ids, and time on one thread.

    python tools/tiktoken_peer.py QWEN2.gguf TEXT [ROUNDS]

Needs a file whose pre-tokenizer is cut by one pattern (qwen2, llama-bpe, gpt-4o ...) and whose merges are in the order of
its tokens. `<` is left out of the text: user-defined tokens such as `<tool_call>` are parsed by gumba alone.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

import tiktoken

from gumba import GGUFFile, Tokenizer
from gumba.gguf import GGUFArray
from gumba.tokenizer.byte_bpe import BYTE_TO_CHARACTER
from gumba_convert.vocabulary.pre_tokenizers import to_json

LETTERS = [*"abcXYZ019 \n\t.,'!", *"\u00e9\u00df\u00f1\u6f22\u5b57\u304b\u306a\ud55c\uad6d\u0308\u200b\u00a0\u3000"]


def peer(path: Path) -> tiktoken.Encoding:
    """tiktoken's encoding of a file's normal tokens, by their ids as ranks."""
    bytes_of = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
    with GGUFFile(path) as file:
        tokens = file.require("tokenizer.ggml.tokens", GGUFArray).to_list()
        types = file.require("tokenizer.ggml.token_type", GGUFArray).to_list()
        pre = file.require("tokenizer.ggml.pre", str)
    ranks = {bytes(bytes_of[c] for c in str(text)): i for i, text in enumerate(tokens) if types[i] == 1}
    pattern = to_json(pre)["pretokenizers"][0]["pattern"]["Regex"]
    return tiktoken.Encoding(path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def main() -> None:
    path, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8").replace("<", "(")
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    theirs, ours = peer(path), Tokenizer.from_gguf(path)
    rng = random.Random(0)
    odd = ["".join(rng.choices(LETTERS, k=rng.randrange(1, 40))) for _ in range(20_000)]
    differ = sum(theirs.encode_ordinary(each) != ours.encode(each, add_special=False) for each in [text, *odd])
    times: dict[str, list[float]] = {"tiktoken": [], "gumba": []}
    for _ in range(rounds):
        for name, encode in (
            ("tiktoken", theirs.encode_ordinary),
            ("gumba", lambda text: ours.encode(text, add_special=False)),
        ):
            started = time.perf_counter()
            encode(text)
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"{differ} of {len(odd) + 1} texts differ; {len(text)} characters:", end=" ")
    print(", ".join(f"{name} {each:.3f} s" for name, each in medians.items()), end=", ")
    print(f"ratio {medians['gumba'] / medians['tiktoken']:.2f}")


if __name__ == "__main__":
    main()
