"""Row orders in which Hugging Face and GGUF differ.

The functions return the indices of GGUF's rows in the checkpoint's tensor, int64 [n_rows].
"""

from __future__ import annotations

import numpy as np


def pairs(n_heads: int, head_dim: int, n_rotated: int | None = None) -> np.ndarray:
    """Rows of Q or K from two halves per head to interleaved pairs, for architectures that rotate neighbours.

    Args:
        n_rotated: number of first rows of a head that are rotated; by default all.
    """
    n_rotated = head_dim if n_rotated is None else n_rotated
    head = np.arange(head_dim)
    head[:n_rotated] = np.arange(n_rotated).reshape(2, -1).T.reshape(-1)
    return (np.arange(n_heads)[:, None] * head_dim + head).reshape(-1)


def part(first: int, n_rows: int) -> np.ndarray:
    """Consecutive rows of a fused tensor."""
    return np.arange(first, first + n_rows)


def grouped_qkv(n_groups: int, heads_per_group: int, head_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of Q, K and V in a fused tensor with groups of `heads_per_group` query heads, one of K and one of V."""
    rows = np.arange(n_groups * (heads_per_group + 2) * head_dim).reshape(n_groups, heads_per_group + 2, head_dim)
    return rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1)


def separate_rows(rows: np.ndarray, head_rows: int) -> np.ndarray:
    """Rows [n, ...] of complete heads from interleaved pairs back to two halves."""
    pairs: np.ndarray = rows.reshape(-1, head_rows // 2, 2, *rows.shape[1:])
    halves: np.ndarray = pairs.swapaxes(1, 2).reshape(rows.shape)
    return halves


def plus_one(values: np.ndarray) -> np.ndarray:
    """The weight of a norm that multiplies by 1 + weight, as GGUF stores it: the sum."""
    return values + np.float32(1)
