"""Tensor tables of decoders: functions that add the tensors that most architectures have."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import Config
from gumba.loading.tensor_table import TensorTable

#: Norms of a layer: before attention and the feed-forward network, after them, or both.
PRE_NORMS = ("attn_norm", "ffn_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
PRE_POST_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


def decoder_table(
    gguf: GGUFFile,
    c: Config,
    *,
    norms: tuple[str, ...] = PRE_NORMS,
    norm_bias: bool = False,
    head_norms: bool = False,
    feed_forward: str = "gated",
    classifier_head: bool = False,
) -> TensorTable:
    """The tensors of a decoder like llama's.

    ``norms``: of each layer; ``norm_bias``: they and the last norm have biases; ``head_norms``: see ``add_qk_norms``;
    ``feed_forward``: "gated", "fused" (gate and up in one tensor), "plain" (without a gate), or "none"; ``classifier_head``: see
    ``add_embeddings``.
    """
    t = TensorTable(gguf, c.n_layers)
    add_embeddings(t, c, norm_bias=norm_bias, classifier_head=classifier_head)
    for i in range(c.n_layers):
        add_norms(t, c, i, *norms, bias=norm_bias)
        add_attention(t, c, i)
        if head_norms:
            add_qk_norms(t, c, i)
        if feed_forward != "none":
            add_feed_forward(t, c, i, gate=feed_forward != "plain", fused=feed_forward == "fused")
    return t


def add_embeddings(
    t: TensorTable,
    c: Config,
    *,
    norm: str = "output_norm",
    norm_bias: bool = False,
    output_bias: bool = False,
    classifier_head: bool = False,
) -> None:
    """Token embedding, last norm (``norm``: its name), output matrix (tied to the embedding if absent), frequency factors.

    ``classifier_head``: whether a file may have a classification head instead of an output matrix.
    """
    t.add("token_embd", "token_embd.weight", c.n_vocab, c.n_embd)
    t.add("output_norm", f"{norm}.weight", c.n_embd)
    t.add("output", "output.weight", c.n_vocab, c.n_embd, required=False)
    t.add("rope_freqs", "rope_freqs.weight", c.rope.dim // 2, required=False)
    if norm_bias:
        t.add("output_norm_bias", "output_norm.bias", c.n_embd)
    if output_bias:
        t.add("output_bias", "output.bias", c.n_vocab, required=False)
    if classifier_head and c.n_labels:
        t.add("cls_output", "cls.output.weight", c.n_labels, c.n_embd)
        t.add("cls_output_bias", "cls.output.bias", c.n_labels, required=False)


def add_norms(t: TensorTable, c: Config, i: int, *names: str, bias: bool = False) -> None:
    """Norms over the hidden size, of layer ``i``; ``bias``: LayerNorms with a bias."""
    for name in names:
        t.add(name, f"{name}.weight", c.n_embd, layer=i)
        if bias:
            t.add(f"{name}_bias", f"{name}.bias", c.n_embd, layer=i)


def add_attention(t: TensorTable, c: Config, i: int) -> None:
    """The attention of layer ``i``: Q, K and V in three tensors or in one, and the output; with or without biases."""
    parts = {"attn_q": c.n_q, "attn_k": c.n_kv, "attn_v": c.n_kv}
    if t.has(f"blk.{i}.attn_qkv.weight"):
        t.split("attn_qkv.weight", parts, c.n_embd, layer=i)
        t.split("attn_qkv.bias", {f"{name}_bias": rows for name, rows in parts.items()}, layer=i, required=False)
    else:
        _add_products(t, parts, c.n_embd, i)
    _add_products(t, {"attn_output": c.n_embd}, c.n_q, i)


def _add_products(t: TensorTable, rows: dict[str, int], columns: int, i: int) -> None:
    """Matrices of layer ``i`` with ``columns`` columns, each with or without a bias."""
    for name, n_rows in rows.items():
        t.add(name, f"{name}.weight", n_rows, columns, layer=i)
    _add_biases(t, rows, i)


def _add_biases(t: TensorTable, rows: dict[str, int], i: int) -> None:
    for name, n_rows in rows.items():
        t.add(f"{name}_bias", f"{name}.bias", n_rows, layer=i, required=False)


def add_qk_norms(t: TensorTable, c: Config, i: int) -> None:
    """RMS norms of queries and keys in layer ``i``, with the same weights for all heads (QK norm)."""
    t.add("attn_q_norm", "attn_q_norm.weight", c.head_dim, layer=i)
    t.add("attn_k_norm", "attn_k_norm.weight", c.head_dim, layer=i)


def add_qk_layer_norms(t: TensorTable, c: Config, i: int) -> None:
    """LayerNorms of queries and keys in layer ``i``, with weights per head; absent in some files."""
    t.add("attn_q_norm", "attn_q_norm.weight", c.n_heads, c.head_dim, layer=i, required=False)
    t.add("attn_k_norm", "attn_k_norm.weight", c.n_kv_heads, c.head_dim, layer=i, required=False)


def add_feed_forward(
    t: TensorTable, c: Config, i: int, *, gate: bool = True, fused: bool = False, n_ff: int | None = None
) -> None:
    """The feed-forward network of layer ``i``; ``fused``: gate and up in one tensor, in this order; ``n_ff``: its own width."""
    n_ff = n_ff or c.n_ff
    parts = {"ffn_gate": n_ff, "ffn_up": n_ff} if gate else {"ffn_up": n_ff}
    if fused:
        t.split("ffn_up.weight", parts, c.n_embd, layer=i)
        _add_biases(t, parts, i)
    else:
        _add_products(t, parts, c.n_embd, i)
    _add_products(t, {"ffn_down": c.n_embd}, n_ff, i)


def add_experts(
    t: TensorTable, c: Config, i: int, n_experts: int, n_ff: int, *, n_shared: int = 0, bias: bool = False
) -> None:
    """The router and the experts of layer ``i``, each of width ``n_ff``.

    ``n_shared``: width of the shared expert, 0 without; ``bias``: router and experts have biases.
    """
    t.add("ffn_gate_inp", "ffn_gate_inp.weight", n_experts, c.n_embd, layer=i)
    if bias:
        t.add("ffn_gate_inp_bias", "ffn_gate_inp.bias", n_experts, layer=i)
    for name, rows, columns in (("ffn_gate", n_ff, c.n_embd), ("ffn_up", n_ff, c.n_embd), ("ffn_down", c.n_embd, n_ff)):
        t.add(f"{name}_exps", f"{name}_exps.weight", n_experts, rows, columns, layer=i)
        if bias:
            t.add_expert_bias(f"{name}_exps", f"{name}_exps.bias", n_experts, rows, layer=i)
    if n_shared:
        t.add("ffn_gate_shexp", "ffn_gate_shexp.weight", n_shared, c.n_embd, layer=i)
        t.add("ffn_up_shexp", "ffn_up_shexp.weight", n_shared, c.n_embd, layer=i)
        t.add("ffn_down_shexp", "ffn_down_shexp.weight", c.n_embd, n_shared, layer=i)
