"""Token ids as NumPy arrays, PyTorch tensors (where PyTorch is installed) and lists, and the dictionary that holds them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from gumba.errors import EngineError, RequestError, UnsupportedError
from gumba.validation import show

log = logging.getLogger("gumba.compat.transformers")


class PackageError(EngineError, ImportError):
    """PyTorch tensors are requested, and PyTorch is not installed. An ImportError too, as in transformers."""


class Device(str):
    """The name of the device that gumba computes on, "cpu". PyTorch takes it as a device."""

    __slots__ = ()

    @property
    def type(self) -> str:
        """The kind of device."""
        return str(self)

    @property
    def index(self) -> None:  # type: ignore[override]
        """The number of the device among its kind: none."""


def device() -> Any:
    """The CPU: a ``torch.device`` in a process that uses PyTorch, else a ``Device``."""
    torch = sys.modules.get("torch")
    return Device("cpu") if torch is None else torch.device("cpu")


def check_device(name: str, value: object) -> None:
    """Warn about a device other than the CPU: gumba computes on the CPU, with the same results.

    Raises RequestError for a value that names no device.
    """
    devices = list(value.values()) if isinstance(value, Mapping) else [value]
    for place in devices:
        if place is not None and not isinstance(place, str | int) and type(place).__name__ != "device":
            raise RequestError(f"{name}: expected the name of a device, found {show(value)}")
        if place is not None and str(place) not in ("cpu", "auto", "-1", "balanced", "sequential", "balanced_low_0"):
            log.warning("%s=%s has no effect: gumba computes on the CPU", name, show(place))


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a PyTorch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tensor_kind(value: object) -> str | None:
    """``return_tensors`` as None, "np" or "pt".

    Raises UnsupportedError for another kind, PackageError for "pt" without PyTorch.
    """
    if value is None:
        return None
    text = str(getattr(value, "value", value))
    if text not in ("np", "pt"):
        raise UnsupportedError(f"return_tensors: expected 'np' or 'pt', found {show(value)}")
    if text == "pt" and "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        raise PackageError(
            "return_tensors='pt' needs PyTorch, which is not installed; return_tensors='np' gives NumPy arrays"
        )
    return text


def as_kind(array: np.ndarray[Any, Any], kind: str | None) -> Any:
    """``array`` as it is, as a PyTorch tensor ("pt"), or as lists (None)."""
    if kind == "pt":
        return importlib.import_module("torch").from_numpy(np.ascontiguousarray(array))
    return array if kind == "np" else array.tolist()


def listed(value: object) -> Any:
    """Nested lists of ``value``: lists, tuples, arrays and tensors, at any depth."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def id_columns(encoded: object) -> dict[str, list[list[Any]]]:
    """Columns of encoded inputs, name -> rows: from a dictionary of columns, or a list of dictionaries of one row each.

    Raises RequestError without ``input_ids``, and for a column that is no list of lists.
    """
    if isinstance(encoded, Sequence) and encoded and all(isinstance(item, Mapping) for item in encoded):
        if any(item.keys() != encoded[0].keys() for item in encoded):
            raise RequestError("encoded_inputs: expected dictionaries with the same names, found different ones")
        encoded = {name: [item[name] for item in encoded] for name in encoded[0]}
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        raise RequestError(f"encoded_inputs: expected 'input_ids' of texts, found {show(encoded)}")
    columns = {name: listed(rows) for name, rows in encoded.items()}
    for name, rows in columns.items():
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise RequestError(f"{name}: expected a list of lists, found {show(encoded[name])}")
    return columns


def id_rows(name: str, value: object) -> list[list[int]]:
    """Integers [batch, n] as lists of the same length; a single row counts as a batch of one.

    Raises RequestError for anything else.
    """
    rows = listed(value)
    if isinstance(rows, list) and rows and not isinstance(rows[0], list):
        rows = [rows]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise RequestError(f"{name}: expected integers [batch, n], found {show(value)}")
    for row in rows:
        if len(row) != len(rows[0]):
            raise RequestError(
                f"{name}: expected rows of the same length, found {len(rows[0])} and {len(row)}; use padding=True"
            )
        for item in row:
            if isinstance(item, bool) and name == "attention_mask":
                continue
            if isinstance(item, bool) or not isinstance(item, Integral):
                raise RequestError(f"{name}: expected integers, found {show(item)}")
    return [[int(item) for item in row] for row in rows]


class BatchEncoding(dict[str, Any]):
    """The result of a tokenizer: ``input_ids``, ``attention_mask`` ..., as keys and as attributes.

    An integer index gives that row of ``input_ids``; ``shape`` is that of ``input_ids``.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"BatchEncoding has no {name!r}; it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__("input_ids")[key] if isinstance(key, int | slice) else super().__getitem__(key)

    @property
    def data(self) -> dict[str, Any]:
        """The same as a plain dictionary."""
        return dict(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``input_ids``, arrays or tensors."""
        return tuple(self["input_ids"].shape)

    def to(self, device: object = None, *_: object, **__: object) -> BatchEncoding:
        """The same: everything is on the CPU. Another device is a warning."""
        check_device("device", device)
        return self


def tensors(columns: Mapping[str, Sequence[object]], kind: str | None) -> BatchEncoding:
    """Columns of rows as arrays or tensors int64, or as they are (``kind`` None).

    Raises RequestError when rows differ in length and ``kind`` is given.
    """
    if kind is None:
        return BatchEncoding(columns)
    encoded = {}
    for name, rows in columns.items():
        lengths = {len(row) for row in rows if isinstance(row, list)}
        if len(lengths) > 1:
            raise RequestError(
                f"{name}: rows have {min(lengths)} to {max(lengths)} tokens; use padding=True or truncation=True"
            )
        encoded[name] = as_kind(np.array(rows, np.int64), kind)
    return BatchEncoding(encoded)
