"""StableLM: LayerNorm and partial RoPE; the 12B models normalize each head and have no norm before the feed-forward."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import boolean

ARCHITECTURE = "stablelm"
HF_ARCHITECTURES = ("StableLmForCausalLM", "StableLMEpochForCausalLM")
MODEL_TYPES = ("stablelm", "stablelm_epoch")

DEFAULTS: decoder.Defaults = {"n_ctx": 4096, "norm_eps": 1e-5}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a StableLM checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    names = Names(norm_eps="norm_eps" if reader.has("norm_eps") else "layer_norm_eps")
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=names, partial=reader.number("rope_pct", 0.25))
    reader.must_be("tie_word_embeddings", False)
    parallel, heads = reader.flag("use_parallel_residual", False), reader.flag("qk_layernorm", False)
    bias = reader.flag("use_qkv_bias", False)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    values["stablelm.use_parallel_residual"] = boolean(parallel)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd, bias=True)
        decoder.attention(layer, d, bias=bias)
        if heads:
            for side, count in (("q", d.n_heads), ("k", d.n_kv_heads)):
                parts = [f"self_attn.{side}_layernorm.norms.{i}.weight" for i in range(count)]
                layer.tensor(f"attn_{side}_norm.weight", parts, (d.head_dim,))
        if not parallel:
            layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd, bias=True)
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd, bias=True)
    return decoder.finish(ARCHITECTURE, d, values, table, None)
