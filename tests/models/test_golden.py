"""Logits of tiny random models against those of transformers (tools/make_model_goldens.py made the files)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba.runner.load import Chunk
from support.tiny_models import GOLDENS, distance, load, logits_of, stored

#: With a float32 KV cache every number on the way is float32: what remains is rounding and another order of sums.
EXACT = 1e-4
#: A float16 KV cache rounds keys and values to 11 bits (5e-4 each at most); two or three layers let that grow a little.
F16_CACHE = 5e-3
#: bfloat16 keeps 8 bits, 8 times less, and weights and queries are rounded to it as well.
BF16_CACHE = 4e-2
#: Blocks of 32 with one scale, whose largest number decides how fine the others are; queries are rounded to them too.
Q8_0_CACHE = 0.11


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "kv_type, budget", [("f32", EXACT), ("f16", F16_CACHE), ("bf16", BF16_CACHE), ("q8_0", Q8_0_CACHE)]
)
def test_logits_of_every_position(path: Path, kv_type: str, budget: float) -> None:
    tokens, expected = stored(path)
    model = load(path, kv_type=kv_type, n_threads=1)
    try:
        for size in (len(tokens), 7, 1):
            assert distance(logits_of(model, tokens, size), expected) < budget, f"{size} tokens at a time"
    finally:
        model.close()


def test_outputs_select_positions_in_the_order_of_chunks() -> None:
    """``last`` selects a chunk's last position, ``none`` none; sequences of one step do not affect each other."""
    tokens, expected = stored(GOLDENS[0])
    model = load(GOLDENS[0], kv_type="f32", n_threads=2, kv_tokens=512)
    try:
        long, other, short = (model.kv.allocate(2) for _ in range(3))
        rows = model.forward(
            [
                Chunk(tokens=tokens[:40], position=0, pages=long, outputs="last"),
                Chunk(tokens=tokens[::-1][:60], position=0, pages=other, outputs="none"),
                Chunk(tokens=tokens[:3], position=0, pages=short, outputs="all"),
            ]
        )
        assert distance(rows.copy(), expected[[39, 0, 1, 2]]) < EXACT
        rows = model.forward(
            [
                Chunk(tokens=tokens[3:4], position=3, pages=short, outputs="last"),
                Chunk(tokens=tokens[40:68], position=40, pages=long, outputs="last"),
            ]
        )
        assert distance(rows.copy(), expected[[3, 67]]) < EXACT
        assert model.forward([Chunk(tokens=tokens[68:69], position=68, pages=long, outputs="none")]).shape[0] == 0
    finally:
        model.close()


def test_block_tables_of_any_pages() -> None:
    """A sequence's pages need not be contiguous or ascending, and old contents of a page do not matter."""
    path = next(path for path in GOLDENS if path.stem == "model_llama3")
    tokens, expected = stored(path)
    model = load(path, kv_type="f32", n_threads=1, kv_tokens=512)
    try:
        pages = model.kv.allocate(model.kv.n_free)
        for page in pages:
            model.forward([Chunk(tokens=tokens[:-65:-1], position=0, pages=[page], outputs="none")])
        chosen = [pages[-1], pages[0], pages[2]]
        rows = [
            model.forward([Chunk(tokens=part, position=at, pages=chosen, outputs="all")]).copy()
            for at, part in ((0, tokens[:100]), (100, tokens[100:]))
        ]
        assert distance(np.concatenate(rows), expected) < EXACT
    finally:
        model.close()
