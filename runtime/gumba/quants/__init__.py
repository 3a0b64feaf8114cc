"""Block formats of weights, one file each: how numbers lie in bytes, and the loops that write and read them.

Each file makes one ``BlockFormat`` value: a ``FloatFormat`` or a ``DotFormat``. numba is imported by the first call of its
``quantize`` or ``dequantize``, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gumba.errors import UnsupportedError
from gumba.host import available_threads
from gumba.quants import (
    bf16,
    f16,
    f32,
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    iq4_nl,
    iq4_xs,
    mxfp4,
    nvfp4,
    q1_0,
    q2_0,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    tq1_0,
    tq2_0,
)
from gumba.quants._format import BlockFormat, DotFormat, Finite, FloatFormat, PackField


def register(formats: Iterable[BlockFormat]) -> Mapping[int, BlockFormat]:
    """Formats by their GGUF type id.

    Raises ValueError for two with the same id or name, and for sizes that contradict each other. Packing reads raw addresses
    and takes the size of a block from ``pack_fields``, so these must cover the block of the file, unless ``to_packed`` makes
    others.
    """
    registry: dict[int, BlockFormat] = {}
    for format in formats:
        if format.ggml_type in registry or format.name in {known.name for known in registry.values()}:
            raise ValueError(f"block format {format.name} ({format.ggml_type}) is registered twice")
        if format.dtype.itemsize != format.type_size:
            raise ValueError(f"{format.name} has blocks of {format.type_size} bytes, its dtype {format.dtype.itemsize}")
        if not format.finite:
            raise ValueError(
                f"{format.name} does not say where its scales are: its dtype has no floats, so it needs other_finite"
            )
        if format.block_size % format.packed_block_size:
            raise ValueError(
                f"{format.name} has blocks of {format.block_size} weights, packed blocks of {format.packed_block_size}"
            )
        end = max(field.offset + field.width * field.elements for field in format.pack_fields)
        if end != format.packed_block_bytes:
            raise ValueError(
                f"{format.name} has pack fields of {format.packed_block_bytes} bytes, which end at byte {end}"
            )
        if isinstance(format, FloatFormat) or format.to_packed is None:
            if format.packed_block_size != format.block_size:
                raise ValueError(
                    f"{format.name} has blocks of {format.block_size} weights, packed blocks of "
                    f"{format.packed_block_size}, and no to_packed that makes these"
                )
            if end != format.type_size:
                raise ValueError(f"{format.name} has blocks of {format.type_size} bytes, its pack fields {end}")
        registry[format.ggml_type] = format
    return MappingProxyType(registry)


#: Every block format, by its type id in GGUF.
FORMATS: Mapping[int, BlockFormat] = register(
    (
        f32.FORMAT,
        f16.FORMAT,
        q4_0.FORMAT,
        q4_1.FORMAT,
        q5_0.FORMAT,
        q5_1.FORMAT,
        q8_0.FORMAT,
        q2_k.FORMAT,
        q3_k.FORMAT,
        q4_k.FORMAT,
        q5_k.FORMAT,
        q6_k.FORMAT,
        bf16.FORMAT,
        tq1_0.FORMAT,
        tq2_0.FORMAT,
        mxfp4.FORMAT,
        iq1_s.FORMAT,
        iq1_m.FORMAT,
        iq2_xxs.FORMAT,
        iq2_xs.FORMAT,
        iq2_s.FORMAT,
        iq3_xxs.FORMAT,
        iq3_s.FORMAT,
        iq4_nl.FORMAT,
        iq4_xs.FORMAT,
        nvfp4.FORMAT,
        q1_0.FORMAT,
        q2_0.FORMAT,
    )
)


def get(name_or_id: str | int) -> BlockFormat:
    """A format, by its name ("q4_0", in upper or lower case) or its type id in GGUF.

    Raises UnsupportedError listing the known ones.
    """
    for format in FORMATS.values():
        if name_or_id == format.ggml_type or (isinstance(name_or_id, str) and name_or_id.lower() == format.name):
            return format
    known = ", ".join(f"{format.name} ({number})" for number, format in sorted(FORMATS.items()))
    raise UnsupportedError(f"unknown block format {name_or_id!r}: there are {known}")


def find_not_finite(format: BlockFormat, rows: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(row, block) of the first block of ``rows`` with a scale or a number that is NaN or infinite; None: there is none.

    ``rows``: uint8 [n, bytes of a row], C-contiguous.
    """
    from gumba.quants import _finite

    return _finite.find(format, rows)


def prepare_check() -> None:
    """Compile what ``find_not_finite`` needs."""
    from gumba.quants import _finite

    _finite.first_not_finite.compile()


def quantize(
    name_or_id: str | int, x: NDArray[np.generic], out: NDArray[np.uint8] | None = None, *, n_threads: int | None = None
) -> NDArray[np.uint8]:
    """``get(name_or_id).quantize`` on ``n_threads`` threads (None: all processors of this process).

    The bytes do not depend on the number of threads.
    """
    return get(name_or_id).quantize(x, out, n_threads=n_threads or available_threads())


def dequantize(
    name_or_id: str | int,
    data: NDArray[np.uint8],
    out: NDArray[np.float32] | None = None,
    *,
    n_threads: int | None = None,
) -> NDArray[np.float32]:
    """``get(name_or_id).dequantize`` on ``n_threads`` threads (None: all processors of this process)."""
    return get(name_or_id).dequantize(data, out, n_threads=n_threads or available_threads())


__all__ = [
    "FORMATS",
    "BlockFormat",
    "DotFormat",
    "Finite",
    "FloatFormat",
    "PackField",
    "dequantize",
    "find_not_finite",
    "get",
    "prepare_check",
    "quantize",
    "register",
]
