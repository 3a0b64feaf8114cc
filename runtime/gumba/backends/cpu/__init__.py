"""The CPU backend: numba-compiled SIMD kernels, and the programs that threads run."""
