"""The keywords of ``from_pretrained``, and the files that a name stands for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from gumba import store
from gumba.compat.transformers.arrays import check_device
from gumba.errors import RequestError, UnsupportedError
from gumba.llm.engine_args import check_dtype
from gumba.validation import KeywordError, require_optional_text, show, suggestion

log = logging.getLogger("gumba.compat.transformers")

#: Keywords about downloads that the hub's client has its own settings for, and about where and how fast PyTorch computes.
WITHOUT_EFFECT = frozenset({
    "trust_remote_code", "code_revision", "attn_implementation", "experts_implementation", "low_cpu_mem_usage", "use_safetensors",
    "offload_folder", "offload_state_dict", "offload_buffers", "max_memory", "use_fast", "legacy", "use_cache", "force_download",
    "resume_download", "proxies", "ignore_mismatched_sizes", "weights_only", "tp_plan",
    "use_flash_attention_2", "use_kernels", "clean_up_tokenization_spaces", "tokenizer_type", "mirror", "framework",
})  # fmt: skip
#: Keywords that would change results, and the values besides None that do not.
REFUSED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (),
    "load_in_8bit": (False,),
    "load_in_4bit": (False,),
    "config": (),
    "state_dict": (),
    "from_tf": (False,),
    "from_flax": (False,),
    "variant": (),
    "subfolder": ("",),
    "adapter_kwargs": ({},),
    "add_prefix_space": (False,),
    "from_slow": (False,),
    "output_loading_info": (False,),
    "rope_scaling": (),
}
_NAMING = ("revision", "token", "use_auth_token", "gguf_file", "cache_dir", "local_files_only")
_PLACES = ("device_map", "device", "torch_dtype", "dtype")


def split_keywords(options: Mapping[str, object], own: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that name the files, and those in ``own``; the others are checked, and have no effect.

    Raises KeywordError for an unknown one, UnsupportedError for a value that would change results and is not supported.
    """
    known = {*WITHOUT_EFFECT, *REFUSED, *_NAMING, *_PLACES, *own}
    naming, rest = {}, {}
    for name, value in options.items():
        if name in own:
            rest[name] = value
        elif name in _NAMING:
            naming[name] = value
        elif name in ("device_map", "device"):
            check_device(name, value)
        elif name in ("torch_dtype", "dtype"):
            if value is not None:
                check_dtype(name, value)
        elif name in REFUSED:
            if value is not None and not any(type(value) is type(same) and value == same for same in REFUSED[name]):
                raise UnsupportedError(f"{name}: gumba does not support it, found {show(value)}")
        elif name not in WITHOUT_EFFECT:
            raise KeywordError(
                f"from_pretrained() got an unexpected keyword argument {name!r}{suggestion(name, known)}"
            )
    return naming, rest


def found_file(name: str | PathLike[str], naming: Mapping[str, object]) -> Path:
    """The GGUF file of a model: a GGUF file, a folder, a hub id or a known name; checkpoints are converted once, then cached.

    Args:
        name: The model.
        naming: ``gguf_file``, a file in the folder or repository; ``revision``; ``token``; ``cache_dir``.

    Raises:
        RequestError: There is no such model.
        DownloadError: The hub does not answer, or does not have it.
        ConvertError: It cannot be converted.
    """
    if not isinstance(name, str | PathLike):
        raise RequestError(f"pretrained_model_name_or_path: expected a path or a name, found {show(name)}")
    file = require_optional_text("gguf_file", naming.get("gguf_file"))
    if file is not None:
        folder = store.local_path(fspath(name))
        if folder is not None and folder.is_dir():
            path = folder / file
            if not path.is_file():
                raise RequestError(f"gguf_file: {folder} has no file {file!r}")
            return path
        name = f"{name}/{file}"
    if isinstance(name, PathLike) or store.local_path(name) is not None:
        return store.resolve(name)  # transformers, too, takes a revision of what is on this machine
    if naming.get("local_files_only"):
        raise UnsupportedError(
            "local_files_only: not supported; set the environment variable HF_HUB_OFFLINE=1 before starting Python"
        )
    cache_dir = naming.get("cache_dir")
    if cache_dir is not None and not isinstance(cache_dir, str | PathLike):
        raise RequestError(f"cache_dir: expected a folder, found {show(cache_dir)}")
    tokens = [naming.get(key) for key in ("token", "use_auth_token")]
    return store.resolve(
        name,
        revision=require_optional_text("revision", naming.get("revision")),
        token=next((token for token in tokens if isinstance(token, str)), None),
        cache_dir=cache_dir,
    )
