"""A tiny model with everything that the commands touch: weights, a byte-level vocabulary, a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, FFN, CONTEXT = 64, 2, 4, 2, 96, 256
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2's mapping)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(shifted)) for byte in range(256)]


def vocabulary() -> list[str]:
    """All tokens: the special ones, the bytes, and what the merges make."""
    return [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]


def write(
    path: Path,
    *,
    seed: int = 0,
    more: tuple[str, ...] = (),
    context: int = CONTEXT,
    tool_template: str = "",
    changed: Mapping[str, gguf.gguf_writer.GGUFValue] | None = None,
) -> Path:
    """Write the model to ``path``: a Llama with random float32 weights, big enough that its choices are clear.

    ``more``: further control tokens. ``tool_template``: a second template, for conversations with tools. ``changed``:
    metadata in the place of the usual.
    """
    tokens = [*vocabulary(), *more]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny chat")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [int(gguf.TokenType.CONTROL)] * 3
        + [int(gguf.TokenType.NORMAL)] * (len(tokens) - 3 - len(more))
        + [int(gguf.TokenType.CONTROL)] * len(more)
    )
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    if tool_template:
        writer.add_string("tokenizer.chat_template.tool_use", tool_template)

    writer.kv_data[0].update(changed or {})
    random = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 1.5 / shape[-1] ** 0.5, shape).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    kv_width = WIDTH // HEADS * KV_HEADS
    weights("token_embd.weight", len(tokens), WIDTH)
    for i in range(LAYERS):
        ones(f"blk.{i}.attn_norm.weight")
        weights(f"blk.{i}.attn_q.weight", WIDTH, WIDTH)
        weights(f"blk.{i}.attn_k.weight", kv_width, WIDTH)
        weights(f"blk.{i}.attn_v.weight", kv_width, WIDTH)
        weights(f"blk.{i}.attn_output.weight", WIDTH, WIDTH)
        ones(f"blk.{i}.ffn_norm.weight")
        weights(f"blk.{i}.ffn_gate.weight", FFN, WIDTH)
        weights(f"blk.{i}.ffn_up.weight", FFN, WIDTH)
        weights(f"blk.{i}.ffn_down.weight", WIDTH, FFN)
    ones("output_norm.weight")
    weights("output.weight", len(tokens), WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
