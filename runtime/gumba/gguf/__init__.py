"""Reads GGUF files: metadata and tensors as views of a memory map. A file is checked when it is opened."""

from gumba.gguf.array import GGUFArray
from gumba.gguf.parser import GGUFTensor, Metadata
from gumba.gguf.reader import GGUFFile
from gumba.gguf.types import GGML_TYPES, NAMES, BlockType, ValueType

__all__ = ["GGUFFile", "GGUFTensor", "GGUFArray", "Metadata", "GGML_TYPES", "NAMES", "BlockType", "ValueType"]
