"""Language models that are parts of models which see pictures: where their settings and their tensors are."""

from __future__ import annotations

from collections.abc import Sequence

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import Value, i32_array

#: Beginnings of the language model's names, and a pattern of names that are not its own.
PARTS = {"model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
PICTURES = r"(model\.)?visual\..*"


def language_table(checkpoint: Checkpoint) -> TensorTable:
    """The tensors of the language model; those for pictures are left out."""
    return TensorTable(checkpoint, renamed=PARTS, ignored=PICTURES)


def position_sections(architecture: str, d: Decoder, default: Sequence[int]) -> dict[str, Value]:
    """How many rotary pairs each coordinate of a picture's patch turns; a text's tokens have one position in all of them.

    Raises:
        ConvertError: `mrope_section` is no list of up to four numbers.
    """
    sections = d.rope.settings.config.get("mrope_section", default) if d.rope is not None else default
    if (
        not isinstance(sections, (list, tuple))
        or not 1 <= len(sections) <= 4
        or any(type(n) is not int for n in sections)
    ):
        raise d.reader.fail("mrope_section", f"is {str(sections)[:80]}, expected up to four numbers")
    return {f"{architecture}.rope.dimension_sections": i32_array([*sections, 0, 0, 0][:4])}
