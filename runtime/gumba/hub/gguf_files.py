"""Selects a GGUF file of a repository by the names of its files.

Without a type, the first of ``PREFERENCE`` that the repository has and this version supports is selected: Q4_K_M, then types
with about as many bits per weight, then more bits, then fewer. Shards (``-00001-of-00003.gguf``) are one model;
multimodal projectors (``mmproj``) and importance matrices (``imatrix``) are never selected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from gumba.errors import DownloadError, RequestError, UnsupportedError
from gumba.hub.reference import Reference

#: Types in order of preference, if the user names none.
PREFERENCE = (
    "Q4_K_M", "Q4_K_L", "Q4_K_XL", "Q4_K", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4", "MXFP4_MOE", "NVFP4",
    "Q5_K_M", "Q5_K_S", "Q5_K_L", "Q5_K_XL", "Q5_K", "Q5_1", "Q5_0", "Q6_K", "Q6_K_L", "Q6_K_XL", "Q8_0", "Q8_K_XL",
    "BF16", "F16", "F32",
    "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS",
    "Q2_K_XL", "Q2_K_L", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "Q2_0", "TQ2_0", "TQ1_0", "IQ1_M",
    "IQ1_S", "Q1_0",
)  # fmt: skip
#: Types that this version runs, mixtures of several block formats included. Not among them: layouts for one processor, which were
#: removed from GGUF (Q4_0_4_4), and the types of forks (IQ4_K, Q4_K_R4).
_SUPPORTED = re.compile(
    r"(?:Q[2-6]_K|Q8_K|Q[45]_[01]|Q8_0|Q[12]_0|TQ[12]_0|IQ[123]_(?:XXS|XS|S|M)|IQ4_(?:NL|XS)|MXFP4|NVFP4|BF16|F16|F32)(?:_[A-Z]+)*"
)
#: Other names of types in file names.
_ALIASES = {"FP16": "F16", "FP32": "F32", "Q8": "Q8_0", **{f"Q{bits}": f"Q{bits}_K" for bits in range(2, 7)}}
_TYPE = re.compile(
    r"(?<![^\W_])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|B?F16|F32|FP16|FP32|MXFP4(?:_[A-Z]+)*|NVFP4))(?![^\W_])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_MAX_SHARDS = 9999


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository as its hub lists it: path, size in bytes, and the SHA-256 or Git's SHA-1 of its content."""

    path: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class GGUFModel:
    """The files of one model, shards in order, and its type ("Q4_K_M"; "" if its name has none)."""

    files: tuple[RemoteFile, ...]
    type: str


def type_of(path: str) -> str:
    """The type in the name of a GGUF file, else in that of its folder, in upper case; "" if there is none."""
    for part in reversed(path.removesuffix(".gguf").split("/")):
        types = _TYPE.findall(part.replace(".gguf", "").replace(".GGUF", ""))
        if types:
            return _canonical_type(types[-1])
    return ""


def is_supported(type: str) -> bool:
    """Whether this version supports the block formats of files of that type; True if the type is "" (unknown)."""
    return not type or _SUPPORTED.fullmatch(type.removeprefix("UD-")) is not None


def is_gguf(file: RemoteFile) -> bool:
    """Whether a file name is that of a language model in GGUF."""
    return file.name.lower().endswith(".gguf") and not _is_companion(file)


def choose(reference: Reference, files: Iterable[RemoteFile]) -> GGUFModel:
    """Select the model of ``reference`` among the files of its repository.

    Raises:
        RequestError: No file has that type or name, or several have.
        UnsupportedError: This version does not support that type, or any type of the repository.
        DownloadError: A shard is missing.
    """
    files = list(files)
    if reference.file is not None:
        return _named(reference, reference.file, files)
    models = _models(reference, [file for file in files if is_gguf(file)])
    if not models:
        raise RequestError(f"{reference.at}: the repository has no GGUF file" + _hint_of_checkpoint(files))
    if reference.type is not None:
        models = _of_type(reference, reference.type, models)
        candidates = [model for model in models if is_supported(model.type)]
    else:
        candidates = [model for model in models if is_supported(model.type)]
        best = min((_rank(model.type) for model in candidates), default=0)
        candidates = [model for model in candidates if _rank(model.type) == best]
    if not candidates:
        raise _unsupported(reference, models, _models(reference, [file for file in files if is_gguf(file)]))
    if len(candidates) > 1:
        names = ", ".join(model.files[0].path for model in candidates[:8])
        raise RequestError(
            f"{reference.at}: several files have {candidates[0].type or 'no'} as type: {names}; name one, e.g. "
            f"{reference}/{candidates[0].files[0].path}"
        )
    return candidates[0]


def _named(reference: Reference, path: str, files: Sequence[RemoteFile]) -> GGUFModel:
    """The model of the file at ``path``, with its other shards."""
    matches = [file for file in files if file.path == path] or [f for f in files if f.path.lower() == path.lower()]
    if len(matches) != 1:
        raise RequestError(
            f"{reference.at}: there is no file {path!r}; its GGUF files are {_list(f.path for f in files if is_gguf(f))}"
        )
    if _is_companion(matches[0]):
        raise RequestError(f"{reference.at}: {path} is a projector or an importance matrix, expected a language model")
    models = _models(reference, [file for file in files if is_gguf(file)])
    model = next(model for model in models if matches[0] in model.files)
    if not is_supported(model.type):
        raise _unsupported(reference, [model], models)
    return model


def _of_type(reference: Reference, type: str, models: Sequence[GGUFModel]) -> list[GGUFModel]:
    """The models of a type; if there are none, those of its dynamic (``UD-``) variant."""
    wanted = _canonical_type(type)
    for prefix in ("", "UD-"):
        matches = [model for model in models if model.type == prefix + wanted]
        if matches:
            return matches
    types = _list(dict.fromkeys(model.type for model in models if model.type))
    raise RequestError(f"{reference.at}: no file has the type {type}; the repository has {types}")


def _unsupported(reference: Reference, models: Sequence[GGUFModel], others: Sequence[GGUFModel]) -> UnsupportedError:
    """The error that this version supports none of ``models``, with the types of ``others`` that it supports."""
    types = _list(dict.fromkeys(model.type for model in models))
    supported = dict.fromkeys(
        model.type for model in sorted(others, key=lambda m: _rank(m.type)) if is_supported(model.type)
    )
    hint = f"name one that it supports: {reference}:{', :'.join(type for type in supported if type)}"
    if not any(supported):
        hint = "the repository has no type that it supports (a safetensors checkpoint can be converted)"
    return UnsupportedError(f"{reference.at}: this version does not support {types}; {hint}")


def _models(reference: Reference, files: Sequence[RemoteFile]) -> list[GGUFModel]:
    """Group the files into models; the shards of a model belong together."""
    models: list[GGUFModel] = []
    shards: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    for file in files:
        match = _SHARD.fullmatch(file.path)
        if match is None:
            models.append(GGUFModel((file,), type_of(file.path)))
        else:
            shards.setdefault((match[1], int(match[3])), {})[int(match[2])] = file
    for (stem, n), by_number in shards.items():
        if not 1 <= n <= _MAX_SHARDS or set(by_number) != set(range(1, n + 1)):
            raise DownloadError(f"{reference.at}: the repository has {len(by_number)} of the {n} shards of {stem}")
        models.append(GGUFModel(tuple(by_number[i] for i in range(1, n + 1)), type_of(stem)))
    return models


def _is_companion(file: RemoteFile) -> bool:
    """Whether a file is a multimodal projector or an importance matrix."""
    words = re.split(r"[-._]", file.name.lower())
    return (
        "mmproj" in words or file.name.lower().startswith("mmproj") or ("imatrix" in words and not type_of(file.name))
    )


def _rank(type: str) -> int:
    plain = type.removeprefix("UD-")
    index = PREFERENCE.index(plain) if plain in PREFERENCE else len(PREFERENCE)
    return 2 * index + type.startswith("UD-")


def _canonical_type(type: str) -> str:
    return _ALIASES.get(type.upper(), type.upper())


def _hint_of_checkpoint(files: Sequence[RemoteFile]) -> str:
    if any(PurePosixPath(file.path).suffix == ".safetensors" for file in files):
        return "; it is a checkpoint: without a type or file name, gumba converts it"
    return ""


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"
