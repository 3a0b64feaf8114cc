"""Compiles Python functions to machine code, and caches the compiled kernels."""
