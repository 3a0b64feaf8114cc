"""Vocabularies from each kind of source file, and tokenizers made of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from gumba.tokenizer.byte_bpe import BYTE_TO_CHARACTER
from gumba.tokenizer.tokenizer import Tokenizer
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.gguf_writer import header, string
from gumba_convert.vocabulary.pre_tokenizer_probe import PROBE
from gumba_convert.vocabulary.vocabulary import Vocabulary, read_vocabulary

DATA = Path(__file__).parent.parent / "data"
GOLDENS = json.loads((DATA / "vocabulary_goldens.json").read_text(encoding="utf-8"))
TEXTS = [*json.loads((DATA / "tokenizer_goldens.json").read_text(encoding="utf-8"))["texts"], PROBE]


def read(folder: Path, files: dict[str, Any], n_rows: int, **config: Any) -> Vocabulary:
    """The vocabulary of a folder with these files: bytes and text as they are, the rest as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in {"config.json": config, **files}.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return read_vocabulary(Checkpoint(folder), n_rows)


def tokenizer_of(folder: Path, vocabulary: Vocabulary) -> Tokenizer:
    path = folder / "v.gguf"
    path.write_bytes(header({"general.architecture": string("llama"), **vocabulary.metadata()}, []))
    return Tokenizer.from_gguf(path)


BYTES_BY_CHARACTER = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def ranked() -> list[bytes]:
    """The golden vocabulary's tokens as bytes: it was trained, so that their order is that of their merges."""
    return [bytes(BYTES_BY_CHARACTER[c] for c in text) for text in GOLDENS["vocabulary"]["tokens"]]


def tiktoken_file() -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranked()))
