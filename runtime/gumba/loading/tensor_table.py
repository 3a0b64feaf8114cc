"""The tensor table of an architecture: which tensors its files have, their shapes, and the fields that they are loaded into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args, get_type_hints

import numpy as np

from gumba.backends.base import Experts
from gumba.gguf import GGUFFile
from gumba.loading.weight_loader import Loader, TensorRule, check_tensors
from gumba.loading.weights import LayerWeights, Weights

W = TypeVar("W", bound=Weights)

#: Tensors that a file may have beside a matrix ``NAME.weight``: ``NAME.scale`` and ``NAME.input_scale``.
SCALES = ("scale", "input_scale")


@dataclass(frozen=True)
class TensorSlice:
    """Rows ``first`` up to ``last`` of a tensor; ``per_expert``: these rows of the matrix of each expert."""

    rule: TensorRule
    first: int
    last: int
    per_expert: bool = False


class TensorTable:
    """The table of one model: field -> GGUF's name and shape, for the model and for each of its layers.

    ``prefix``: of the layers' names, for a model that has two stacks of them.

    Beside a matrix ``NAME.weight`` of any table, a file may have ``NAME.scale``, the factor of its numbers, and
    ``NAME.input_scale``, the one of its inputs where they are quantized to FP4 (files of NVFP4 have both): one number, or one for
    each expert. Inputs are quantized to 8 bits here, with scales of their own, so the second is checked and not needed.
    """

    def __init__(self, gguf: GGUFFile, n_layers: int, prefix: str = "") -> None:
        self._gguf, self.prefix = gguf, prefix
        self._fields: list[dict[str, TensorSlice]] = [{} for _ in range(n_layers + 1)]
        self._rules: dict[str, TensorRule] = {}
        self._biases: dict[str, str] = {}  # of experts: the matrices' name -> the bias's
        self._scales: dict[str, np.ndarray] = {}  # a matrix's name -> its scale, or those of experts

    def add(self, field: str, name: str, *shape: int, layer: int | None = None, required: bool = True) -> None:
        """A vector, a matrix (``shape``: rows, columns), or experts' matrices (their number first).

        With ``layer``, ``name`` is the part after ``blk.N.``.
        """
        self.split(name, {field: shape[0]}, *shape[1:], layer=layer, required=required)

    def add_row(self, field: str, name: str, columns: int, *, layer: int) -> None:
        """A matrix of a single row, stored as that or as a vector."""
        full_name = self._full_name(name, layer)
        tensor = self._gguf.tensors.get(full_name)
        rule = TensorRule(full_name, (columns,) if tensor is not None and len(tensor.shape) == 1 else (1, columns))
        self._rules[full_name] = rule
        self._fields[layer + 1][field] = TensorSlice(rule, 0, 1)

    def add_expert_bias(self, field: str, name: str, n_experts: int, rows: int, *, layer: int) -> None:
        """The biases of the experts' matrices ``field``, which are in the table already."""
        full_name = self._full_name(name, layer)
        self._rules[full_name] = TensorRule(full_name, (n_experts, rows))
        self._biases[self._fields[layer + 1][field].rule.name] = full_name

    def split(
        self, name: str, fields: dict[str, int], *columns: int, layer: int | None = None, required: bool = True
    ) -> None:
        """One tensor that holds several: ``fields`` are their numbers of rows, in the tensor's order."""
        full_name = self._full_name(name, layer)
        rule = TensorRule(full_name, (sum(fields.values()), *columns), required)
        self._add_slices(rule, fields, layer)

    def split_experts(self, name: str, n_experts: int, fields: dict[str, int], columns: int, *, layer: int) -> None:
        """One tensor of experts' matrices, each of which holds several: ``fields`` are their numbers of rows, in order."""
        rule = TensorRule(self._full_name(name, layer), (n_experts, sum(fields.values()), columns))
        self._add_slices(rule, fields, layer, per_expert=True)

    def _full_name(self, name: str, layer: int | None) -> str:
        return name if layer is None else f"{self.prefix}blk.{layer}.{name}"

    def _add_slices(
        self, rule: TensorRule, fields: dict[str, int], layer: int | None, *, per_expert: bool = False
    ) -> None:
        self._rules[rule.name] = rule
        first = 0
        for field, rows in fields.items():
            self._fields[0 if layer is None else layer + 1][field] = TensorSlice(rule, first, first + rows, per_expert)
            first += rows

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of that name."""
        return name in self._gguf.tensors

    def load(self, loader: Loader, kind: type[W], ignored: Callable[[str], bool] = lambda name: False) -> W:
        """Check the file against the table, and load its tensors into a ``kind`` of Weights, as its fields are declared.

        ``ignored``: which tensors the file may have beside those of the table. Raises ModelError naming all tensors that are
        missing, unexpected or of the wrong shape together; GGUFError; TypeError for a field that is not declared.
        """
        weights, layer_kind = kind(), _layer_kind(kind)
        weights.layers = [layer_kind() for _ in self._fields[1:]]
        model_types = _field_types(kind, self._fields[:1])
        layer_types = _field_types(layer_kind, self._fields[1:])
        scales = self._scale_rules([(self._fields[0], model_types), *((f, layer_types) for f in self._fields[1:])])
        check_tensors(self._gguf, {**self._rules, **scales}, ignored)
        self._read_scales(loader, scales)
        for field, part in self._fields[0].items():
            setattr(weights, field, self._read(loader, part, model_types[field]))
        for layer, fields in zip(weights.layers, self._fields[1:]):
            for field, part in fields.items():
                setattr(layer, field, self._read(loader, part, layer_types[field]))
        return weights

    def _scale_rules(
        self, tables: Sequence[tuple[dict[str, TensorSlice], dict[str, frozenset[type]]]]
    ) -> dict[str, TensorRule]:
        """The rules of ``NAME.scale`` and ``NAME.input_scale`` of the file's matrices, for names that no field has."""
        rules = {}
        for fields, types in tables:
            for field, part in fields.items():
                name = part.rule.name
                if name not in self._gguf.tensors or not name.endswith(".weight") or np.ndarray in types[field]:
                    continue
                shape = (part.rule.shape[0],) if Experts in types[field] else (1,)
                for kind in SCALES:
                    rule = TensorRule(name.removesuffix("weight") + kind, shape, required=False)
                    if rule.name not in self._rules:
                        rules[rule.name] = rule
        return rules

    def _read_scales(self, loader: Loader, rules: Iterable[str]) -> None:
        """Read the scales that the file has, which the loader checks."""
        for name in rules:
            values, (matrix, _, kind) = loader.vector(name), name.rpartition(".")
            if values is not None and kind == "scale":
                self._scales[f"{matrix}.weight"] = values

    def _read(self, loader: Loader, part: TensorSlice, types: frozenset[type]) -> object:
        """A tensor, or a slice of one, as its field is declared; None when the file has no such tensor."""
        name = part.rule.name
        scales = self._scales.get(name)
        if Experts in types:
            first, last = (part.first, part.last) if part.per_expert else (0, None)
            matrices = loader.experts(name, first, last, None if scales is None else scales.tolist())
            bias = self._biases.get(name)
            return None if matrices is None else Experts(matrices, None if bias is None else loader.vector(bias))
        if np.ndarray in types:
            return loader.vector(name, part.first, part.last)
        return loader.matrix(name, part.first, part.last, 1.0 if scales is None else float(scales[0]))


def _field_types(kind: type, tables: Sequence[dict[str, TensorSlice]]) -> dict[str, frozenset[type]]:
    """The types that the fields of ``kind`` are declared as. Raises TypeError if it lacks one of the ``tables``."""
    types = {field: frozenset((hint, *get_args(hint))) for field, hint in get_type_hints(kind).items()}
    undeclared = sorted({field for fields in tables for field in fields} - set(types))
    if undeclared:
        raise TypeError(f"{kind.__name__} does not declare the fields {', '.join(undeclared)} of the tensor table")
    return types


def _layer_kind(kind: type[Weights]) -> type[LayerWeights]:
    """What ``kind.layers`` is declared to hold."""
    (layer_kind,) = get_args(get_type_hints(kind)["layers"])
    return layer_kind  # type: ignore[no-any-return]
