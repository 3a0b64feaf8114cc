"""Write a model of the sizes of a published one with random weights, for benchmarks: its text is noise, its speed is real.

    python tools/make_big_gguf.py big-q4_0.gguf --type q4_0
    python tools/make_big_gguf.py qwen3.gguf --shape qwen3-0.6b

The default has the sizes of Llama 3.2 1B: 16 layers, 2048 wide, 32 heads of 64 and 8 KV heads, feed-forward 8192, 128256
tokens, the output tied to the embedding (as in all shapes): 1.24 billion weights. ``random_blocks.py`` makes the weights. Every
matrix has the type, or where its rows are no multiple of that type's blocks, the one that llama.cpp takes instead; with
``--type q4_k_m`` and other mixtures each has llama.cpp's choice. The vocabulary is made up (byte-level BPE, every byte and no
merge but a few), valid enough for llama.cpp to load the file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from gumba.gguf.types import GGML_TYPES, NAMES
from gumba_convert.gguf_writer import TensorInfo, f32, header, i32_array, padding, string, strings, u32
from gumba_convert.gguf_writer import boolean as flag
from gumba_convert.quantize import recipe
from random_blocks import FORMATS, random_rows


@dataclass(frozen=True)
class Net:
    """A gated delta net: heads of keys and of values, the size of both, taps of its convolution."""

    keys: int
    values: int
    dim: int
    taps: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model. ``bias``: of queries, keys and values; ``head_norm``: norms on their heads; ``post``:
    norms after each half of a layer; ``net``: of a hybrid, whose layers but every fourth keep a state; ``more``: further
    metadata."""

    title: str
    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_base: float
    eps: float = 1e-6
    bias: bool = False
    head_norm: bool = False
    post: bool = False
    net: Net | None = None
    more: Mapping[str, bytes] = field(default_factory=dict)


QWEN35 = {
    "ssm.conv_kernel": u32(4),
    "ssm.state_size": u32(128),
    "ssm.group_count": u32(16),
    "ssm.time_step_rank": u32(16),
    "ssm.inner_size": u32(2048),
    "full_attention_interval": u32(4),
    "rope.dimension_count": u32(64),
    "rope.dimension_sections": i32_array([11, 11, 10, 0]),
}
GEMMA3 = {"attention.sliding_window": u32(512)}
SHAPES = {
    "llama-3.2-1b": Shape("1.2B", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 8192, 500000.0, eps=1e-5),
    "smollm2-135m": Shape("0.1B", "llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000.0, eps=1e-5),
    "qwen2.5-0.5b": Shape("0.5B", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1e6, bias=True),
    "qwen3-0.6b": Shape("0.6B", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6, head_norm=True),
    "qwen3.5-0.8b": Shape(
        "0.8B",
        "qwen35",
        24,
        1024,
        8,
        2,
        256,
        3584,
        248320,
        32768,
        1e7,
        head_norm=True,
        net=Net(16, 16, 128, 4),
        more=QWEN35,
    ),
    "gemma-3-270m": Shape(
        "0.3B", "gemma3", 18, 640, 4, 1, 256, 2048, 262144, 32768, 1e6, head_norm=True, post=True, more=GEMMA3
    ),
}
#: ``general.file_type`` of files whose matrices all have one format; those of mixtures are the recipe's.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14, "q5_k": 16,
    "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30,
    "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38, "nvfp4": 39, "q1_0": 40, "q2_0": 41,
}  # fmt: skip
#: Names that are both, such as ``q2_k`` and ``iq4_nl``: here every matrix has that format.
MIXTURES = tuple(name for name in recipe.FILE_TYPES if name not in FILE_TYPES)


def byte_letters() -> list[str]:
    """The letter that byte-level BPE (Radford et al. 2019) writes for each of the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in shown else chr(256 + sum(c not in shown for c in range(b))) for b in range(256)]


def tokens(count: int) -> tuple[list[str], list[str]]:
    """``count`` tokens and their merges: two control tokens, the bytes, then longer and longer pieces."""
    letters = byte_letters()
    made = ["<|begin|>", "<|end|>", *letters]
    merges = []
    for first in letters:
        for second in letters:
            if len(made) < count:
                made.append(first + second)
                merges.append(f"{first} {second}")
    pairs = made[2 + len(letters) :]
    for thirds in (letters[:2], letters[2:]):
        for pair in pairs:
            for third in thirds if len(made) < count else ():
                if len(made) < count:
                    made.append(pair + third)
                    merges.append(f"{pair} {third}")
    return made, merges


def tensors(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape (rows first) of every tensor of the file, in its order."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def matrix(name: str, rows: int, columns: int) -> tuple[str, tuple[int, ...]]:
        return f"{name}.weight", (rows, columns)

    def vector(name: str, size: int) -> tuple[str, tuple[int, ...]]:
        return name, (size,)

    made = [matrix("token_embd", shape.vocab, shape.width), vector("output_norm.weight", shape.width)]
    for i in range(shape.layers):
        block = f"blk.{i}"
        second = "ffn_norm" if shape.net is None else "post_attention_norm"
        norms = ["attn_norm", second] + ["post_attention_norm", "post_ffw_norm"] * shape.post
        made += [vector(f"{block}.{name}.weight", shape.width) for name in norms]
        made += [matrix(f"{block}.ffn_{name}", shape.ffn, shape.width) for name in ("gate", "up")]
        made.append(matrix(f"{block}.ffn_down", shape.width, shape.ffn))
        if shape.net is not None and (i + 1) % 4:
            net, inner = shape.net, shape.net.values * shape.net.dim
            channels = 2 * net.keys * net.dim + inner
            made += [
                matrix(f"{block}.attn_qkv", channels, shape.width),
                matrix(f"{block}.attn_gate", inner, shape.width),
            ]
            made += [matrix(f"{block}.ssm_{name}", net.values, shape.width) for name in ("alpha", "beta")]
            made.append(matrix(f"{block}.ssm_conv1d", channels, net.taps))
            made += [vector(f"{block}.ssm_a", net.values), vector(f"{block}.ssm_dt.bias", net.values)]
            made += [vector(f"{block}.ssm_norm.weight", net.dim), matrix(f"{block}.ssm_out", shape.width, inner)]
            continue
        heads = ["attn_q_norm", "attn_k_norm"] * shape.head_norm
        made += [vector(f"{block}.{name}.weight", shape.head_dim) for name in heads]
        made += [
            matrix(f"{block}.attn_q", 2 * q if shape.net else q, shape.width),
            matrix(f"{block}.attn_output", shape.width, q),
        ]
        made += [matrix(f"{block}.attn_{name}", kv, shape.width) for name in "kv"]
        sizes = {"q": q, "k": kv, "v": kv} if shape.bias else {}
        made += [vector(f"{block}.attn_{name}.bias", size) for name, size in sizes.items()]
    return made


def typed(shape: Shape, kind: str) -> list[TensorInfo]:
    """Every tensor with its type and size. ``kind``: a block format, for all matrices, or a mixture."""
    named = tensors(shape)
    if kind in MIXTURES:
        sizes = recipe.Sizes(shape.architecture, shape.layers, 0, shape.heads, shape.kv_heads)
        formats = recipe.tensor_formats(named, kind, sizes)
    else:
        formats = ["f32" if is_f32(*tensor) else recipe.fallback(kind, tensor[1][-1]) for tensor in named]
    made = []
    for (name, size), format in zip(named, formats, strict=True):
        block = GGML_TYPES[NAMES[format]]
        made.append(TensorInfo(name, size, block.id, math.prod(size) // block.block_size * block.type_size))
    return made


def is_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one of those that are never quantized."""
    return len(shape) == 1 or name.endswith(recipe.KEPT_F32)


def data(tensor: TensorInfo, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The bytes of a tensor, piece by piece."""
    if is_f32(tensor.name, tensor.shape):
        value = {"bias": 0.0, "sm_a": -0.1}.get(tensor.name[-4:], 1.0)  # the rate of a state's decay is below 0
        yield np.full(tensor.shape, value, np.float32).view(np.uint8).reshape(-1)
        return
    yield from random_rows(GGML_TYPES[tensor.type_id].name, *tensor.shape, rng)


def write(path: Path, kind: str, shape: Shape = SHAPES["llama-3.2-1b"]) -> None:
    """Write the file."""
    rng = np.random.default_rng(0)
    texts, merges = tokens(shape.vocab)
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    own = {
        "block_count": u32(shape.layers),
        "context_length": u32(shape.context),
        "embedding_length": u32(shape.width),
        "feed_forward_length": u32(shape.ffn),
        "attention.head_count": u32(shape.heads),
        "attention.head_count_kv": u32(shape.kv_heads),
        "attention.key_length": u32(shape.head_dim),
        "attention.value_length": u32(shape.head_dim),
        "attention.layer_norm_rms_epsilon": f32(shape.eps),
        "rope.dimension_count": u32(shape.head_dim),
        "rope.freq_base": f32(shape.rope_base),
        "vocab_size": u32(shape.vocab),
        **shape.more,
    }
    metadata = {
        "general.architecture": string(shape.architecture),
        "general.name": string(f"random {shape.title}"),
        "general.file_type": u32(FILE_TYPES[kind] if kind in FILE_TYPES else recipe.FILE_TYPES[kind].number),
        "general.quantization_version": u32(2),
        **{f"{shape.architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": strings(texts),
        "tokenizer.ggml.token_type": i32_array([control] * 2 + [normal] * (shape.vocab - 2)),
        "tokenizer.ggml.merges": strings(merges),
        "tokenizer.ggml.bos_token_id": u32(0),
        "tokenizer.ggml.eos_token_id": u32(1),
        "tokenizer.ggml.add_bos_token": flag(False),
    }
    infos = typed(shape, kind)
    with path.open("wb") as file:
        file.write(header(metadata, infos))
        for tensor in infos:
            for piece in data(tensor, rng):
                file.write(piece.data)
            file.write(bytes(padding(tensor.n_bytes)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="the GGUF file to write")
    parser.add_argument(
        "--type",
        choices=(*FORMATS, *MIXTURES),
        default="q4_0",
        metavar="TYPE",
        help="block format or mixture (default q4_0)",
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b", help="whose sizes (default llama-3.2-1b)")
    options = parser.parse_args()
    write(options.out, options.type, SHAPES[options.shape])


if __name__ == "__main__":
    main()
