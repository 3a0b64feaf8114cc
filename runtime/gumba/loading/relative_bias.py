"""Relative position biases of attention (Raffel et al. 2019): a learned bias per head and bucket of distances."""

from __future__ import annotations

import numpy as np

from gumba.elementary import ln, log
from gumba.loading.metadata import MetadataReader

#: Distance from which all keys have the same bias.
MAX_DISTANCE = 128
#: Numbers of buckets that suffice for single distances and for ranges of them, in both directions.
MIN_BUCKETS, MAX_BUCKETS = 4, 255


def read_buckets(metadata: MetadataReader) -> int:
    """The number of buckets. Raises ModelError if it is out of range."""
    n_buckets = metadata.count("attention.relative_buckets_count", MAX_BUCKETS)
    if n_buckets < MIN_BUCKETS:
        raise metadata.error(
            "attention.relative_buckets_count", f"is {n_buckets}, expected {MIN_BUCKETS} to {MAX_BUCKETS}"
        )
    return n_buckets


def biases(of_buckets: np.ndarray, *, causal: bool) -> np.ndarray:
    """Float32 [n_heads, 2 * MAX_DISTANCE + 1]: the bias added to the attention score at each distance between key and query.

    ``of_buckets``: float32 [n_buckets, n_heads]. Half of the buckets are for one distance each, the others for ranges that grow
    by the same factor up to MAX_DISTANCE. If attention is not ``causal``, the tokens after a token have half of all buckets.
    """
    away = np.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
    n = len(of_buckets) if causal else len(of_buckets) // 2
    distance = np.maximum(-away, 0) if causal else np.abs(away)
    near = n // 2
    times = np.maximum(distance, 1).astype(np.float32) / np.float32(near)
    ratio = log(times.astype(np.float64)).astype(np.float32) / np.float32(ln(MAX_DISTANCE / near))
    far = np.minimum(near + (ratio * np.float32(n - near)).astype(np.int64), n - 1)
    bucket = np.where(distance < near, distance, far) + (0 if causal else n * (away > 0))
    return np.ascontiguousarray(of_buckets[bucket].T)
