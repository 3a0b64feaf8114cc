"""Writes vocabularies small enough to reason about: files that hold nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from gumba.tokenizer.byte_bpe import BYTE_TO_CHARACTER

BYTES = [BYTE_TO_CHARACTER[byte] for byte in range(256)]


def write(path: Path, model: str | None, arrays: dict[str, Any], **scalars: Any) -> Path:
    """A file with ``tokenizer.ggml.<key>`` for every array and scalar; scalars are typed as Python's types say."""
    out = gguf.GGUFWriter(path, "llama")
    if model is not None:
        out.add_tokenizer_model(model)
    for key, value in arrays.items():
        out.add_array("tokenizer.ggml." + key, value)
    for key, value in scalars.items():
        name = key if key.startswith(("tokenizer.", "general.")) else "tokenizer.ggml." + key
        add = {bool: out.add_bool, int: out.add_uint32, str: out.add_string, float: out.add_float32}[type(value)]
        add(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    return path


def byte_level(
    path: Path, merges: tuple[str, ...] = ("a b",), marks: tuple[str, ...] = ("<s>", "</s>"), **scalars: Any
) -> Path:
    """All single bytes (ids 0-255), what the merges make, then control tokens."""
    made = list(dict.fromkeys(merge.replace(" ", "", 1) for merge in merges))
    tokens = [*BYTES, *made, *marks]
    types = [1] * (256 + len(made)) + [3] * len(marks)
    arrays = {"tokens": tokens, "token_type": types, "merges": list(merges)}
    special = {"bos_token_id": tokens.index(marks[0]), "eos_token_id": tokens.index(marks[1])} if marks else {}
    return write(path, "gpt2", arrays, **{"pre": "gpt-2", **special, **scalars})


def sentence_piece(path: Path, pieces: tuple[str, ...] = ("▁", "a", "b", "ab"), **scalars: Any) -> Path:
    """Unknown, BOS, EOS, the 256 byte tokens (ids 3-258), then pieces, the later the better."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    scores = [0.0] * 259 + [float(i) for i in range(len(pieces))]
    return write(path, "llama", {"tokens": tokens, "token_type": types, "scores": scores}, **scalars)
