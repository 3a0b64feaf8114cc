"""One engine's side of the race of embeddings: one measurement per process, on the same texts.

Run by the Python that has the engine (tools/race.py does it):

    python embedding_peer.py bench '{"engine": "gumba", "model": "x.gguf", "threads": 2, "vectors": "x.npy"}'
    python embedding_peer.py about '{}'

Engines: gumba (a GGUF file), sentence-transformers (a folder), onnxruntime and onnxruntime int8 (the same folder, with the
files that tools/make_embedders.py adds). ``bench`` prints seconds and CPU seconds of all threads for 500 short texts (median of
three passes) and for 100 texts of 400 tokens, tokenizing included, after a warm-up; ``vectors``: where the vectors of the
short texts are stored, so that they can be compared.

onnxruntime gets what its users' libraries do for it: texts sorted by length, batches of BATCH padded to their longest text,
the mean or the first token taken and normalized in NumPy. sentence-transformers does the same itself.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
SHORT_TEXTS, LONG_TEXTS, LONG_TOKENS = 500, 100, 400
#: Each is one token in the vocabularies of BERT's family.
WORDS = [
    "the",
    "river",
    "rose",
    "in",
    "night",
    "and",
    "by",
    "morning",
    "lower",
    "fields",
    "lay",
    "under",
    "brown",
    "water",
    "no",
    "one",
    "village",
    "had",
    "seen",
    "it",
    "so",
    "high",
    "since",
    "year",
    "old",
    "bridge",
    "was",
    "carried",
    "away",
    "man",
    "who",
    "kept",
    "small",
    "house",
    "near",
    "road",
    "said",
    "that",
    "rain",
    "would",
    "stop",
    "before",
    "day",
    "of",
    "market",
    "came",
    "but",
    "children",
    "were",
    "happy",
    "they",
    "made",
    "boats",
    "from",
    "paper",
    "let",
    "them",
    "go",
    "down",
    "street",
    "while",
    "their",
    "mothers",
    "called",
    "from",
    "windows",
    "women",
    "sold",
    "bread",
    "fish",
    "wine",
    "at",
    "corner",
    "church",
    "bell",
    "two",
    "three",
    "hours",
    "every",
    "week",
    "people",
    "came",
    "over",
    "hills",
    "with",
    "horses",
    "dogs",
    "music",
]

Encode = Callable[[Sequence[str]], np.ndarray]


def texts() -> tuple[list[str], list[str]]:
    """The short texts, of 6 to 18 tokens, and the long ones, of LONG_TOKENS; [CLS] and [SEP] included."""
    chosen = random.Random(0)
    short = [" ".join(chosen.choices(WORDS, k=chosen.randint(4, 16))) for _ in range(SHORT_TEXTS)]
    return short, [" ".join(chosen.choices(WORDS, k=LONG_TOKENS - 2)) for _ in range(LONG_TEXTS)]


def gumba(model: str, threads: int) -> Encode:
    """gumba's ``LLM.embed`` on a GGUF file."""
    from gumba import LLM

    llm = LLM(model, n_threads=threads)
    return lambda batch: llm.embed(batch, truncate=True)


def sentence_transformers(model: str, threads: int) -> Encode:
    """sentence-transformers in float32."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    loaded = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": "float32"})
    return lambda batch: loaded.encode(list(batch), batch_size=BATCH, normalize_embeddings=True)


def onnxruntime(model: str, threads: int, file: str = "model.onnx") -> Encode:
    """onnxruntime with all its optimizations."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(Path(model) / file), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    names = [given.name for given in session.get_inputs()]
    pooling = json.loads((Path(model) / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    first = bool(pooling["pooling_mode_cls_token"])

    def encode(batch: Sequence[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch(list(batch))
        order = sorted(range(len(batch)), key=lambda i: -len(encodings[i].ids))
        out = np.empty((len(batch), 0), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            longest = len(encodings[chosen[0]].ids)
            ids, mask = (np.zeros((len(chosen), longest), np.int64) for _ in range(2))
            for row, i in enumerate(chosen):
                own = encodings[i].ids
                ids[row, : len(own)], mask[row, : len(own)] = own, 1
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = session.run(None, {name: given[name] for name in names})[0]
            weights = mask[:, :, None].astype(np.float32)
            pooled = states[:, 0] if first else (states * weights).sum(1) / weights.sum(1)
            if not out.size:
                out = np.empty((len(batch), pooled.shape[1]), np.float32)
            out[chosen] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return out

    return encode


def onnxruntime_int8(model: str, threads: int) -> Encode:
    """onnxruntime with dynamically quantized weights."""
    return onnxruntime(model, threads, "model_int8.onnx")


ENGINES: dict[str, Callable[[str, int], Encode]] = {
    "gumba": gumba,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
    "onnxruntime int8": onnxruntime_int8,
}


def bench(order: dict[str, Any]) -> dict[str, Any]:
    """Wall and CPU seconds of both lists of texts."""
    encode = ENGINES[order["engine"]](order["model"], order["threads"])
    short, long = texts()
    encode([*short[:BATCH], long[0]])  # warm-up
    found: dict[str, Any] = {}
    for name, batch, passes in (("short", short, 3), ("long", long, 1)):
        wall, cpu = [], []
        for _ in range(passes):
            began, began_cpu = time.perf_counter(), time.process_time()
            vectors = encode(batch)
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
        found[name] = {"wall": statistics.median(wall), "CPU": statistics.median(cpu)}
        if name == "short" and order.get("vectors"):
            np.save(order["vectors"], vectors)
    return found


def about(order: dict[str, Any]) -> dict[str, Any]:
    """Which engines these are."""
    from importlib.metadata import version

    names = ("sentence-transformers", "transformers", "torch", "onnxruntime")
    return {"version": ", ".join(f"{name} {version(name)}" for name in names)}


JOBS = {"bench": bench, "about": about}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
