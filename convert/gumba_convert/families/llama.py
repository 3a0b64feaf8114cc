"""Llama and Mistral checkpoints as GGUF architecture `llama`.

Hugging Face stores the rows of each Q and K head as two halves (x of all pairs, then y of all pairs, as RoPE rotates
halves there); GGUF's llama has interleaved pairs.
"""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.common.transforms import pairs
from gumba_convert.gguf_writer import u32

ARCHITECTURE = "llama"
HF_ARCHITECTURES = decoder.with_heads("Llama", "Mistral")
MODEL_TYPES = ("llama", "mistral")

MISTRAL: decoder.Defaults = {"n_kv_heads": 8, "n_ctx": 131072}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Llama or Mistral checkpoint.

    Raises:
        ConvertError: an unsupported configuration; missing, unexpected or mis-shaped tensors, all in one message.
    """
    reader = decoder.text_config(checkpoint)
    mistral = (
        decoder.architecture_name(checkpoint).startswith("Mistral") or reader.config.get("model_type") == "mistral"
    )
    d = decoder.read_decoder(reader, defaults=MISTRAL if mistral else None)
    values, factors = decoder.metadata(ARCHITECTURE, d)
    if mistral:
        window = read_window(reader, d, 4096)
        if window:
            values["llama.attention.sliding_window"] = u32(window)
    else:
        decoder.no_window(d)
    attention_bias, mlp_bias = reader.flag("attention_bias", False), reader.flag("mlp_bias", False)
    table = TensorTable(checkpoint, prefixes=decoder.BARE)
    values |= decoder.embedding_and_any_head(table, d, ARCHITECTURE)
    for layer in table.layers(d.n_layers):
        llama_attention(layer, d, bias=attention_bias)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d, bias=mlp_bias)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def llama_attention(layer: Layer, d: Decoder, *, bias: bool = False) -> None:
    """A layer's first norm and its attention, with the rows of Q and K in GGUF's order."""
    layer.norm("attn_norm", "input_layernorm", d.n_embd)
    rows = (pairs(d.n_heads, d.head_dim), pairs(d.n_kv_heads, d.head_dim))
    decoder.attention(layer, d, bias=bias, output_bias=bias, rows=rows)


def read_window(reader: ConfigReader, d: Decoder, default: int | None) -> int:
    """The sliding window of all layers; 0 without one that is smaller than the context."""
    decoder.full_only(d)
    window = reader.config.get("sliding_window", default)
    if window is None:
        return 0
    window = reader.integer("sliding_window", default)
    return window if window < d.n_ctx else 0
