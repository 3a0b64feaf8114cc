"""Weights that are not finite, or too large to compute with: loading or generation ends with a clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba import LLM, GGUFFile, SamplingParams
from gumba.errors import ModelError
from gumba_convert import convert
from support.tiny_checkpoints import write_checkpoint

#: A weight, or the scale that begins a block.
BAD = {
    "f32": np.float32(np.nan).tobytes(),
    "f16": np.float16(np.inf).tobytes(),
    "bf16": b"\xc0\x7f",
    "q8_0": np.float16(np.nan).tobytes(),
    "q4_0": np.float16(-np.inf).tobytes(),
}


@pytest.mark.parametrize("type", BAD)
def test_a_damaged_weight_or_scale(tmp_path: Path, type: str) -> None:
    write_checkpoint(tmp_path / "hf")
    out = tmp_path / "out.gguf"
    convert(tmp_path / "hf", out, type=type, pure=True)
    with GGUFFile(out) as file:
        at = file.tensors["blk.0.ffn_down.weight"].offset
    with out.open("r+b") as damaged:
        damaged.seek(at)
        damaged.write(BAD[type])
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_down\.weight"):
        LLM(out)


def test_weights_whose_products_overflow(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    out = tmp_path / "out.gguf"
    convert(tmp_path / "hf", out, type="f32", pure=True)
    with GGUFFile(out) as file:
        tensor = file.tensors["blk.0.ffn_down.weight"]
        at, n_bytes = tensor.offset, tensor.n_bytes
    with out.open("r+b") as damaged:
        damaged.seek(at)
        damaged.write(np.full(n_bytes // 4, 3e38, np.float32).tobytes())
    with LLM(out) as llm:
        for _ in range(2):  # the engine lives on
            with pytest.raises(ModelError, match=r"logit of token 0 is .*, expected a finite number"):
                llm.generate(["abc"], SamplingParams(max_tokens=3, temperature=0))
