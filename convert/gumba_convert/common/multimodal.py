"""Language models in vision-language models: their settings and tensors."""

from __future__ import annotations

from collections.abc import Sequence

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import Value, i32_array

#: Prefixes of the language model's names, and a pattern of the vision model's names.
PREFIXES = {"model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
VISION = r"(model\.)?visual\..*"


def language_table(checkpoint: Checkpoint) -> TensorTable:
    """The tensors of the language model, without the vision model's."""
    return TensorTable(checkpoint, prefixes=PREFIXES, ignored=VISION)


def position_sections(architecture: str, d: Decoder, default: Sequence[int]) -> dict[str, Value]:
    """Number of RoPE pairs per coordinate of an image patch (M-RoPE); text tokens have the same position in all.

    Raises:
        ConvertError: `mrope_section` is not a list of up to four integers.
    """
    sections = d.rope.settings.config.get("mrope_section", default) if d.rope is not None else default
    if (
        not isinstance(sections, (list, tuple))
        or not 1 <= len(sections) <= 4
        or any(type(n) is not int for n in sections)
    ):
        raise d.reader.fail("mrope_section", f"is {str(sections)[:80]}, expected up to four numbers")
    return {f"{architecture}.rope.dimension_sections": i32_array([*sections, 0, 0, 0][:4])}
