"""Reads a model's metadata and tensors from a GGUF file, with every check that the kernels rely on."""
