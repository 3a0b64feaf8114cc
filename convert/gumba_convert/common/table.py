"""The table of a family's tensors: GGUF's name, the checkpoint's name, the shape, and what happens on the way.

A family writes its table line by line; `sources` then compares it with the checkpoint and names everything that is
missing, unexpected or mis-shaped together.
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

# Written by old versions of transformers; computed from the configuration everywhere today.
COMPUTED = r".*(rotary_emb\.inv_freq|(self_attn|attention|attn)\.(masked_)?bias)"
NAMED_AT_MOST = 8

Change = Callable[[np.ndarray], np.ndarray]


class Changes(TypedDict, total=False):
    """What `TensorTable.tensor` takes by name."""

    rows: np.ndarray | None
    columns: slice | np.ndarray | None
    transposed: bool
    change: Change | None
    written: tuple[int, ...] | None


class LinearOptions(TypedDict, total=False):
    """What `TensorTable.linear` takes by name."""

    bias: bool
    rows: np.ndarray | None
    transposed: bool


class TensorTable:
    """Collects the tensors to write.

    Args:
        renamed: beginnings of names that stand for others, for checkpoints that hold the model as a part; only the
            first one that fits is replaced. `respelled`: endings, likewise.
        ignored: a pattern of names that may be there and are not needed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        renamed: Mapping[str, str] | None = None,
        respelled: Mapping[str, str] | None = None,
        ignored: str = r"(?!)",
    ) -> None:
        self.checkpoint = checkpoint
        self._ignored = re.compile(f"{COMPUTED}|{ignored}")
        self._found = {
            _rename(name, renamed or {}, respelled or {}): tensor for name, tensor in checkpoint.tensors.items()
        }
        self._used: set[str] = set()
        self._sources: list[Source] = []
        self._problems: list[str] = []
        #: What a user should know of the choice among tensors.
        self.warnings: list[str] = []

    def include(self, prefix: str, part: Checkpoint) -> None:
        """Add the tensors of a part that lies in a folder of its own, by names that begin with ``prefix``."""
        self._found |= {prefix + name: tensor for name, tensor in part.tensors.items()}

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name; for what a configuration does not say."""
        return name in self._found

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the checkpoint's tensor of that name, for layouts that nothing else tells apart; None without it."""
        tensor = self._found.get(name)
        return None if tensor is None else tensor.shape

    def spare(self, name: str) -> None:
        """A tensor that may be there and says nothing new."""
        self._used.add(name)

    def ties(self, head: str, embedding: str) -> bool:
        """Whether the output matrix of a checkpoint that ties it to the embedding is the embedding.

        As in transformers 5: a matrix in the file that differs from the embedding stays what it is, and where only one of
        the two is in the file, it is both. To be called before either of them is put in the table.
        """
        self.spare(head)
        if head not in self._found:
            return True
        if embedding not in self._found:
            self._found[embedding] = self._found[head]
            return True
        if self.same(head, embedding):
            return True
        self.warnings.append(
            f"the configuration ties the output matrix to the embedding, but {self._found[head].name} differs from "
            f"{self._found[embedding].name}: it is converted as a matrix of its own, as transformers 5 reads it"
        )
        return False

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors of the checkpoint have the same shape and values."""
        with FileReader() as reader:
            return same_values(reader, self._found[name], self._found[other])

    def computed(self, name: str, values: np.ndarray) -> None:
        """A tensor that is not in the checkpoint."""
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
        """A tensor of the file from one of the checkpoint, or from several of one shape stacked along a new axis.

        Args:
            shape: of each part, as the checkpoint has it.
            rows, columns, transposed, change: see `Source`.
            written: the shape in the file; by default the checkpoint's, with the picked rows and columns, transposed and stacked.
        """
        stacked = not isinstance(parts, str)
        found = [self._take(part, shape) for part in ([parts] if isinstance(parts, str) else parts)]
        if written is None:
            written = shape if rows is None else (len(rows), *shape[1:])
            if columns is not None:
                n = len(columns) if isinstance(columns, np.ndarray) else len(range(*columns.indices(shape[-1])))
                written = (*written[:-1], n)
            written = (*written[:-2], written[-1], written[-2]) if transposed else written
            written = (len(found), *written) if stacked else written
        present = tuple(tensor for tensor in found if tensor is not None)
        if len(present) == len(found):
            self._sources.append(Source(name, present, written, rows, columns, transposed, change))

    def mxfp4(self, name: str, theirs: str, shape: tuple[int, int, int], *, rows: np.ndarray, n_rows: int) -> None:
        """Some rows of each matrix of a tensor that lies in MXFP4, as `theirs_blocks` and `theirs_scales`.

        Args:
            shape: matrices, rows of each, values of a row; `rows`, in ascending order, leaves `n_rows` of each.
        """
        blocks = (*shape[:2], shape[2] // 32, 16)
        found = (self._take(f"{theirs}_blocks", blocks), self._take(f"{theirs}_scales", blocks[:-1]))
        present = tuple(tensor for tensor in found if tensor is not None)
        if len(present) == len(found):
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
        """A matrix `name.weight`, and with `bias` the vector `name.bias`.

        `shape` is the checkpoint's; the last axis of a `transposed` one goes with the bias.
        """
        self.tensor(f"{name}.weight", f"{theirs}.weight", shape, rows=rows, transposed=transposed)
        if bias:
            self.tensor(f"{name}.bias", f"{theirs}.bias", (shape[1] if transposed else shape[0],), rows=rows)

    def norm(self, name: str, theirs: str, width: int, *, bias: bool = False, change: Change | None = None) -> None:
        """A norm's vector `name.weight`, and with `bias` its `name.bias`."""
        self.tensor(f"{name}.weight", f"{theirs}.weight", (width,), change=change)
        if bias:
            self.tensor(f"{name}.bias", f"{theirs}.bias", (width,))

    def layers(self, n_layers: int, theirs: str = "model.layers") -> Iterator[Layer]:
        """The layers in turn, each a table whose names are those inside of a layer."""
        for i in range(n_layers):
            yield Layer(self, i, f"blk.{i}.", f"{theirs}.{i}.")

    def sources(self) -> list[Source]:
        """All tensors in the order of the table.

        Raises:
            ConvertError: tensors are missing, mis-shaped, or not in the table.
        """
        unknown = [
            f"{tensor.name} is unexpected"
            for name, tensor in self._found.items()
            if name not in self._used and not self._ignored.fullmatch(name)
        ]
        problems = self._problems + unknown
        if problems:
            more = f" and {len(problems) - NAMED_AT_MOST} more" if len(problems) > NAMED_AT_MOST else ""
            raise ConvertError(f"{self.checkpoint.folder}: tensor {'; '.join(problems[:NAMED_AT_MOST])}{more}")
        return self._sources

    def _take(self, name: str, shape: tuple[int, ...]) -> SafeTensor | None:
        self._used.add(name)
        tensor = self._found.get(name)
        if tensor is None:
            self._problems.append(f"{name} is missing")
        elif tensor.shape != shape:
            self._problems.append(f"{tensor.name} is {list(tensor.shape)}, expected {list(shape)}")
            tensor = None
        return tensor


class Layer:
    """One layer of a table: `index`, and the table's methods with the layer's beginnings put before both names."""

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


def _rename(name: str, renamed: Mapping[str, str], respelled: Mapping[str, str]) -> str:
    for old, new in renamed.items():
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    for old, new in respelled.items():
        if name.endswith(old):
            return name[: -len(old)] + new
    return name
