"""Golden blocks of every format, by ggml's own quantizer: tests/data/quant_goldens.npz.

    python tools/make_quant_goldens.py

Quantizes the vector that ggml's tests measure errors on (``test_vector``) to each type that ggml can write, so that the error
budgets hold for formats that gumba only reads, and its own encoders have something to be compared with. Formats that need an
importance matrix get one of ones. Needs numpy, gguf and llama-cpp-python, whose library has the quantizer.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

OUT = Path(__file__).parent.parent / "tests" / "data" / "quant_goldens.npz"
#: What is no block format, or no longer one of files.
SKIPPED = {"I8", "I16", "I32", "I64", "F64", "F32", "F16", "BF16", "Q8_1", "Q8_K"}


def test_vector(offset: float = 0.0) -> np.ndarray:
    """0.1 + 2 cos(i + offset): float32 [4096], as ggml's tests have it."""
    return (0.1 + 2 * np.cos(np.arange(32 * 128, dtype=np.float32) + np.float32(offset))).astype(np.float32)


def main() -> None:
    """Quantize and write."""
    ggml = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *([ctypes.c_int64] * 3),
        ctypes.c_void_p,
    ]
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    x = test_vector()
    ones = np.ones_like(x)
    made = {}
    for kind in GGMLQuantizationType:
        if kind.name in SKIPPED:
            continue
        size, n_bytes = GGML_QUANT_SIZES[kind]
        out = np.zeros(len(x) // size * n_bytes, np.uint8)
        importance = ones.ctypes.data if ggml.ggml_quantize_requires_imatrix(int(kind)) else None
        written = ggml.ggml_quantize_chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, 1, len(x), importance)
        if written != out.nbytes:
            raise SystemExit(f"{kind.name}: {written} bytes written, {out.nbytes} expected")
        made[kind.name.lower()] = out
    np.savez_compressed(OUT, **made)
    print(f"{OUT}: {', '.join(made)}")


if __name__ == "__main__":
    main()
