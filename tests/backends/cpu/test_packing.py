"""Packing: every element of the file's blocks, in the order that the kernels read them, whatever the number of lanes."""

from __future__ import annotations

import numpy as np
import pytest

from gumba.backends.cpu import packing
from gumba.quants import FORMATS, BlockFormat, DotFormat
from gumba.simd.detect import known
from gumba.simd.isa import Isa
from support.kernel_harness import random_rows

LANES = {isa.lanes: isa for isa in known().values() if isa.dot_signed is None}
SIGNED = [isa for isa in known().values() if isa.dot_signed is not None]


def packed(format: BlockFormat, raw: np.ndarray, columns: int, isa: Isa) -> np.ndarray:
    """The plain way: element by element of each block of a group, its lanes side by side."""
    dots = isinstance(format, DotFormat)
    rows = format.to_packed(raw) if dots and format.to_packed is not None else raw
    n_blocks = columns // format.packed_block_size
    n_groups = -(-len(rows) // isa.lanes)
    padded = np.zeros((n_groups * isa.lanes, rows.shape[1]), np.uint8)
    padded[: len(rows)] = rows
    blocks = padded.reshape(n_groups, isa.lanes, n_blocks, -1)
    parts = []
    for offset, width, count in format.pack_fields:
        piece = blocks[..., offset : offset + width * count].reshape(n_groups, isa.lanes, n_blocks, count, width)
        if width == 4 and isa.dot_signed is None:
            piece = piece ^ np.array([format.sign_flip if dots else 0], "<i4").view(np.uint8)
        parts.append(piece.transpose(0, 2, 3, 1, 4).reshape(n_groups, n_blocks, -1))
    return np.ascontiguousarray(np.concatenate(parts, axis=2)).ravel()


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
@pytest.mark.parametrize("isa", [*LANES.values(), *SIGNED[:1]], ids=lambda isa: f"{isa.name}-{isa.lanes}")
@pytest.mark.parametrize("n_rows, n_blocks", [(1, 1), (16, 3), (37, 2), (64, 5)])
def test_every_element_in_its_place(format: BlockFormat, isa: Isa, n_rows: int, n_blocks: int) -> None:
    n_blocks *= 7 if format.block_size == 1 else 1
    columns = n_blocks * format.block_size
    raw = random_rows(format, n_rows, columns, np.random.default_rng(n_rows))
    made = packing.pack_matrix(format, n_rows, columns, lambda first, count: raw[first : first + count], isa)
    assert made.address % 64 == 0 and made.data.nbytes == made.n_groups * made.group_bytes
    np.testing.assert_array_equal(made.data, packed(format, raw, columns, isa))


def test_a_large_matrix_comes_in_pieces() -> None:
    """Groups of all pieces, each once; a group larger than a piece is one by itself."""
    isa, format = next(iter(known().values())), FORMATS[0]
    for columns in (100, 4 * packing.CHUNK_BYTES):
        matrix = packing.allocate_packed(format, 1000, columns, isa, lambda n: np.empty(0, np.uint8))
        runs = list(packing.chunks(matrix))
        assert [group for first, last in runs for group in range(first, last)] == list(range(matrix.n_groups))
        assert all(
            (last - first) * matrix.group_bytes <= packing.CHUNK_BYTES or last - first == 1 for first, last in runs
        )
