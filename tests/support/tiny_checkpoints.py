"""Tiny Hugging Face folders written on the spot, and what a conversion of them must hold, computed slowly and plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
BYTES = [chr(c) for c in range(33, 127)]
MERGES = [["a", "b"], ["ab", "c"], ["Ġ", "t"]]
VOCAB = {text: i for i, text in enumerate([*SPECIAL, *BYTES, "Ġ", "Ċ", "ab", "abc", "Ġt"])}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": len(VOCAB) + 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def added(i: int, text: str, special: bool = True) -> dict[str, Any]:
    return {"id": i, "content": text, "special": special, "normalized": False}


def tokenizer(**changes: Any) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE tokenizer; `changes` replace top-level keys, `model` is merged."""
    model = {"type": "BPE", "vocab": VOCAB, "merges": MERGES} | changes.pop("model", {})
    base = {"added_tokens": [added(i, text) for i, text in enumerate(SPECIAL)], "normalizer": None, "model": model}
    return base | {"pre_tokenizer": GPT2, "post_processor": None, "decoder": {"type": "ByteLevel"}} | changes


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensors of a Llama checkpoint."""
    width, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        result["lm_head.weight"] = (vocab, width)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        matrices = {"q": (q, width), "k": (kv, width), "v": (kv, width), "o": (width, q)}
        for name, shape in matrices.items():
            result[f"{layer}self_attn.{name}_proj.weight"] = shape
            if config.get("attention_bias"):
                result[f"{layer}self_attn.{name}_proj.bias"] = shape[:1]
        for name, shape in {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}.items():
            result[f"{layer}mlp.{name}_proj.weight"] = shape
            if config.get("mlp_bias"):
                result[f"{layer}mlp.{name}_proj.bias"] = shape[:1]
        result[f"{layer}input_layernorm.weight"] = result[f"{layer}post_attention_layernorm.weight"] = (width,)
    return result


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights that bfloat16 holds exactly."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, shape in shapes(config).items():
        values = rng.standard_normal(shape, np.float32)
        result[name] = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return result


def write_checkpoint(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    dtype: str = "F32",
    files: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Write a checkpoint folder; the float32 weights in it. `files`: further JSON files (str and bytes as they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | (config or {})
    tensors = weights(config) if tensors is None else tensors
    content = {
        "config.json": config,
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "unk_token": "<|end|>", "chat_template": TEMPLATE},
    } | (files or {})
    for name, value in content.items():
        if value is None:
            continue
        data = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
        (folder / name).write_bytes(data)
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32") -> None:
    if dtype == "BF16":  # the numpy side of the library has no such type: written by hand
        header, data = {}, b""
        for name, values in tensors.items():
            raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            offsets = [len(data), len(data) + len(raw)]
            header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": offsets}
            data += raw
        path.write_bytes(raw_safetensors(header, data))
        return
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    save_file({name: np.ascontiguousarray(values, kind) for name, values in tensors.items()}, path)


def raw_safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    special = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in special:
        return f"{special[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"


def expected(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """GGUF's tensors in float32: the rows of Q and K moved one by one."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    result = {}
    for name, values in tensors.items():
        moved = values.copy()
        if "q_proj" in name or "k_proj" in name:
            for row in range(len(values)):
                h, within = divmod(row, head)
                half, pair = divmod(within, head // 2)
                moved[h * head + 2 * pair + half] = values[row]
        result[gguf_name(name)] = moved
    return result
