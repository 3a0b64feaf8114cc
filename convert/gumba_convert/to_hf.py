"""Converts a GGUF file to a Hugging Face folder that transformers loads: safetensors, configuration and tokenizer."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from gumba import quants
from gumba.errors import ConvertError, ModelError, UnsupportedError
from gumba.gguf import GGUFFile, GGUFTensor
from gumba.host import available_threads
from gumba_convert.atomic import atomic_folder
from gumba_convert.checkpoint.shards import Entry, write_shards
from gumba_convert.common.parallel import Job, Progress, in_order, row_pieces
from gumba_convert.common.transforms import separate_rows
from gumba_convert.export import llama
from gumba_convert.vocabulary.tokenizer_json import special_ids, tokenizer_files

DTYPES = {"float32": ("F32", "f32"), "float16": ("F16", "f16"), "bfloat16": ("BF16", "bf16")}
FAMILIES: dict[str, ModuleType] = {"llama": llama}


@dataclass(frozen=True)
class ExportReport:
    """Result of an export: the folder, its safetensors files, and their bytes of weights."""

    path: Path
    files: tuple[str, ...]
    dtype: str
    n_tensors: int
    n_bytes: int
    seconds: float


def export(
    gguf_path: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    *,
    dtype: str = "bfloat16",
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> ExportReport:
    """Write a GGUF model as a Hugging Face folder.

    Args:
        gguf_path: the file, or the first of its shards.
        out_folder: a new folder; it appears complete or not at all.
        dtype: "float32", "float16" or "bfloat16", for all tensors. Weights are decoded to float32 and rounded once.
        progress: called with "export", the bytes of weights written so far, and the total.

    Raises:
        GGUFError, ModelError: the file cannot be read.
        ConvertError: the architecture cannot be exported, or the folder cannot be written.
    """
    started = time.perf_counter()
    if dtype not in DTYPES:
        raise ConvertError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
    target = Path(out_folder)
    with GGUFFile(gguf_path) as file:
        architecture = file.require("general.architecture", str)
        if architecture not in FAMILIES:
            raise ConvertError(
                f"{file.path}: {architecture!r} models cannot be exported, only files of the "
                f"architecture {' or '.join(FAMILIES)}"
            )
        family = FAMILIES[architecture]
        config = family.config(file)
        names = family.names(file)
        entries = [Entry(hf, DTYPES[dtype][0], file.tensors[name].shape) for name, hf in names.items()]
        n_bytes = sum(entry.n_bytes for entry in entries)
        texts = tokenizer_files(file, config["max_position_embeddings"])
        texts["config.json"] = config | special_ids(file, config["vocab_size"]) | {"torch_dtype": dtype}
        jobs = _jobs(file, family, names, config["head_dim"], DTYPES[dtype][1])
        with atomic_folder(target) as folder:
            for name, content in texts.items():
                text = json.dumps(content, ensure_ascii=False, indent=2)
                (folder / name).write_text(text + "\n", encoding="utf-8")
            report = (lambda done: progress("export", done, n_bytes)) if progress is not None else (lambda done: None)
            with closing(in_order(jobs, n_threads or available_threads())) as pieces:
                files = write_shards(folder, entries, pieces, report)
    return ExportReport(target, tuple(files), dtype, len(entries), n_bytes, time.perf_counter() - started)


def _jobs(file: GGUFFile, family: ModuleType, names: dict[str, str], head_dim: int, target: str) -> Iterator[Job]:
    for name in names:
        tensor = file.tensors[name]
        unit = family.head_rows(name, head_dim)
        rows = math.prod(tensor.shape[:-1]) if len(tensor.shape) > 1 or not unit else tensor.shape[0]
        length = math.prod(tensor.shape) // rows
        if unit and rows % unit:
            raise ConvertError(f"{file.path}: tensor {name} has {rows} rows, not whole heads of {unit}")
        for first, n_rows in row_pieces(rows, length, unit or 1):
            yield partial(_decode, tensor, length, first, n_rows, unit, target)


def _decode(tensor: GGUFTensor, length: int, first: int, n_rows: int, unit: int, target: str) -> np.ndarray:
    """Rows of a tensor as the bytes of the target format; uint8, flat."""
    where = f"{tensor.path}: tensor {tensor.name}"
    try:
        fmt = quants.get(tensor.type.id)
    except UnsupportedError as error:
        raise ConvertError(f"{where}: {error}") from None
    row_bytes = length // fmt.block_size * fmt.type_size
    data = tensor.data[first * row_bytes : (first + n_rows) * row_bytes].reshape(n_rows, row_bytes)
    try:
        values = fmt.dequantize(data)
        if unit:
            values = separate_rows(values, unit)
        encoded = quants.get(target).quantize(values)
    except ModelError as error:
        raise ConvertError(f"{where}, rows from {first}: {error}") from None
    return encoded.reshape(-1)
