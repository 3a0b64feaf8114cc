"""Models with some metadata and tensors replaced, added or left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gumba import GGUFFile
from gumba.gguf import ValueType
from support.tiny_models import GOLDENS

SOURCE = next(path for path in GOLDENS if path.stem == "model_llama3")
KINDS = {int: ValueType.UINT32, float: ValueType.FLOAT32, bool: ValueType.BOOL, str: ValueType.STRING}


def rewrite(
    out: Path, metadata: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, *, model: Path = SOURCE
) -> Path:
    """The source model with some metadata and tensors replaced, added, or (None) left out."""
    metadata, tensors = metadata or {}, tensors or {}
    writer = gguf.GGUFWriter(out, "placeholder")
    writer.kv_data[0].clear()
    with GGUFFile(model) as source:
        values: dict[str, tuple[Any, ValueType, ValueType | None]] = {}
        for key, value in source.metadata.items():
            if hasattr(value, "to_list"):
                values[key] = (value.to_list(), ValueType.ARRAY, value.element_type)
            else:
                values[key] = (value, source.metadata.value_type(key), None)
        for key, value in metadata.items():
            values.pop(key, None)
            if value is not None:
                values[key] = (value, KINDS[type(value)], None)
        for key, (value, kind, element) in values.items():
            sub = None if element is None else gguf.GGUFValueType(int(element))
            writer.add_key_value(key, value, gguf.GGUFValueType(int(kind)), sub)
        data = {t.name: t.data.view(np.float32).reshape(t.shape).copy() for t in source.tensors.values()}
    data.update(tensors)
    for name, array in data.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
