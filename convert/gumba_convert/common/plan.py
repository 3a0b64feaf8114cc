"""``Plan``, a family's description of the GGUF file to write, and ``Source``, that of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gumba_convert.checkpoint.safetensors import SafeTensor
from gumba_convert.gguf_writer import Value


@dataclass(frozen=True)
class Source:
    """One tensor to write: GGUF's name and shape (rows first), and the source of its rows.

    The rows of `parts` (the last axis is a row) are concatenated; `rows` selects and orders them (None: all, in order);
    `columns` selects columns; `transposed` then swaps the last two axes of each matrix; `change` is applied to the values in
    float32. `mxfp4`: the parts are the blocks and the scales of one MXFP4 tensor.
    """

    name: str
    parts: tuple[SafeTensor, ...] | np.ndarray
    shape: tuple[int, ...]
    rows: np.ndarray | None = None
    columns: slice | np.ndarray | None = None
    transposed: bool = False
    change: Callable[[np.ndarray], np.ndarray] | None = None
    mxfp4: bool = False

    @property
    def n_rows(self) -> int:
        """Number of rows to encode: the elements of a vector, else the product of all axes but the last."""
        return self.shape[0] if len(self.shape) == 1 else math.prod(self.shape[:-1])

    @property
    def row_length(self) -> int:
        return 1 if len(self.shape) == 1 else self.shape[-1]


@dataclass(frozen=True)
class Plan:
    """A model to write: architecture ("llama"), metadata without the tokenizer's, tensors in file order."""

    architecture: str
    metadata: dict[str, Value]
    tensors: Sequence[Source]
    n_vocab: int
    warnings: list[str] = field(default_factory=list)
