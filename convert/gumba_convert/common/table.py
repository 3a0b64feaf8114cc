"""The table of a family's tensors: GGUF's name, the checkpoint's name, the shape, and changes.

A family fills its table line by line; `sources` then compares it with the checkpoint and reports all missing, unexpected and
mis-shaped tensors in one message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.safetensors import FileReader, SafeTensor
from gumba_convert.common.gather import same_values
from gumba_convert.common.plan import Source

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the standard library's from Python 3.11 on

# Written by old versions of transformers; today computed from the configuration.
COMPUTED = r".*(rotary_emb\.inv_freq|(self_attn|attention|attn)\.(masked_)?bias)"
MAX_NAMED = 8

Change = Callable[[np.ndarray], np.ndarray]


class Changes(TypedDict, total=False):
    """Keyword arguments of `TensorTable.tensor`."""

    rows: np.ndarray | None
    columns: slice | np.ndarray | None
    transposed: bool
    change: Change | None
    written: tuple[int, ...] | None


class LinearOptions(TypedDict, total=False):
    """Keyword arguments of `TensorTable.linear`."""

    bias: bool
    rows: np.ndarray | None
    transposed: bool


class TensorTable:
    """Collects the tensors to write.

    Args:
        prefixes: prefixes of names and their replacements, for checkpoints of a larger model; the first match applies.
        suffixes: suffixes of names and their replacements, likewise.
        ignored: a pattern of names that may exist and are not needed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        prefixes: Mapping[str, str] | None = None,
        suffixes: Mapping[str, str] | None = None,
        ignored: str = r"(?!)",
    ) -> None:
        self.checkpoint = checkpoint
        self._ignored = re.compile(f"{COMPUTED}|{ignored}")
        self._tensors = {
            _rename(name, prefixes or {}, suffixes or {}): tensor for name, tensor in checkpoint.tensors.items()
        }
        self._used: set[str] = set()
        self._sources: list[Source] = []
        self._problems: list[str] = []
        #: Messages for the user about the choice of tensors.
        self.warnings: list[str] = []

    def include(self, prefix: str, part: Checkpoint) -> None:
        """Add the tensors of a part in another folder, with ``prefix`` before their names."""
        self._tensors |= {prefix + name: tensor for name, tensor in part.tensors.items()}

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name, for layouts that the configuration does not tell apart."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the checkpoint's tensor of that name, to tell layouts apart; None if it does not exist."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor.shape

    def ignore(self, name: str) -> None:
        """Ignore a tensor that may exist."""
        self._used.add(name)

    def ties(self, head: str, embedding: str) -> bool:
        """Whether the output matrix is the embedding, in a checkpoint whose configuration ties them.

        As in transformers 5, a matrix in the file that differs from the embedding is kept; if the file has only one of the two,
        it serves as both. Call this before adding either of them.
        """
        self.ignore(head)
        if head not in self._tensors:
            return True
        if embedding not in self._tensors:
            self._tensors[embedding] = self._tensors[head]
            return True
        if self.same(head, embedding):
            return True
        self.warnings.append(
            f"the configuration ties the output matrix to the embedding, but {self._tensors[head].name} differs from "
            f"{self._tensors[embedding].name}: it is converted as a separate matrix, as in transformers 5"
        )
        return False

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors of the checkpoint have the same shape and values."""
        with FileReader() as reader:
            return same_values(reader, self._tensors[name], self._tensors[other])

    def computed(self, name: str, values: np.ndarray) -> None:
        """Add a tensor that is not in the checkpoint."""
        self._sources.append(Source(name, values, values.shape))

    def tensor(
        self,
        name: str,
        parts: str | Sequence[str],
        shape: tuple[int, ...],
        *,
        rows: np.ndarray | None = None,
        columns: slice | np.ndarray | None = None,
        transposed: bool = False,
        change: Change | None = None,
        written: tuple[int, ...] | None = None,
    ) -> None:
        """Add a tensor from one of the checkpoint, or from several of one shape stacked along a new axis.

        Args:
            shape: of each part in the checkpoint.
            rows, columns, transposed, change: see `Source`.
            written: the shape in the file; by default that of the selected rows and columns, transposed and stacked.
        """
        stacked = not isinstance(parts, str)
        taken = [self._take(part, shape) for part in ([parts] if isinstance(parts, str) else parts)]
        if written is None:
            written = shape if rows is None else (len(rows), *shape[1:])
            if columns is not None:
                n = len(columns) if isinstance(columns, np.ndarray) else len(range(*columns.indices(shape[-1])))
                written = (*written[:-1], n)
            written = (*written[:-2], written[-1], written[-2]) if transposed else written
            written = (len(taken), *written) if stacked else written
        present = tuple(tensor for tensor in taken if tensor is not None)
        if len(present) == len(taken):
            self._sources.append(Source(name, present, written, rows, columns, transposed, change))

    def mxfp4(self, name: str, theirs: str, shape: tuple[int, int, int], *, rows: np.ndarray, n_rows: int) -> None:
        """Add rows of each matrix of an MXFP4 tensor, stored as `theirs_blocks` and `theirs_scales`.

        Args:
            shape: number of matrices, rows of each, values of a row; `rows`, ascending, selects `n_rows` of each.
        """
        blocks = (*shape[:2], shape[2] // 32, 16)
        taken = (self._take(f"{theirs}_blocks", blocks), self._take(f"{theirs}_scales", blocks[:-1]))
        present = tuple(tensor for tensor in taken if tensor is not None)
        if len(present) == len(taken):
            self._sources.append(Source(name, present, (shape[0], n_rows, shape[2]), rows, mxfp4=True))

    def linear(
        self,
        name: str,
        theirs: str,
        shape: tuple[int, int],
        *,
        bias: bool = False,
        rows: np.ndarray | None = None,
        transposed: bool = False,
    ) -> None:
        """Add a matrix `name.weight` and, with `bias`, the vector `name.bias`.

        `shape` is that in the checkpoint; a `transposed` matrix has the bias's axis last.
        """
        self.tensor(f"{name}.weight", f"{theirs}.weight", shape, rows=rows, transposed=transposed)
        if bias:
            self.tensor(f"{name}.bias", f"{theirs}.bias", (shape[1] if transposed else shape[0],), rows=rows)

    def norm(self, name: str, theirs: str, width: int, *, bias: bool = False, change: Change | None = None) -> None:
        """Add a norm's vector `name.weight` and, with `bias`, its `name.bias`."""
        self.tensor(f"{name}.weight", f"{theirs}.weight", (width,), change=change)
        if bias:
            self.tensor(f"{name}.bias", f"{theirs}.bias", (width,))

    def layers(self, n_layers: int, theirs: str = "model.layers") -> Iterator[Layer]:
        """Iterate over the layers; each is a table with names relative to the layer."""
        for i in range(n_layers):
            yield Layer(self, i, f"blk.{i}.", f"{theirs}.{i}.")

    def sources(self) -> list[Source]:
        """All tensors in the order of the table.

        Raises:
            ConvertError: tensors are missing, mis-shaped, or not in the table.
        """
        unknown = [
            f"{tensor.name} is unexpected"
            for name, tensor in self._tensors.items()
            if name not in self._used and not self._ignored.fullmatch(name)
        ]
        problems = self._problems + unknown
        if problems:
            more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
            raise ConvertError(f"{self.checkpoint.folder}: tensor {'; '.join(problems[:MAX_NAMED])}{more}")
        return self._sources

    def _take(self, name: str, shape: tuple[int, ...]) -> SafeTensor | None:
        self._used.add(name)
        tensor = self._tensors.get(name)
        if tensor is None:
            self._problems.append(f"{name} is missing")
        elif tensor.shape != shape:
            self._problems.append(f"{tensor.name} is {list(tensor.shape)}, expected {list(shape)}")
            tensor = None
        return tensor


class Layer:
    """One layer of a table: `index`, and the table's methods with the layer's prefixes before both names."""

    def __init__(self, table: TensorTable, index: int, ours: str, theirs: str) -> None:
        self.table = table
        self.index = index
        self.ours = ours
        self.theirs = theirs

    def has(self, name: str) -> bool:
        return self.table.has(self.theirs + name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.table.shape(self.theirs + name)

    def tensor(self, name: str, parts: str | Sequence[str], shape: tuple[int, ...], **changes: Unpack[Changes]) -> None:
        full = self.theirs + parts if isinstance(parts, str) else [self.theirs + part for part in parts]
        self.table.tensor(self.ours + name, full, shape, **changes)

    def linear(self, name: str, theirs: str, shape: tuple[int, int], **options: Unpack[LinearOptions]) -> None:
        self.table.linear(self.ours + name, self.theirs + theirs, shape, **options)

    def norm(self, name: str, theirs: str, width: int, *, bias: bool = False, change: Change | None = None) -> None:
        self.table.norm(self.ours + name, self.theirs + theirs, width, bias=bias, change=change)


def _rename(name: str, prefixes: Mapping[str, str], suffixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    for old, new in suffixes.items():
        if name.endswith(old):
            return name[: -len(old)] + new
    return name
