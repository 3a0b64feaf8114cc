"""Constants of llama.cpp's types and modes, without its C functions.

Using a C function raises an error that names it, except for the two with which applications read a vocabulary.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NoReturn

from gumba.errors import UnsupportedError

if TYPE_CHECKING:
    from gumba.compat.llama_cpp.state import Vocabulary

#: Prefix -> the names after it and their numbers, as in llama.h and ggml.h (llama-cpp-python 0.3.36).
_NUMBERS: dict[str, dict[str, int]] = {
    "GGML_NUMA_STRATEGY": {
        "DISABLED": 0, "DISTRIBUTE": 1, "ISOLATE": 2, "NUMACTL": 3, "MIRROR": 4, "COUNT": 5,
    },
    "GGML_ROPE_TYPE": {
        "NEOX": 2, "MROPE": 8, "VISION": 24, "IMROPE": 40,
    },
    "GGML_TYPE": {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q8_1": 9, "Q2_K": 10,
        "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_K": 15, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18,
        "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "I8": 24, "I16": 25, "I32": 26,
        "I64": 27, "F64": 28, "IQ1_M": 29, "BF16": 30, "MXFP4": 39, "NVFP4": 40, "Q1_0": 41, "Q2_0": 42,
        "COUNT": 43,
    },
    "LLAMA_ATTENTION_TYPE": {
        "UNSPECIFIED": -1, "CAUSAL": 0, "NON_CAUSAL": 1,
    },
    "LLAMA_CONTEXT_TYPE": {
        "DEFAULT": 0, "MTP": 1,
    },
    "LLAMA_FILE_MAGIC": {
        "GGLA": 1734831201, "GGSN": 1734833006, "GGSQ": 1734833009,
    },
    "LLAMA_FLASH_ATTN_TYPE": {
        "AUTO": -1, "DISABLED": 0, "ENABLED": 1,
    },
    "LLAMA_FTYPE": {
        "ALL_F32": 0, "MOSTLY_F16": 1, "MOSTLY_Q4_0": 2, "MOSTLY_Q4_1": 3, "MOSTLY_Q8_0": 7, "MOSTLY_Q5_0": 8,
        "MOSTLY_Q5_1": 9, "MOSTLY_Q2_K": 10, "MOSTLY_Q3_K_S": 11, "MOSTLY_Q3_K_M": 12, "MOSTLY_Q3_K_L": 13,
        "MOSTLY_Q4_K_S": 14, "MOSTLY_Q4_K_M": 15, "MOSTLY_Q5_K_S": 16, "MOSTLY_Q5_K_M": 17, "MOSTLY_Q6_K": 18,
        "MOSTLY_IQ2_XXS": 19, "MOSTLY_IQ2_XS": 20, "MOSTLY_Q2_K_S": 21, "MOSTLY_IQ3_XS": 22,
        "MOSTLY_IQ3_XXS": 23, "MOSTLY_IQ1_S": 24, "MOSTLY_IQ4_NL": 25, "MOSTLY_IQ3_S": 26, "MOSTLY_IQ3_M": 27,
        "MOSTLY_IQ2_S": 28, "MOSTLY_IQ2_M": 29, "MOSTLY_IQ4_XS": 30, "MOSTLY_IQ1_M": 31, "MOSTLY_BF16": 32,
        "MOSTLY_TQ1_0": 36, "MOSTLY_TQ2_0": 37, "MOSTLY_MXFP4_MOE": 38, "MOSTLY_NVFP4": 39, "MOSTLY_Q1_0": 40,
        "MOSTLY_Q2_0": 41, "GUESSED": 1024,
    },
    "LLAMA_KV_OVERRIDE_TYPE": {
        "INT": 0, "FLOAT": 1, "BOOL": 2, "STR": 3,
    },
    "LLAMA_LAZY_MODE": {
        "OFF": 0, "AUTO": 1, "ON": 2,
    },
    "LLAMA_LOAD_MODE": {
        "AUTO": -1, "NONE": 0, "MMAP": 1, "MLOCK": 2, "MMAP_MLOCK": 3, "DIRECT_IO": 4,
    },
    "LLAMA_MODEL_META_KEY": {
        "SAMPLING_SEQUENCE": 0, "SAMPLING_TOP_K": 1, "SAMPLING_TOP_P": 2, "SAMPLING_MIN_P": 3,
        "SAMPLING_XTC_PROBABILITY": 4, "SAMPLING_XTC_THRESHOLD": 5, "SAMPLING_TEMP": 6,
        "SAMPLING_PENALTY_LAST_N": 7, "SAMPLING_PENALTY_REPEAT": 8, "SAMPLING_MIROSTAT": 9,
        "SAMPLING_MIROSTAT_TAU": 10, "SAMPLING_MIROSTAT_ETA": 11,
    },
    "LLAMA_POOLING_TYPE": {
        "UNSPECIFIED": -1, "NONE": 0, "MEAN": 1, "CLS": 2, "LAST": 3, "RANK": 4,
    },
    "LLAMA_PROCESS_TYPE": {
        "ENCODE": 0, "DECODE": 1,
    },
    "LLAMA_ROPE_SCALING_TYPE": {
        "UNSPECIFIED": -1, "NONE": 0, "LINEAR": 1, "YARN": 2, "LONGROPE": 3, "MAX_VALUE": 3,
    },
    "LLAMA_ROPE_TYPE": {
        "NONE": -1, "NORM": 0, "NEOX": 2, "MROPE": 8, "VISION": 24, "IMROPE": 40,
    },
    "LLAMA_SESSION": {
        "VERSION": 10, "MAGIC": 1734833006,
    },
    "LLAMA_SPLIT_MODE": {
        "NONE": 0, "LAYER": 1, "ROW": 2, "TENSOR": 3,
    },
    "LLAMA_STATE_SEQ": {
        "FLAGS_NONE": 0, "FLAGS_PARTIAL_ONLY": 1, "FLAGS_SWA_ONLY": 1, "FLAGS_ON_DEVICE": 2, "VERSION": 3,
        "MAGIC": 1734833009,
    },
    "LLAMA_TOKEN_ATTR": {
        "UNDEFINED": 0, "UNKNOWN": 1, "UNUSED": 2, "NORMAL": 4, "CONTROL": 8, "USER_DEFINED": 16, "BYTE": 32,
        "NORMALIZED": 64, "LSTRIP": 128, "RSTRIP": 256, "SINGLE_WORD": 512,
    },
    "LLAMA_TOKEN_TYPE": {
        "UNDEFINED": 0, "NORMAL": 1, "UNKNOWN": 2, "CONTROL": 3, "USER_DEFINED": 4, "UNUSED": 5, "BYTE": 6,
    },
    "LLAMA_VOCAB_PRE_TYPE": {
        "DEFAULT": 0, "LLAMA3": 1, "DEEPSEEK_LLM": 2, "DEEPSEEK_CODER": 3, "FALCON": 4, "MPT": 5,
        "STARCODER": 6, "GPT2": 7, "REFACT": 8, "COMMAND_R": 9, "STABLELM2": 10, "QWEN2": 11, "OLMO": 12,
        "DBRX": 13, "SMAUG": 14, "PORO": 15, "CHATGLM3": 16, "CHATGLM4": 17, "VIKING": 18, "JAIS": 19,
        "TEKKEN": 20, "SMOLLM": 21, "CODESHELL": 22, "BLOOM": 23, "GPT3_FINNISH": 24, "EXAONE": 25,
        "CHAMELEON": 26, "MINERVA": 27, "DEEPSEEK3_LLM": 28, "GPT4O": 29, "SUPERBPE": 30, "TRILLION": 31,
        "BAILINGMOE": 32, "LLAMA4": 33, "PIXTRAL": 34, "SEED_CODER": 35,
    },
    "LLAMA_VOCAB_TYPE": {
        "NONE": 0, "SPM": 1, "BPE": 2, "WPM": 3, "UGM": 4, "RWKV": 5, "PLAMO2": 6, "TEST": 7,
    },
}  # fmt: skip
LLAMA_MAX_DEVICES = 16
LLAMA_DEFAULT_SEED = 0xFFFFFFFF
LLAMA_TOKEN_NULL = -1

# Constants that this package uses itself.
GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
GGML_TYPE_Q8_0 = 8
GGML_TYPE_BF16 = 30
LLAMA_POOLING_TYPE_UNSPECIFIED = -1
LLAMA_POOLING_TYPE_NONE = 0
LLAMA_POOLING_TYPE_MEAN = 1
LLAMA_POOLING_TYPE_CLS = 2
LLAMA_POOLING_TYPE_LAST = 3

globals().update({f"{prefix}_{name}": number for prefix, names in _NUMBERS.items() for name, number in names.items()})


class CFunction:
    """Placeholder for a function or structure of llama.cpp: every use raises UnsupportedError."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f"llama_cpp.{self._name}: gumba does not provide llama.cpp's C functions and structures; use the methods of Llama"
        )

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __repr__(self) -> str:
        return f"<llama_cpp.{self._name}, which gumba does not have>"


def c_name(name: str) -> CFunction:
    """The placeholder of a llama.cpp name. Raises AttributeError for other names."""
    if not name.startswith(("llama_", "ggml_", "gguf_", "mtmd_")):
        raise AttributeError(f"module 'llama_cpp' has no attribute {name!r}")
    return CFunction(name)


__getattr__ = c_name


def llama_model_get_vocab(model: Vocabulary) -> Vocabulary:
    """The vocabulary of ``Llama.model``, for ``llama_token_to_piece``."""
    return model


def llama_token_to_piece(
    vocab: Vocabulary, token: int, buf: Any, length: int, lstrip: int = 0, special: bool = False
) -> int:
    """Write a token's bytes to a ctypes buffer; returns their number, negated if ``length`` is too small."""
    text = vocab.detokenize([token], special=special)
    for _ in range(lstrip):
        text = text.removeprefix(b" ")
    if len(text) > length:
        return -len(text)
    ctypes.memmove(buf, text, len(text))
    return len(text)
