"""The cases of tokenizer_steps_goldens.json, and tokenizers made of them."""

from __future__ import annotations

import json
from pathlib import Path

from gumba.tokenizer.tokenizer import Tokenizer
from gumba_convert.gguf_writer import Value, header, string
from gumba_convert.vocabulary.vocabulary import Vocabulary

# Made by tools/make_tokenizer_steps_goldens.py; the oracle is tokenizers 0.23.3.
GOLDENS = json.loads(
    (Path(__file__).parent.parent / "data" / "tokenizer_steps_goldens.json").read_text(encoding="utf-8")
)


def opened(path: Path, vocabulary: Vocabulary, name: str = "", **keys: Value) -> Tokenizer:
    """The tokenizer of a file of this vocabulary; `keys`: further ones under "gumba.tokenizer."."""
    metadata = {"general.architecture": string("llama"), "general.name": string(name), **vocabulary.metadata(name)}
    metadata |= {f"gumba.tokenizer.{key}": value for key, value in keys.items()}
    path.write_bytes(header(metadata, []))
    return Tokenizer.from_gguf(path)
