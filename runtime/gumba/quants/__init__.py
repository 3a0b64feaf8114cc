"""Block formats of weights, one file each: how numbers lie in bytes, and the loops that write and read them.

Every format module has ``NAME``, ``GGML_TYPE`` (its id in GGUF), ``BLOCK_SIZE`` (weights in a block), ``TYPE_SIZE``
(bytes of a block), ``DTYPE`` (a block as a NumPy dtype), ``quantize`` and ``dequantize``. numba is imported by their
first call, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gumba.errors import UnsupportedError
from gumba.host import available_threads
from gumba.quants import bf16, f16, f32, mxfp4, q4_0, q4_1, q6_k, q8_0
from gumba.quants._codec import Codec


class BlockFormat(Protocol):
    """What every format module has."""

    NAME: str
    GGML_TYPE: int
    BLOCK_SIZE: int
    TYPE_SIZE: int
    DTYPE: np.dtype[Any]
    _codec: Codec


def register(modules: Iterable[Any]) -> Mapping[int, Any]:
    """Format modules by their GGUF type id.

    Raises ValueError for two of one id or one name, and for a block size that the dtype contradicts.
    """
    formats: dict[int, Any] = {}
    for module in modules:
        if module.GGML_TYPE in formats or module.NAME in {known.NAME for known in formats.values()}:
            raise ValueError(f"block format {module.NAME} ({module.GGML_TYPE}) is registered twice")
        if module.DTYPE.itemsize != module.TYPE_SIZE:
            raise ValueError(f"{module.NAME} says {module.TYPE_SIZE} bytes, its dtype {module.DTYPE.itemsize}")
        formats[module.GGML_TYPE] = module
    return MappingProxyType(formats)


#: Every block format, by its type id in GGUF.
FORMATS: Mapping[int, Any] = register((f32, f16, q4_0, q4_1, q8_0, q6_k, bf16, mxfp4))


def get(name_or_id: str | int) -> Any:
    """The module of a format, by its name ("q4_0", in any case) or its type id in GGUF.

    Raises UnsupportedError listing the known ones.
    """
    for module in FORMATS.values():
        if name_or_id == module.GGML_TYPE or (isinstance(name_or_id, str) and name_or_id.lower() == module.NAME):
            return module
    known = ", ".join(f"{module.NAME} ({number})" for number, module in sorted(FORMATS.items()))
    raise UnsupportedError(f"unknown block format {name_or_id!r}: there are {known}")


def quantize(
    name_or_id: str | int, x: NDArray[Any], out: NDArray[np.uint8] | None = None, *, n_threads: int | None = None
) -> NDArray[np.uint8]:
    """``get(name_or_id).quantize`` on ``n_threads`` threads (None: all processors of this process).

    The bytes do not depend on the number of threads.
    """
    encoded: NDArray[np.uint8] = get(name_or_id).quantize(x, out, n_threads=n_threads or available_threads())
    return encoded


def dequantize(
    name_or_id: str | int,
    data: NDArray[np.uint8],
    out: NDArray[np.float32] | None = None,
    *,
    n_threads: int | None = None,
) -> NDArray[np.float32]:
    """``get(name_or_id).dequantize`` on ``n_threads`` threads (None: all processors of this process)."""
    decoded: NDArray[np.float32] = get(name_or_id).dequantize(data, out, n_threads=n_threads or available_threads())
    return decoded


__all__ = ["FORMATS", "dequantize", "get", "quantize", "register"]
