"""Converts a Hugging Face checkpoint to a GGUF file, tensor by tensor.

Each tensor is processed in pieces of whole rows: read in GGUF's order, encode, write. A few threads encode pieces while this
one writes finished ones in order; a bounded queue limits memory to a few pieces per thread, whatever the size of the model.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gumba import quants
from gumba.chat.template import ChatTemplate
from gumba.errors import ConvertError, GGUFError, ModelError, ResourceError, TemplateError, TokenizerError
from gumba.gguf.parser import Header
from gumba.host import available_threads
from gumba.hub.fetch import fetch
from gumba.hub.reference import parse
from gumba.quants import BlockFormat
from gumba.tokenizer.tokenizer import Tokenizer
from gumba_convert.atomic import atomic_file
from gumba_convert.checkpoint.folder import Checkpoint, name_in_cache, open_checkpoint
from gumba_convert.checkpoint.safetensors import FileReader
from gumba_convert.common.gather import read_rows, unit, where
from gumba_convert.common.parallel import Job, Progress, in_order, row_pieces
from gumba_convert.common.plan import Plan, Source
from gumba_convert.families import family_of
from gumba_convert.gguf_writer import TensorInfo, Value, data_size, header, padding, string, u32
from gumba_convert.metadata import general
from gumba_convert.metadata.generation import generation_metadata
from gumba_convert.quantize.recipe import DEFAULT_TYPE, ENCODER_TYPE, FILE_TYPES, canonical, sizes, tensor_formats
from gumba_convert.vocabulary.vocabulary import Vocabulary, read_vocabulary

QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class ConvertReport:
    """Result of a conversion: `formats` counts tensors by block format, `warnings` are messages for the user."""

    path: Path
    source: Path
    architecture: str
    type: str
    n_tensors: int
    n_parameters: int
    n_bytes: int
    formats: dict[str, int]
    seconds: float
    warnings: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    type: str | None = None,
    pure: bool = False,
    progress: Progress | None = None,
    n_threads: int | None = None,
    name: str | None = None,
    pre_tokenizer: str | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> ConvertReport:
    """Convert a Hugging Face checkpoint to one GGUF file (version 3).

    Args:
        source: a folder with config.json, safetensors and a tokenizer; or a hub id such as "org/model", or
            "modelscope:org/model" (see `gumba.hub.modelscope`).
        out: the file to write, outside of the source folder. It appears complete or not at all; an existing GGUF file
            is replaced, any other existing file is an error.
        type: in upper or lower case: "f32", "f16", "bf16"; "q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0"; the mixtures
            "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k"; "mxfp4_moe";
            "q2_0", "tq2_0", "tq1_0", "q1_0"; "q5_k", "q4_k" and "q3_k" mean those ending in "_m". Norms and biases stay F32.
            None: "q8_0" for encoders (BERT and its kind), "q6_k" for all others.
        pure: give every matrix the main format of the type. Otherwise the output matrix, and in mixtures others, get more
            bits where llama.cpp gives them.
        progress: called with "convert", the bytes written so far and the size of the file.
        n_threads: encoding threads; by default the processors of this process. The file does not depend on it.
        name: `general.name`; by default from the checkpoint or its folder.
        pre_tokenizer: GGUF's name of the pre-tokenizer, if it is not recognized.
        revision, cache_dir: for a hub id, as in huggingface_hub.

    Raises:
        ConvertError: the checkpoint cannot be read or is not supported, or the file cannot or must not be written.
        DownloadError: a hub id cannot be fetched.
        ResourceError: too little disk space.
    """
    started = time.perf_counter()
    named, out = None if type is None else canonical(type), Path(out)
    _check_target(out)
    folder, title = _locate(source, revision, cache_dir)
    _check_outside(out, folder)
    checkpoint = open_checkpoint(folder)
    plan = family_of(checkpoint).plan(checkpoint)
    type = named or _default_type(plan)
    vocabulary = read_vocabulary(checkpoint, plan.n_vocab, pre_tokenizer=pre_tokenizer)
    formats = _formats(plan, type, pure)
    infos = [_info(source, quants.get(fmt)) for source, fmt in zip(plan.tensors, formats, strict=True)]
    n_parameters = sum(math.prod(info.shape) for info in infos)
    described, general_warnings = general.metadata(checkpoint, name or title, n_parameters)
    metadata, generation_warnings = _metadata(checkpoint, plan, vocabulary, described, FILE_TYPES[type].number)
    head = header(metadata, infos)
    n_bytes = len(head) + data_size(infos)
    _check_readable(out, head, n_bytes)
    _check_space(out, n_bytes)
    _write(out, head, n_bytes, plan, formats, infos, n_threads or available_threads(), progress)
    return ConvertReport(
        path=out,
        source=folder,
        architecture=plan.architecture,
        type=type,
        n_tensors=len(infos),
        n_parameters=n_parameters,
        n_bytes=n_bytes,
        formats=dict(Counter(formats)),
        seconds=time.perf_counter() - started,
        warnings=(
            *checkpoint.warnings,
            *plan.warnings,
            *vocabulary.warnings,
            *_template_warnings(vocabulary),
            *general_warnings,
            *generation_warnings,
        ),
    )


def _default_type(plan: Plan) -> str:
    causal = plan.metadata.get(f"{plan.architecture}.attention.causal")
    return ENCODER_TYPE if causal is not None and not causal.value else DEFAULT_TYPE


def _metadata(
    checkpoint: Checkpoint, plan: Plan, vocabulary: Vocabulary, described: dict[str, Value], file_type_number: int
) -> tuple[dict[str, Value], list[str]]:
    """All metadata of the file in order, and warnings about generation settings. `described`: `general.*` keys."""
    ends, warnings = generation_metadata(checkpoint, vocabulary, plan.metadata)
    tokenizer = vocabulary.metadata(described["general.name"].value)
    return {
        "general.architecture": string(plan.architecture),
        "general.type": string("model"),
        **described,
        "general.file_type": u32(file_type_number),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        **plan.metadata,
        **{key: value for key, value in tokenizer.items() if key not in plan.metadata},
        **ends,
    }, warnings


def _formats(plan: Plan, type: str, pure: bool) -> list[str]:
    """The format of each tensor of the plan."""
    model = sizes(plan.architecture, {key: value.value for key, value in plan.metadata.items()})
    return tensor_formats([(source.name, source.shape) for source in plan.tensors], type, model, pure=pure)


def _write(
    out: Path,
    head: bytes,
    n_bytes: int,
    plan: Plan,
    formats: list[str],
    infos: list[TensorInfo],
    n_threads: int,
    progress: Progress | None,
) -> None:
    """Write the file of `n_bytes`: the header, then the tensors in order, which `n_threads` threads encode."""
    with FileReader() as reader, atomic_file(out) as file:
        reader.open([part for s in plan.tensors if not isinstance(s.parts, np.ndarray) for part in s.parts])
        file.write(head)
        done = len(head)
        jobs = _jobs(reader, plan, formats, infos)
        with closing(in_order(jobs, n_threads)) as pieces:
            for data in pieces:
                file.write(data.data)
                done += data.nbytes
                if progress is not None:
                    progress("convert", done, n_bytes)


def _locate(source: str | os.PathLike[str], revision: str | None, cache_dir: Path | None) -> tuple[Path, str | None]:
    """The folder to read, and the model's title if the source has one."""
    text = os.fspath(source)
    if not text:  # an empty path would be the current folder
        raise ConvertError("the source is empty; expected a Hugging Face folder or hub id")
    path = Path(text)
    if path.is_dir():
        if revision is not None:
            raise ConvertError(f"revision: {path} is a folder; only a hub id has revisions")
        return path, name_in_cache(path)
    if path.exists():
        what = "is a GGUF file already" if path.suffix == ".gguf" else "is a file"
        raise ConvertError(f"{path} {what}; expected a Hugging Face folder or hub id")
    reference = parse(text) if isinstance(source, str) else None
    if reference is None:
        raise ConvertError(f"{path}: no such folder, and not a hub id")
    return fetch(text, revision=revision, cache_dir=cache_dir), reference.repository.rpartition("/")[2]


def _info(source: Source, fmt: BlockFormat) -> TensorInfo:
    n_bytes = math.prod(source.shape) // fmt.block_size * fmt.type_size
    return TensorInfo(source.name, source.shape, fmt.ggml_type, n_bytes)


def _check_target(out: Path) -> None:
    """Refuse an existing target that is not a GGUF file, so that a mistyped name does not destroy another file."""
    if not out.exists() or out.is_dir():  # a folder is reported where the file is opened
        return
    magic = b""
    try:
        if out.is_file():  # a device or a pipe is not opened
            with out.open("rb") as file:
                magic = file.read(4)
    except OSError as error:
        raise ConvertError(f"{out} exists and cannot be read: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise ConvertError(f"{out} exists and is not a GGUF file; name a new file, or remove that one first")


def _check_outside(out: Path, folder: Path) -> None:
    """Refuse a target inside the source, which is never changed."""
    if folder.resolve() in (out.absolute().parent.resolve() / out.name).parents:
        raise ConvertError(f"{out} lies inside the source folder {folder}; name a file outside of it")


def _check_space(out: Path, n_bytes: int) -> None:
    try:
        free = shutil.disk_usage(out.absolute().parent).free
    except OSError:  # a missing folder is reported where the file is opened
        return
    if free < n_bytes:
        raise ResourceError(f"{out} needs {n_bytes / 1e6:.0f} MB, but the disk has {free / 1e6:.0f} MB free")


def _check_readable(out: Path, head: bytes, n_bytes: int) -> None:
    """Read the header and its vocabulary as the runtime does, to write no unreadable file."""
    try:
        Tokenizer.from_gguf(Header(out, head, n_bytes))
    except (GGUFError, TokenizerError) as error:
        raise ConvertError(f"no file is written, because gumba could not read it back: {error}") from None


def _template_warnings(vocabulary: Vocabulary) -> list[str]:
    """Warnings about chat templates that do not compile."""
    warnings = []
    for name, template in vocabulary.special.templates.items():
        try:
            ChatTemplate(template)
        except TemplateError as error:
            which = "" if name == "default" else f" (chat template {name!r:.60})"
            warnings.append(
                f"{error}{which}: it is stored, but chats need another template (chat_template=, --chat-template)"
            )
    return warnings


def _jobs(reader: FileReader, plan: Plan, formats: list[str], infos: list[TensorInfo]) -> Iterator[Job]:
    """The data section in order: each tensor's pieces, then its padding."""
    for source, fmt, info in zip(plan.tensors, formats, infos, strict=True):
        for first, n_rows in row_pieces(source.n_rows, source.row_length, unit(source)):
            yield partial(_encode, reader, source, quants.get(fmt), first, n_rows)
        yield partial(np.zeros, padding(info.n_bytes), np.uint8)


def _encode(reader: FileReader, source: Source, fmt: BlockFormat, first: int, n_rows: int) -> np.ndarray:
    """Rows of a tensor as the bytes of a format; uint8, flat."""
    rows = read_rows(reader, source, first, n_rows)
    try:
        encoded: np.ndarray = fmt.quantize(rows)
        return encoded.reshape(-1)
    except ModelError as error:
        raise ConvertError(f"{where(source)}, rows from {first}: {error}") from None
