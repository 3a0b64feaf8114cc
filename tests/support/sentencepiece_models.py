"""A checkpoint whose vocabulary is a SentencePiece model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_checkpoints import CONFIG, weights, write_checkpoint

PIECES = ["▁", "e", "t", "a", "h", "o", "n", "▁t", "he", "▁the", "on", "▁a", "an", "▁an", "at", "tat", "é"]


def proto(kind: int = 2, dummy_prefix: bool = True) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.trainer_spec.model_type = kind
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    for text, type in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        model.pieces.add(piece=text, score=0, type=type)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    joined = [text for text in PIECES if len(text) > 1]
    for text in [*joined, *(text for text in PIECES if len(text) == 1)]:
        score = -float(joined.index(text)) if text in joined else -100.0 - PIECES.index(text)
        model.pieces.add(piece=text, score=score, type=1)
    return bytes(model.SerializeToString())


N_PIECES = 3 + 256 + len(PIECES)


def write_sentencepiece(folder: Path, **files: Any) -> None:
    config = {"vocab_size": N_PIECES + 4, "tie_word_embeddings": True}
    base = {"tokenizer.model": proto(), "tokenizer.json": None, "tokenizer_config.json": None}
    write_checkpoint(folder, config=config, tensors=weights(CONFIG | config), files=base | files)
