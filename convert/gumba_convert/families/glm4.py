"""GLM-4-0414: partial RoPE, norms before and after each block, gate and up in one matrix.

GLM's code rotates interleaved pairs, as GGUF's architecture does: rows keep their order.
"""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable

ARCHITECTURE = "glm4"
HF_ARCHITECTURES = ("Glm4ForCausalLM",)
MODEL_TYPES = ("glm4",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 2, "n_ctx": 131072, "head_dim": 128, "norm_eps": 1.5625e-7}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a GLM-4-0414 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, partial=0.5)
    bias = reader.flag("attention_bias", True)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default", "linear", "yarn"))
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=bias)
        layer.norm("post_attention_norm", "post_self_attn_layernorm", d.n_embd)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        layer.linear("ffn_up", "mlp.gate_up_proj", (2 * d.n_ff, d.n_embd))
        layer.linear("ffn_down", "mlp.down_proj", (d.n_embd, d.n_ff))
        layer.norm("post_ffw_norm", "post_mlp_layernorm", d.n_embd)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
