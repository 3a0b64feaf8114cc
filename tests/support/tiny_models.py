"""Tiny quantized models written on the spot, and running a prompt in steps.

    python tiny_models.py OUT.npz MODEL...

writes the logits of ``prompt(PROMPT)`` in each model: the tests of GUMBA_ISA, which is read at first use, run it as a child.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gumba import GGUFFile
from gumba.quants import FORMATS, dequantize, get, quantize
from gumba.runner.load import Chunk, LoadConfig, Model, load_model

DATA = Path(__file__).parent.parent / "data"
GOLDENS = sorted(DATA.glob("model_*.gguf"))

#: The quantised models: every width is a multiple of Q6_K's 256, heads are grouped, embeddings are untied.
WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, CONTEXT = 256, 2, 4, 2, 64, 512, 131, 1024
#: Tokens of the prompt that the hashed tests use: more than one step of 512, several KV pages, no round number.
PROMPT = 520
#: Every block format whose files gguf-py can write.
TYPES = [
    format.name.upper()
    for format in FORMATS.values()
    if format.name.upper() in gguf.GGMLQuantizationType.__members__ and WIDTH % format.block_size == 0
]


def stored(path: Path) -> tuple[list[int], np.ndarray]:
    """The prompt and the expected logits, float32 [n_tokens, n_vocab], that lie beside a golden model."""
    with np.load(path.with_suffix(".npz")) as golden:
        return golden["tokens"].tolist(), golden["logits"]


def load(path: Path, *, progress: Callable[[float], object] | None = None, **options: Any) -> Model:
    """The model of ``path``; the file is closed again, since weights are copied at load. ``options``: of ``LoadConfig``."""
    with GGUFFile(path) as file:
        return load_model(file, LoadConfig(**options), progress=progress)


def steps(tokens: Sequence[int], size: int) -> list[tuple[int, Sequence[int]]]:
    """(position, tokens) of each step of ``size`` tokens."""
    return [(start, tokens[start : start + size]) for start in range(0, len(tokens), size)]


def logits_of(model: Model, tokens: Sequence[int], size: int) -> np.ndarray:
    """Logits of every position, float32 [n_tokens, n_vocab], feeding ``size`` tokens at a time to a new sequence."""
    pages = model.kv.allocate(-(-len(tokens) // model.kv.page_tokens))
    state = model.allocate_state()
    try:
        rows = [
            model.forward([Chunk(tokens=part, position=position, pages=pages, outputs="all", state=state)]).copy()
            for position, part in steps(tokens, size)
        ]
    finally:
        model.kv.release(pages)
        model.release_state(state)
    return np.concatenate(rows)


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest difference, relative to the greatest logit."""
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.isfinite(got).all()
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())


def random_q6_k(rng: np.random.Generator, rows: int, columns: int, scale: float) -> np.ndarray:
    """Q6_K rows, uint8 [rows, bytes], of random blocks whose values have a standard deviation of about ``scale``.

    gguf has no Q6_K quantizer. A block of 256 is ql[128], qh[64], scales[16] (int8), d (float16); a value is
    d * scale * (q - 32), with q uniform in 0..63 (standard deviation 18.5) and scales uniform in -64..64 (37).
    """
    blocks = rng.integers(0, 256, (rows, columns // 256, 210), dtype=np.uint8)
    blocks[..., 192:208] = rng.integers(-64, 65, blocks[..., 192:208].shape, dtype=np.int8).view(np.uint8)
    blocks[..., 208:] = np.full((*blocks.shape[:2], 1), scale / (18.5 * 37), np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def random_matrices(kind: str) -> dict[str, np.ndarray]:
    """The matrices of one model in block format ``kind``: name -> uint8 [rows, bytes]."""
    import random_blocks  # of tools/: not there for the children that run this file

    rng = np.random.default_rng(7)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH)}
    for i in range(LAYERS):
        shapes[f"blk.{i}.attn_q"] = (q, WIDTH)
        shapes[f"blk.{i}.attn_k"] = shapes[f"blk.{i}.attn_v"] = (kv, WIDTH)
        shapes[f"blk.{i}.attn_output"] = (WIDTH, q)
        shapes[f"blk.{i}.ffn_gate"] = shapes[f"blk.{i}.ffn_up"] = (FFN, WIDTH)
        shapes[f"blk.{i}.ffn_down"] = (WIDTH, FFN)
    matrices = {}
    for name, (rows, columns) in shapes.items():
        scale = (2.0 if name == "output" else 1.0) / math.sqrt(columns)
        if kind == "Q6_K":
            matrices[name] = random_q6_k(rng, rows, columns, scale)
        elif get(kind).loops()[0] is None:
            pieces = list(random_blocks.random_rows(kind.lower(), rows, columns, rng))
            matrices[name] = np.concatenate(pieces).reshape(rows, -1)
        else:
            values = (scale * rng.standard_normal((rows, columns))).astype(np.float32)
            matrices[name] = quantize(kind, values)
    return matrices


def write_model(path: Path, kind: str, *, dequantized: bool = False) -> Path:
    """Write the random model of ``kind``; ``dequantized`` writes the very same weights as float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    letters = [chr(c) for c in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokens += ["a" * (k + 2) for k in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (VOCAB - 3))
    writer.add_token_merges(["a a", "aa a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    rng = np.random.default_rng(8)
    norms = ["output_norm"] + [f"blk.{i}.{norm}" for i in range(LAYERS) for norm in ("attn_norm", "ffn_norm")]
    for name in norms:
        writer.add_tensor(f"{name}.weight", (1 + 0.3 * rng.standard_normal(WIDTH)).astype(np.float32))
    quantization = gguf.GGMLQuantizationType[kind]
    for name, data in random_matrices(kind).items():
        if dequantized:
            writer.add_tensor(f"{name}.weight", dequantize(kind, data))
        else:
            writer.add_tensor(f"{name}.weight", data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def prompt(n: int, seed: int = 0) -> list[int]:
    """``n`` random token ids of the quantised models' vocabulary."""
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def main() -> None:
    """Logits of each model named on the command line, into one file: float32 [PROMPT, VOCAB] by the file's stem."""
    logits = {}
    for path in map(Path, sys.argv[2:]):
        model = load(path, kv_type="f16", portable=True, n_threads=2)
        logits[path.stem] = logits_of(model, prompt(PROMPT), 96)
        model.close()
    np.savez(sys.argv[1], **logits)


if __name__ == "__main__":
    main()
