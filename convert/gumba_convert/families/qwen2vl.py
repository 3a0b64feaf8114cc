"""Qwen2-VL and Qwen2.5-VL: the language model is Qwen2, whose positions have several coordinates in images."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.multimodal import language_table
from gumba_convert.common.plan import Plan
from gumba_convert.families import qwen2

ARCHITECTURE = "qwen2vl"
HF_ARCHITECTURES = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")

SECTIONS = (16, 24, 24)


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of the language model; vision parts are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    table = language_table(checkpoint)
    return qwen2.language_model(decoder.text_config(checkpoint), table, architecture=ARCHITECTURE, sections=SECTIONS)
