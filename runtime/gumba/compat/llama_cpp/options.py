"""The keywords of ``Llama(...)``: which have an effect, which are accepted without one, which are refused."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

from gumba.compat.llama_cpp.errors import ArgumentError, LoadError, OptionError
from gumba.compat.llama_cpp.llama_cpp import (
    GGML_TYPE_BF16,
    GGML_TYPE_F16,
    GGML_TYPE_F32,
    GGML_TYPE_Q8_0,
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
)
from gumba.errors import GGUFError, ModelError, RequestError, TokenizerError, UnsupportedError
from gumba.gguf import GGUFFile
from gumba.validation import show

logger = logging.getLogger("gumba")

#: Context length without ``n_ctx``, as in llama-cpp-python.
DEFAULT_CONTEXT = 512

#: ggml's type numbers -> gumba's names of KV cache types.
KV_TYPES = {GGML_TYPE_F32: "f32", GGML_TYPE_F16: "f16", GGML_TYPE_Q8_0: "q8_0", GGML_TYPE_BF16: "bf16"}

#: Keywords that change where or how fast llama.cpp computes, never what: accepted, with a log line.
WITHOUT_EFFECT = frozenset({
    "n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "use_mmap", "use_mlock", "n_ubatch", "offload_kqv",
    "flash_attn", "op_offload", "swa_full", "no_perf", "numa", "lora_scale",
    # Keywords of older versions, which applications still pass and llama-cpp-python ignores.
    "f16_kv", "low_vram", "mul_mat_q", "n_parts",
})  # fmt: skip

#: Keywords that would change results in an unsupported way, and the values that change nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "kv_overrides": (None, {}),
    "rope_scaling_type": (None, -1),
    "attention_type": (-1,),
    "rope_freq_base": (0.0,),
    "rope_freq_scale": (0.0,),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0, -1.0),
    "yarn_beta_fast": (32.0, -1.0),
    "yarn_beta_slow": (1.0, -1.0),
    "yarn_orig_ctx": (0,),
    "lora_base": (None, ""),
    "lora_path": (None, ""),
}
#: Values that LangChain passes for every model: the file's values are kept, with a warning if they differ.
LANGCHAIN_DEFAULTS = {"rope_freq_base": 10000.0, "rope_freq_scale": 1.0}


def require(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise ArgumentError (a TypeError) unless ``value`` is of ``kind``; a bool is not a number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind in (Integral, Real)):
        raise ArgumentError(f"{name}: expected {expected}, found {show(value)}")


def seed_bits(seed: int) -> int:
    """A seed's lowest 32 bits. Raises ArgumentError (a TypeError) if it is not an int."""
    require("seed", seed, Integral, "an integer")
    return int(seed) & 0xFFFFFFFF


def stop_list(stop: str | Sequence[str] | None) -> list[str]:
    """Stop strings as a list; ``stop`` may be one string or None. Raises ArgumentError (a TypeError) for anything else."""
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    require("stop", stops, (list, tuple), "a string or a list of strings")
    for text in stops:
        require("stop", text, str, "strings")
    return list(stops)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Convert the errors of loading a file to LoadError or OptionError."""
    try:
        yield
    except UnsupportedError as error:
        raise OptionError(str(error)) from error
    except (GGUFError, ModelError, TokenizerError) as error:
        raise LoadError(str(error)) from error


@contextlib.contextmanager
def open_gguf(path: str) -> Iterator[GGUFFile]:
    """Open a GGUF file. Raises RequestError for a path that does not exist, LoadError for a file that cannot be read."""
    if not os.path.exists(path):  # noqa: PTH110 (a path with a NUL does not exist either)
        raise RequestError(f"Model path does not exist: {path}")
    with loading(), GGUFFile(path) as file:
        yield file


def check_options(options: Mapping[str, object], verbose: bool) -> None:
    """Log keywords without effect, and unknown ones, which llama-cpp-python ignores silently."""
    for name, value in options.items():
        if name in WITHOUT_EFFECT:
            level = logging.INFO if verbose else logging.DEBUG
            logger.log(level, "%s=%s has no effect: gumba computes on the processor", name, show(value))
        elif name not in REFUSED:
            level = logging.INFO if value is None else logging.WARNING
            logger.log(level, "Llama(): unknown keyword %s=%s is ignored", name, show(value))


def check_overrides(options: Mapping[str, object], metadata: Mapping[str, str]) -> None:
    """Raise OptionError for keywords that would change the model that ``metadata`` (as text) describes."""
    file_values = _file_values(metadata)
    for name, value in options.items():
        if name not in REFUSED or any(_same(value, other) for other in (*REFUSED[name], file_values.get(name))):
            continue
        if name == "kv_overrides" and isinstance(value, Mapping):
            if all(metadata.get(key) == metadata_text(override) for key, override in value.items()):
                continue
        elif name in LANGCHAIN_DEFAULTS and _same(value, LANGCHAIN_DEFAULTS[name]):
            logger.warning("%s=%s has no effect: gumba keeps the value of the file, %s", name, value, file_values[name])
            continue
        raise OptionError(f"{name}: gumba does not support it, found {show(value)}")


def _same(value: object, other: object) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (value, other))
    return bool(value == other) if numbers or type(value) is type(other) else False


def _file_values(metadata: Mapping[str, str]) -> dict[str, float | None]:
    """The values of a file for the keywords of ``REFUSED``."""
    name = metadata.get("general.architecture", "")

    def number(key: str, default: float) -> float:
        try:
            return float(metadata.get(f"{name}.{key}", default))
        except ValueError:
            return default

    scaling = metadata.get(f"{name}.rope.scaling.type", "none")
    factor = number("rope.scaling.factor", 1.0)
    types = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
    return {
        "rope_freq_base": number("rope.freq_base", 10000.0),
        "rope_freq_scale": 1.0 / factor if scaling == "linear" and factor > 0 else 1.0,
        "rope_scaling_type": types.get(scaling),
        "yarn_orig_ctx": number("rope.scaling.original_context_length", 0),
        "attention_type": int(metadata.get(f"{name}.attention.causal", "true") != "true"),
    }


def metadata_text(value: object) -> str:
    """A metadata value as llama.cpp prints it: floats with six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:f}" if isinstance(value, float) else str(value)


def kv_type(type_k: int | None, type_v: int | None) -> str | None:
    """The KV cache type for llama.cpp's two type numbers; None: the default. Raises OptionError for an unsupported type."""
    for number in (type_k, type_v):
        require("type_k, type_v", number, (int, type(None)), "a number of ggml's, or None")
    numbers = {number for number in (type_k, type_v) if number is not None}
    if not numbers:
        return None
    name = KV_TYPES.get(next(iter(numbers)))
    if len(numbers) > 1 or name is None:
        raise OptionError(
            f"type_k, type_v: expected the same type for both, one of {', '.join(map(str, KV_TYPES))} "
            f"({', '.join(KV_TYPES.values())}), found {show(type_k)} and {show(type_v)}"
        )
    return name


def context_size(n_ctx: int, trained: int) -> int:
    """The context length in tokens: ``n_ctx``, at most ``trained``, the model's training context; 0 is ``trained``.

    Logs a warning if ``n_ctx`` is above ``trained``; only an info for 512, the default, which callers may not have set.
    """
    require("n_ctx", n_ctx, Integral, "an integer")
    if n_ctx < 0:
        raise RequestError(f"n_ctx: expected 0 or more, found {n_ctx}")
    if n_ctx > trained:
        level = logging.INFO if n_ctx == DEFAULT_CONTEXT else logging.WARNING
        logger.log(level, "n_ctx=%d: the model was trained for %d tokens, which is the context it gets", n_ctx, trained)
    return min(n_ctx or trained, trained)


def pooling_name(pooling_type: int) -> Literal["mean", "first", "last"] | None:
    """The ``pooling`` of ``LLM.embed`` for a pooling type of llama.cpp; None: one embedding per token.

    "Unspecified" is also None, as in llama.cpp for generative models. Raises OptionError for an unsupported type.
    """
    if pooling_type in (LLAMA_POOLING_TYPE_UNSPECIFIED, LLAMA_POOLING_TYPE_NONE):
        return None
    if pooling_type == LLAMA_POOLING_TYPE_MEAN:
        return "mean"
    if pooling_type == LLAMA_POOLING_TYPE_CLS:
        return "first"
    if pooling_type == LLAMA_POOLING_TYPE_LAST:
        return "last"
    raise OptionError(f"pooling_type: expected -1 to {LLAMA_POOLING_TYPE_LAST}, found {show(pooling_type)}")
