"""Which tensors an architecture has, by the names that its program uses, and what becomes of them at load."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from gumba.backends.cpu.program.moe import Experts
from gumba.gguf import GGUFFile
from gumba.loading.weight_loader import Loader, TensorRule, check_tensors


@dataclass(frozen=True)
class TensorSlice:
    """Rows ``first`` up to ``last`` of a tensor, of experts' matrices (``of_each``) those of each expert's; ``one_row``: a
    matrix of one row, which files may have as a vector."""

    rule: TensorRule
    first: int
    last: int
    one_row: bool = False
    of_each: bool = False


class Weights:
    """Tensors by field: matrices, vectors (float32), or None for those that the file does not have."""

    def __init__(self) -> None:
        self.layers: list[Weights] = []

    def __getattr__(self, name: str) -> Any:  # what is there is found without this
        raise AttributeError(name)


class TensorTable:
    """The table of one model: field -> GGUF's name and shape, for the model and for each of its layers.

    ``prefix``: what layers' names begin with, of a model that has two stacks of them.
    """

    def __init__(self, gguf: GGUFFile, n_layers: int, prefix: str = "") -> None:
        self._gguf, self.prefix = gguf, prefix
        self._fields: list[dict[str, TensorSlice]] = [{} for _ in range(n_layers + 1)]
        self._rules: dict[str, TensorRule] = {}
        self._biases: dict[str, str] = {}  # of experts: the matrices' name -> the bias's

    def add(self, field: str, name: str, *shape: int, layer: int | None = None, required: bool = True) -> None:
        """A matrix (``shape``: rows, columns), a vector, or experts' matrices (their number first).

        Of a layer ``name`` begins after ``blk.N.``.
        """
        self.split(name, {field: shape[0]}, *shape[1:], layer=layer, required=required)

    def add_row(self, field: str, name: str, columns: int, *, layer: int) -> None:
        """A matrix of a single row, which files have as that or as a vector."""
        whole = f"{self.prefix}blk.{layer}.{name}"
        found = self._gguf.tensors.get(whole)
        rule = TensorRule(whole, (columns,) if found is not None and len(found.shape) == 1 else (1, columns))
        self._rules[whole] = rule
        self._fields[layer + 1][field] = TensorSlice(rule, 0, 1, one_row=True)

    def add_bias(self, field: str, name: str, n_experts: int, rows: int, *, layer: int) -> None:
        """Of the experts' matrices ``field``, which are there already: a bias for each."""
        whole = f"{self.prefix}blk.{layer}.{name}"
        self._rules[whole] = TensorRule(whole, (n_experts, rows))
        self._biases[self._fields[layer + 1][field].rule.name] = whole

    def split(
        self, name: str, fields: dict[str, int], *columns: int, layer: int | None = None, required: bool = True
    ) -> None:
        """One tensor that holds several: each field has so many of its rows, in order."""
        whole = name if layer is None else f"{self.prefix}blk.{layer}.{name}"
        rule = TensorRule(whole, (sum(fields.values()), *columns), required)
        self._rules[whole] = rule
        first = 0
        for field, rows in fields.items():
            self._fields[0 if layer is None else layer + 1][field] = TensorSlice(rule, first, first + rows)
            first += rows

    def split_experts(self, name: str, n_experts: int, fields: dict[str, int], columns: int, *, layer: int) -> None:
        """One tensor of experts' matrices that hold several: each field has so many rows of each, in order."""
        whole = f"{self.prefix}blk.{layer}.{name}"
        rule = TensorRule(whole, (n_experts, sum(fields.values()), columns))
        self._rules[whole] = rule
        first = 0
        for field, rows in fields.items():
            self._fields[layer + 1][field] = TensorSlice(rule, first, first + rows, of_each=True)
            first += rows

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of that name."""
        return name in self._gguf.tensors

    def load(
        self, loader: Loader, ignored: Callable[[str], bool] = lambda name: False, *, numbers: Collection[str] = ()
    ) -> Weights:
        """Check the file against the table, and read everything. Raises ModelError, GGUFError.

        ``numbers``: fields that are wanted as float32 though they have rows and columns.
        """
        check_tensors(self._gguf, self._rules, ignored)
        groups = []
        for fields in self._fields:
            group = Weights()
            for field, part in fields.items():
                if len(part.rule.shape) == 3:
                    rows = (part.first, part.last) if part.of_each else (0, None)
                    found = loader.experts(part.rule.name, *rows)
                    bias = self._biases.get(part.rule.name)
                    own = None if bias is None else loader.vector(bias)
                    setattr(group, field, None if found is None else Experts(found, own))
                    continue
                numeric = (len(part.rule.shape) == 1 and not part.one_row) or field in numbers
                read = loader.vector if numeric else loader.matrix
                setattr(group, field, read(part.rule.name, part.first, part.last))
            groups.append(group)
        groups[0].layers = groups[1:]
        return groups[0]
