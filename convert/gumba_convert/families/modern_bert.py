"""ModernBERT: an encoder with RoPE, gated feed-forward, and a symmetric window in two layers of three."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.pooling import MODES, classifier_metadata, labels
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import boolean, f32, string, u32

ARCHITECTURE = "modern-bert"
HF_ARCHITECTURES = ("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification")
MODEL_TYPES = ("modernbert",)

NAMES = Names(norm_eps="norm_eps", activation="hidden_activation", n_kv_heads="num_attention_heads")
DEFAULTS: decoder.Defaults = {"n_ctx": 8192, "norm_eps": 1e-5, "tied": True}
PERIOD = 3


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a ModernBERT checkpoint; the masked-language-model head is omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    full, local = _thetas(reader)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu", "silu"), theta=full)
    for key in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
        reader.must_be(key, False)
    reader.must_be("classifier_activation", "gelu")
    period = reader.integer("global_attn_every_n_layers", PERIOD)
    usual = [bool(i % period) for i in range(d.n_layers)]
    if decoder.sliding_layers(reader, d.n_layers, usual) != usual:
        raise reader.fail("layer_types", f"must have one global layer in {period}, beginning with the first")
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    values |= {
        "modern-bert.attention.causal": boolean(False),
        "modern-bert.attention.sliding_window": u32(reader.integer("local_attention", 128)),
        "modern-bert.attention.sliding_window_pattern": u32(period),
        "modern-bert.rope.freq_base_swa": f32(local),
        "modern-bert.hidden_activation": string(str(reader.config.get("hidden_activation") or "gelu")),
    }
    classifies = checkpoint.config.get("architectures") == ["ModernBertForSequenceClassification"]
    head = r"(?!)" if classifies else r"head\..*|decoder\..*"
    table = TensorTable(checkpoint, prefixes={"model.": ""}, ignored=head)
    table.tensor("token_embd.weight", "embeddings.tok_embeddings.weight", (d.n_vocab, d.n_embd))
    table.norm("token_embd_norm", "embeddings.norm", d.n_embd)
    for layer in table.layers(d.n_layers, "layers"):
        if layer.index:  # the embedding's norm serves the first layer
            layer.norm("attn_norm", "attn_norm", d.n_embd)
        layer.linear("attn_qkv", "attn.Wqkv", (3 * d.n_embd, d.n_embd))
        layer.linear("attn_output", "attn.Wo", (d.n_embd, d.n_embd))
        layer.norm("ffn_norm", "mlp_norm", d.n_embd)
        layer.linear("ffn_up", "mlp.Wi", (2 * d.n_ff, d.n_embd))
        layer.linear("ffn_down", "mlp.Wo", (d.n_embd, d.n_ff))
    table.norm("output_norm", "final_norm", d.n_embd)
    if classifies:
        names = labels(reader)
        mode = reader.config.get("classifier_pooling", "cls")
        if mode not in ("cls", "mean"):
            raise reader.fail("classifier_pooling", f"is {mode!r}; only cls and mean are supported")
        values |= classifier_metadata(ARCHITECTURE, names)
        values["modern-bert.classifier.pooling_type"] = u32(MODES[mode])
        table.linear("cls", "head.dense", (d.n_embd, d.n_embd))
        table.norm("cls.norm", "head.norm", d.n_embd)
        table.linear("cls.output", "classifier", (len(names), d.n_embd), bias=True)
    return decoder.finish(ARCHITECTURE, d, values, table, None)


def _thetas(reader: ConfigReader) -> tuple[float, float]:
    """Base frequencies of layers without and with a window."""
    settings = reader.section("rope_parameters")
    if settings is None:
        return reader.number("global_rope_theta", 160000.0), reader.number("local_rope_theta", 10000.0)
    full, local = settings.section("full_attention"), settings.section("sliding_attention")
    for section in (full, local):
        if section is not None:
            section.must_be("rope_type", "default")
    return (
        full.number("rope_theta", 160000.0) if full is not None else 160000.0,
        local.number("rope_theta", 10000.0) if local is not None else 10000.0,
    )
