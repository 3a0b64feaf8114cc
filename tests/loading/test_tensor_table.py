"""The tensor table: declared fields, and what they are loaded as."""

from __future__ import annotations

import numpy as np
import pytest

from gumba import GGUFFile, backends
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Array, Weights
from support.changed_models import SOURCE


class OwnWeights(Weights):
    """The embedding as float32 numbers."""

    embedding: Array
    absent: Array | None = None


def test_a_field_that_is_not_declared_is_named() -> None:
    with GGUFFile(SOURCE) as gguf, Loader(gguf, backends.get(), 1) as loader:
        t = TensorTable(gguf, 0)
        t.add("embedding", "token_embd.weight", *gguf.tensors["token_embd.weight"].shape)
        with pytest.raises(TypeError, match=r"^Weights does not declare the fields embedding of the tensor table$"):
            t.load(loader, Weights, lambda name: True)


def test_a_tensor_is_loaded_as_its_field_is_declared() -> None:
    with GGUFFile(SOURCE) as gguf, Loader(gguf, backends.get(), 1) as loader:
        tensor = gguf.tensors["token_embd.weight"]
        t = TensorTable(gguf, 0)
        t.add("embedding", tensor.name, *tensor.shape)
        t.add("absent", "absent.weight", 4, required=False)
        own = t.load(loader, OwnWeights, lambda name: True)
        assert np.array_equal(own.embedding, tensor.data.view(np.float32).reshape(tensor.shape))
        assert own.has("embedding") and not own.has("absent") and not own.has("output_norm")
        t = TensorTable(gguf, 0)
        t.add("token_embd", tensor.name, *tensor.shape)
        matrix = t.load(loader, Weights, lambda name: True).token_embd
        assert (matrix.rows, matrix.columns) == tensor.shape
