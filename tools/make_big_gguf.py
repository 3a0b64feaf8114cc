"""Write a model of the size of Llama 3.2 1B with random weights, to be raced: what it says is noise, how fast is not.

    python tools/make_big_gguf.py big-q4_0.gguf --type q4_0
    python tools/make_big_gguf.py big-q8_0.gguf --type q8_0

16 layers, 2048 wide, 32 heads of 64 and 8 KV heads, feed-forward 8192, 128256 tokens, the output tied to the embedding:
1.24 billion weights. A block is a float16 scale and random bytes, so that the values spread about 1/sqrt(columns) as those
of a trained model do: logits stay finite, and no shortcut for zeros can be taken. The vocabulary is made up (byte-level
BPE, every byte and no merge but a few), valid enough for llama.cpp to load the file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from gumba_convert.gguf_writer import TensorInfo, f32, header, i32_array, padding, string, strings, u32
from gumba_convert.gguf_writer import boolean as flag

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, CONTEXT = 16, 2048, 32, 8, 64, 8192, 128256, 8192
#: Per type: GGUF's number, ``general.file_type``, bytes of a block of 32, standard deviation of a random quantized value.
TYPES = {"q4_0": (2, 2, 18, 4.61), "q8_0": (8, 7, 34, 73.9)}
F32_TYPE = 0


def byte_letters() -> list[str]:
    """The letter that byte-level BPE (Radford et al. 2019) writes for each of the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in shown else chr(256 + sum(c not in shown for c in range(b))) for b in range(256)]


def tokens() -> tuple[list[str], list[str]]:
    """``VOCAB`` tokens and their merges: two control tokens, the bytes, then longer and longer pieces."""
    letters = byte_letters()
    made = ["<|begin|>", "<|end|>", *letters]
    merges = []
    for first in letters:
        for second in letters:
            if len(made) < VOCAB:
                made.append(first + second)
                merges.append(f"{first} {second}")
    pairs = made[2 + len(letters) :]
    for pair in pairs:
        for third in letters[:2]:
            if len(made) < VOCAB:
                made.append(pair + third)
                merges.append(f"{pair} {third}")
    return made, merges


def tensors(kind: str) -> list[TensorInfo]:
    """Every tensor of the file, in its order; matrices are [rows, columns]."""
    number, _, block_bytes, _ = TYPES[kind]

    def matrix(name: str, rows: int, columns: int) -> TensorInfo:
        return TensorInfo(f"{name}.weight", (rows, columns), number, rows * columns // 32 * block_bytes)

    def norm(name: str) -> TensorInfo:
        return TensorInfo(f"{name}.weight", (WIDTH,), F32_TYPE, 4 * WIDTH)

    made = [matrix("token_embd", VOCAB, WIDTH), norm("output_norm")]
    for i in range(LAYERS):
        block = f"blk.{i}"
        made += [norm(f"{block}.attn_norm"), norm(f"{block}.ffn_norm")]
        made += [matrix(f"{block}.attn_q", HEADS * HEAD_DIM, WIDTH), matrix(f"{block}.attn_output", WIDTH, WIDTH)]
        made += [matrix(f"{block}.attn_{name}", KV_HEADS * HEAD_DIM, WIDTH) for name in "kv"]
        made += [matrix(f"{block}.ffn_{name}", FFN, WIDTH) for name in ("gate", "up")]
        made.append(matrix(f"{block}.ffn_down", WIDTH, FFN))
    return made


def data(tensor: TensorInfo, kind: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The bytes of a tensor, piece by piece."""
    if tensor.type_id == F32_TYPE:
        yield np.ones(tensor.shape, np.float32).view(np.uint8)
        return
    _, _, block_bytes, spread = TYPES[kind]
    scale = np.float16(1.0 / (spread * math.sqrt(tensor.shape[1])))
    left = tensor.n_bytes // block_bytes
    while left:
        blocks = np.frombuffer(rng.bytes(min(left, 1 << 18) * block_bytes), np.uint8).reshape(-1, block_bytes).copy()
        blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        left -= len(blocks)
        yield blocks.ravel()


def write(path: Path, kind: str) -> None:
    """Write the file."""
    rng = np.random.default_rng(0)
    texts, merges = tokens()
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    metadata = {
        "general.architecture": string("llama"),
        "general.name": string("random 1.2B"),
        "general.file_type": u32(TYPES[kind][1]),
        "general.quantization_version": u32(2),
        "llama.block_count": u32(LAYERS),
        "llama.context_length": u32(CONTEXT),
        "llama.embedding_length": u32(WIDTH),
        "llama.feed_forward_length": u32(FFN),
        "llama.attention.head_count": u32(HEADS),
        "llama.attention.head_count_kv": u32(KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(HEAD_DIM),
        "llama.rope.freq_base": f32(500000.0),
        "llama.vocab_size": u32(VOCAB),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": strings(texts),
        "tokenizer.ggml.token_type": i32_array([control] * 2 + [normal] * (VOCAB - 2)),
        "tokenizer.ggml.merges": strings(merges),
        "tokenizer.ggml.bos_token_id": u32(0),
        "tokenizer.ggml.eos_token_id": u32(1),
        "tokenizer.ggml.add_bos_token": flag(False),
    }
    infos = tensors(kind)
    with path.open("wb") as file:
        file.write(header(metadata, infos))
        for tensor in infos:
            for piece in data(tensor, kind, rng):
                file.write(piece.data)
            file.write(bytes(padding(tensor.n_bytes)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="the GGUF file to write")
    parser.add_argument("--type", choices=TYPES, default="q4_0", help="block format of every matrix (default q4_0)")
    options = parser.parse_args()
    write(options.out, options.type)


if __name__ == "__main__":
    main()
