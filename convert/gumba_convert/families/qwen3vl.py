"""Qwen3-VL, dense and with experts: the language model is Qwen3, whose positions have several coordinates in images."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import architecture_name
from gumba_convert.common.multimodal import language_table
from gumba_convert.common.plan import Plan
from gumba_convert.families import qwen3, qwen3moe
from gumba_convert.gguf_writer import Value, u32

DENSE, SPARSE = "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"
HF_ARCHITECTURES = (DENSE, SPARSE)
MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")

SECTIONS = (24, 20, 20)
DEEPSTACK = (8, 16, 24)


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of the language model; vision parts are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader, table = decoder.text_config(checkpoint), language_table(checkpoint)
    sparse = (architecture_name(checkpoint) or checkpoint.config.get("model_type")) in (SPARSE, "qwen3_vl_moe")
    architecture = "qwen3vlmoe" if sparse else "qwen3vl"
    more = {f"{architecture}.n_deepstack_layers": _deepstack_layers(reader, checkpoint)}
    model = qwen3moe.language_model if sparse else qwen3.language_model
    return model(reader, table, architecture=architecture, sections=SECTIONS, more=more)


def _deepstack_layers(reader: ConfigReader, checkpoint: Checkpoint) -> Value:
    """Number of first layers after which image features are added; text has none."""
    vision = ConfigReader(checkpoint.config, reader.where).section("vision_config")
    layers = vision.config.get("deepstack_visual_indexes", DEEPSTACK) if vision is not None else DEEPSTACK
    if not isinstance(layers, (list, tuple)):
        raise reader.fail("vision_config.deepstack_visual_indexes", f"is {str(layers)[:80]}, expected a list")
    return u32(len(layers))
