"""Hashes of every golden model's results, and their recording in tests/data/logit_hashes.json.

A case is a golden file as it is, one rewritten in another block format, or a quantized model of ``tiny_models``, with the
default type of KV cache or another. Its hash is the SHA-256 of every bit that the model computes for a fixed prompt: logits
(or a classifier's outputs) and final hidden states of all tokens. It is one hash, PORTABLE, for all processors: kernels are
compiled without fast-math, and neither the instruction set nor the number of threads nor the version of the compiler changes a
bit. Only a set with a portable one beside it (``Isa.portable``) has hashes of its own, for models loaded without ``portable``.

    cd tests && PYTHONPATH=../tools python -m support.logit_hashes --missing

records the cases that have no hash yet, of a new architecture for example: the portable ones with this machine's best set, and
those of the sets of this machine that have hashes of their own.

    cd tests && PYTHONPATH=../tools python -m support.logit_hashes [NAME ...]

records all hashes anew, or only those named: "portable", or a set. The others stay. Only for a change that is meant to change
results: say so in its commit. With names of golden files among the arguments,

    cd tests && PYTHONPATH=../tools python -m support.logit_hashes arch_llama4

it records the hashes of these alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gumba.backends.cpu.kv_pages import PAGE_FORMATS
from gumba.runner.load import Chunk, Model
from gumba.simd import detect
from support.arch_models import rewritten
from support.tiny_models import DATA, TYPES, load, write_model

RECORDING = DATA / "logit_hashes.json"
#: What the hashes are called in the recording that hold on every instruction set.
PORTABLE = "portable"
#: Tokens of the first step, more than a page of the KV cache, and how many steps of one token follow.
PROMPT, DECODED = 67, 3
FILES = sorted(
    path.stem for kind in ("arch", "classifier", "embedder", "model") for path in DATA.glob(f"{kind}_*.gguf")
)
#: Goldens that are rewritten in block formats: a plain decoder, mixtures of experts, latent attention, an encoder-decoder and
#: an encoder. Their widths are too small for Q6_K.
REWRITTEN = {
    "arch_llama_mistral": ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
    "arch_qwen3moe": ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
    "arch_deepseek2": ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
    "arch_gpt_oss": ("Q8_0", "Q4_0", "MXFP4"),
    "arch_gemma3n": ("Q8_0", "Q4_0"),
    "arch_qwen35moe": ("Q8_0", "Q4_0"),
    "arch_t5": ("Q8_0", "Q4_0"),
    "arch_bert": ("Q8_0", "Q4_0"),
}


class Case(NamedTuple):
    """``source``: a golden's name, or "tiny" for a model of ``tiny_models``; ``kind``: block format, or None as the file is."""

    source: str
    kind: str | None = None
    kv_type: str | None = None

    @property
    def name(self) -> str:
        """Its name in the recording."""
        return " ".join(part for part in (self.source, self.kind, self.kv_type and f"kv={self.kv_type}") if part)

    def write(self, folder: Path) -> Path:
        """The model file, written into ``folder`` where it is no golden."""
        golden = DATA / f"{self.source}.gguf"
        if self.kind is None:
            return golden
        path = folder / f"{self.source}_{self.kind}.gguf"
        if path.exists():
            return path
        if self.source == "tiny":
            return write_model(path, self.kind)
        return rewritten(golden, path, self.kind, dequantized=False)


CASES = [
    *(Case(source) for source in FILES),
    *(Case(source, kind) for source, kinds in REWRITTEN.items() for kind in kinds),
    *(Case("tiny", kind) for kind in TYPES),
    *(Case("tiny", "Q4_0", kv_type) for kv_type in PAGE_FORMATS),
]


def results(model: Model) -> Iterator[np.ndarray]:
    """Logits (or a classifier's outputs) and final hidden states of every token, float32 [tokens, width], step by step.

    An encoder reads the prompt in one step; an encoder-decoder takes half of it as the source.
    """
    causal, n_source = model.config.causal, PROMPT // 2 if model.config.start_token is not None else 0
    tokens = [(5 * i * i + 3 * i + 1) % model.config.n_vocab for i in range(PROMPT + DECODED)]
    pages, state = model.kv.allocate(-(-len(tokens) // model.kv.page_tokens)), model.allocate_state()
    ends = [PROMPT, *range(PROMPT + 1, len(tokens) + 1)] if causal or n_source else [PROMPT]
    for start, end in zip([0, *ends], ends):
        chunk = Chunk(tokens[start:end], start, pages, "all", state=state, n_source=n_source)
        yield model.forward([chunk])
        yield model.hidden


def names() -> list[str]:
    """What this machine can record: PORTABLE, and its sets with hashes of their own."""
    known = detect.known()
    return [PORTABLE, *(name for name in detect.available() if known[name].portable is not None)]


def hash_of(path: Path, kv_type: str | None = None, n_threads: int = 1, *, portable: bool = True) -> str:
    """SHA-256 of the results' bits, with the instruction set in use."""
    model = load(path, kv_type=kv_type, n_threads=n_threads, portable=portable)
    digest = hashlib.sha256()
    try:
        for rows in results(model):
            digest.update(repr(rows.shape).encode() + np.ascontiguousarray(rows, "<f4").tobytes())
    finally:
        model.close()
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """What the results should not depend on: the compiler and the machine."""
    versions = {name: importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")}
    return {**versions, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}


def recorded() -> dict[str, dict[str, dict[str, str]]]:
    """The recording: "hashes" and "environments" by PORTABLE or an instruction set."""
    return json.loads(RECORDING.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def record(names: list[str], sources: Collection[str] = (), *, missing: bool = False) -> None:
    """Record the hashes of every case: PORTABLE, with the instruction set in use, and those of the sets in ``names``.

    ``sources``: only of cases with these sources, if any are given; ``missing``: only of cases that have none.
    """
    recording = recorded() if RECORDING.exists() else {"environments": {}, "hashes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            portable = name == PORTABLE
            if not portable:
                os.environ["GUMBA_ISA"] = name
            start = time.perf_counter()
            before = recording["hashes"].get(name, {})
            cases = [case for case in CASES if not sources or case.source in sources]
            cases = [case for case in cases if not (missing and case.name in before)]
            hashes = {case.name: hash_of(case.write(Path(folder)), case.kv_type, portable=portable) for case in cases}
            seconds = time.perf_counter() - start
            n_changed = sum(before.get(case) != digest for case, digest in hashes.items())
            if sources or missing:
                hashes = {case.name: before[case.name] for case in CASES if case.name in before} | hashes
            else:
                recording["environments"][name] = environment()
            recording["hashes"][name] = hashes
            text = json.dumps(recording, indent=1, sort_keys=True) + "\n"
            RECORDING.write_text(text, encoding="utf-8", newline="\n")
            print(f"{name}: {len(hashes)} hashes, {n_changed} new or changed, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    named = [argument for argument in sys.argv[1:] if argument != "--missing"]
    chosen = {case.source for case in CASES} & set(named)
    sets = [argument for argument in named if argument not in chosen]
    record(sets or names(), chosen, missing="--missing" in sys.argv)
