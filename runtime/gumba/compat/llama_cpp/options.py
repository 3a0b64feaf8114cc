"""The keywords of ``Llama(...)``: which have an effect, which are accepted for nothing, which are refused."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from gumba.errors import EngineError, GGUFError, ModelError, RequestError, TokenizerError, UnsupportedError
from gumba.params import show

logger = logging.getLogger("gumba.compat.llama_cpp")

#: Tokens of context where a ``Llama`` is given no ``n_ctx``, as in llama-cpp-python.
USUAL_CONTEXT = 512

LLAMA_DEFAULT_SEED = 0xFFFFFFFF
LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_LAYER, LLAMA_SPLIT_MODE_ROW = 0, 1, 2
LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED = -1
LLAMA_POOLING_TYPE_UNSPECIFIED, LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_MEAN = -1, 0, 1
LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_LAST, LLAMA_POOLING_TYPE_RANK = 2, 3, 4
GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_BF16 = 0, 1, 8, 30

#: ggml's numbers of types -> the KV cache's names of them.
KV_TYPES = {GGML_TYPE_F32: "f32", GGML_TYPE_F16: "f16", GGML_TYPE_Q8_0: "q8_0", GGML_TYPE_BF16: "bf16"}

#: Keywords that change where or how fast llama.cpp computes, never what: accepted, with a log line.
WITHOUT_EFFECT = frozenset({
    "n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "use_mmap", "use_mlock", "n_ubatch", "offload_kqv",
    "flash_attn", "op_offload", "swa_full", "no_perf", "numa", "lora_scale",
    # Of older versions; callers still give them, and llama-cpp-python swallows them.
    "f16_kv", "low_vram", "mul_mat_q", "n_parts",
})  # fmt: skip

#: Keywords that would change results in a way gumba does not know, and the values that change nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "kv_overrides": (None, {}),
    "rope_scaling_type": (None, LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED),
    "attention_type": (-1,),
    "rope_freq_base": (0.0,),
    "rope_freq_scale": (0.0,),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_orig_ctx": (0,),
    "lora_base": (None,),
    "lora_path": (None,),
    "tokenizer": (None,),
}


class LoadError(ModelError, ValueError):
    """A file that cannot be loaded. A ValueError too, which is what llama-cpp-python raises then."""


class OptionError(UnsupportedError, ValueError):
    """A kind of model, or an option of llama-cpp-python, that gumba does not have. A ValueError too, as above."""


class KeywordError(RequestError, TypeError):
    """A keyword that llama-cpp-python does not have either."""


class PickleError(EngineError, TypeError):
    """A model cannot be pickled. A TypeError too, as for everything else that cannot be."""


class PackageError(EngineError, ImportError):
    """A package that a method needs is not installed. An ImportError too, as llama-cpp-python raises."""


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Turns what a file can be at fault for into LoadError or OptionError."""
    try:
        yield
    except UnsupportedError as error:
        raise OptionError(str(error)) from error
    except (GGUFError, ModelError, TokenizerError) as error:
        raise LoadError(str(error)) from error


def check_options(options: Mapping[str, Any], verbose: bool) -> None:
    """Log options that have no effect here. Raises OptionError, or KeywordError for an unknown one."""
    for name, value in options.items():
        if name in WITHOUT_EFFECT:
            level = logging.INFO if verbose else logging.DEBUG
            logger.log(level, "%s=%s has no effect: gumba computes on the processor", name, show(value))
        elif name in REFUSED:
            if not any(type(value) in (type(same), int) and value == same for same in REFUSED[name]):
                raise OptionError(f"{name}: gumba does not support it, found {show(value)}")
        else:
            raise KeywordError(f"Llama() got an unexpected keyword argument {name!r}")


def kv_type(type_k: int | None, type_v: int | None) -> str | None:
    """The KV cache's type for llama.cpp's two; None: gumba's own choice. Raises OptionError for what it cannot hold."""
    found = {each for each in (type_k, type_v) if each is not None}
    if not found:
        return None
    name = KV_TYPES.get(next(iter(found)))
    if len(found) > 1 or name is None:
        raise OptionError(
            f"type_k, type_v: expected the same type for both, one of {', '.join(map(str, KV_TYPES))} "
            f"({', '.join(KV_TYPES.values())}), found {show(type_k)} and {show(type_v)}"
        )
    return name


def context_size(n_ctx: int, trained: int) -> int:
    """How many tokens to make room for: 0 is what the model was trained for, and that is also the most.

    Who gets fewer tokens than were asked for is told so; the usual number, 512, is what those have who ask for nothing.
    """
    if n_ctx < 0:
        raise RequestError(f"n_ctx: expected 0 or more, found {n_ctx}")
    if n_ctx > trained:
        level = logging.INFO if n_ctx == USUAL_CONTEXT else logging.WARNING
        logger.log(level, "n_ctx=%d: the model was trained for %d tokens, which is the context it gets", n_ctx, trained)
    return min(n_ctx or trained, trained)


def pooling_name(pooling_type: int) -> Literal["mean", "first", "last"] | None:
    """``LLM.embed``'s name of a pooling type; None: none, which is also what llama.cpp's "unspecified" means for models that
    generate. Raises OptionError for one that gumba does not have."""
    if pooling_type in (LLAMA_POOLING_TYPE_UNSPECIFIED, LLAMA_POOLING_TYPE_NONE):
        return None
    if pooling_type == LLAMA_POOLING_TYPE_MEAN:
        return "mean"
    if pooling_type == LLAMA_POOLING_TYPE_CLS:
        return "first"
    if pooling_type == LLAMA_POOLING_TYPE_LAST:
        return "last"
    raise OptionError(f"pooling_type: expected -1 to {LLAMA_POOLING_TYPE_LAST}, found {show(pooling_type)}")
