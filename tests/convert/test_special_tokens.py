"""Special and added tokens of a checkpoint: what its files say of them, and what a GGUF file then says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import CONFIG, SPECIAL, VOCAB, added, tokenizer, write_checkpoint

from gumba_convert import convert

N_ROWS = CONFIG["vocab_size"]
BEYOND = added(N_ROWS, "<image_soft_token>")
LISTED = [added(i, text) for i, text in enumerate(SPECIAL)]


@pytest.mark.parametrize(
    ("files", "role"),
    [
        ({"tokenizer.json": tokenizer(added_tokens=[*LISTED, BEYOND])}, ""),
        ({"tokenizer_config.json": {"added_tokens_decoder": {f"{N_ROWS}": BEYOND}, "eos_token": "<|im_end|>"}}, ""),
        ({"added_tokens.json": {"<image_soft_token>": N_ROWS}}, ""),
        (  # in the vocabulary too, and the end of a text by its name
            {
                "tokenizer.json": tokenizer(
                    added_tokens=[*LISTED, BEYOND], model={"vocab": VOCAB | {"<image_soft_token>": N_ROWS}}
                ),
                "tokenizer_config.json": {"eos_token": "<image_soft_token>"},
                "added_tokens.json": {"<image_soft_token>": N_ROWS},
            },
            " (eos_token)",
        ),
    ],
)
def test_an_added_token_without_a_row_is_left_out(tmp_path: Path, files: dict[str, Any], role: str) -> None:
    """As llama.cpp's converter does ("ignore token: id is out of range"); transformers 5.24 loads such a checkpoint."""
    config = {"tokenizer_config.json": {"eos_token": "<|im_end|>"}}
    write_checkpoint(tmp_path / "hf", files=config)
    convert(tmp_path / "hf", tmp_path / "without.gguf")
    write_checkpoint(tmp_path / "hf", files=config | files)
    report = convert(tmp_path / "hf", tmp_path / "with.gguf")
    message = f"'<image_soft_token>'{role} has id {N_ROWS}, but the model's embedding has {N_ROWS} rows: it is left out"
    assert [warning for warning in report.warnings if "left out" in warning] == [f"added token {message}"]
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()
