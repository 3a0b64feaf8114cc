"""Shared by decoder families: reading sizes from config.json, GGUF metadata, common tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.plan import Plan
from gumba_convert.common.pooling import RANK, classifier_metadata, labels
from gumba_convert.common.rope import KINDS, Rope, read_rope, rope_metadata
from gumba_convert.common.sentence_transformers import read_embedder
from gumba_convert.common.table import Change, Layer, TensorTable
from gumba_convert.gguf_writer import BOOL, Value, f32, i32_array, u32

MAX_LAYERS = 4096
RMS_EPS = "attention.layer_norm_rms_epsilon"
LAYER_EPS = "attention.layer_norm_epsilon"
#: The architecture whose files may have projections after the pooling.
PROJECTED = "gemma-embedding"


@dataclass(frozen=True)
class Names:
    """The keys of sizes in config.json; GPT-2-like models have their own."""

    n_layers: str = "num_hidden_layers"
    n_embd: str = "hidden_size"
    n_ff: str = "intermediate_size"
    n_heads: str = "num_attention_heads"
    n_kv_heads: str = "num_key_value_heads"
    n_ctx: str = "max_position_embeddings"
    norm_eps: str = "rms_norm_eps"
    activation: str = "hidden_act"


class Defaults(TypedDict, total=False):
    """transformers' defaults of a family, for keys that its configurations may omit."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_ctx: int
    norm_eps: float
    head_dim: int
    tied: bool
    vocab_size: int


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder, checked for consistency. `rope` is None without RoPE."""

    reader: ConfigReader
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    has_head_dim: bool
    n_vocab: int
    n_ctx: int
    norm_eps: float
    tied: bool
    rope: Rope | None

    @property
    def n_q(self) -> int:
        """Width of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def n_kv(self) -> int:
        """Width of all heads of K, or of V."""
        return self.n_kv_heads * self.head_dim

    @property
    def n_rotated(self) -> int:
        """Number of values of a head that RoPE rotates."""
        return int(self.head_dim * self.rope.partial) if self.rope is not None else 0


def text_config(checkpoint: Checkpoint) -> ConfigReader:
    """config.json, or its `text_config` in a multimodal model, with `tie_word_embeddings` of the whole."""
    whole = ConfigReader(checkpoint.config, f"{checkpoint.folder / 'config.json'}")
    whole.require_full_weights()
    reader = whole.section("text_config") or whole
    if whole.has("tie_word_embeddings"):
        reader.config = reader.config | {"tie_word_embeddings": whole.config["tie_word_embeddings"]}
    return reader


def read_decoder(
    reader: ConfigReader,
    *,
    defaults: Defaults | None = None,
    names: Names | None = None,
    activations: tuple[str, ...] = ("silu", "swish"),
    theta: float | None = 10000.0,
    partial: float | None = None,
) -> Decoder:
    """The sizes of a decoder.

    Args:
        defaults: transformers' defaults of this family, by the fields of `Names`, and `head_dim`, `tied`, `vocab_size`.
            A size without a default is required.
        activations: allowed activations of the feed-forward.
        theta: default base frequency; None: no RoPE.
        partial: default of `partial_rotary_factor`; None: only 1 is allowed.

    Raises:
        ConvertError: a key is missing, wrong or not supported.
    """
    keys = names or Names()
    default: Defaults = defaults or {}
    reader.require_full_weights()
    reader.must_be(keys.activation, *activations)
    n_embd = reader.integer(keys.n_embd, default.get("n_embd"))
    n_heads = reader.integer(keys.n_heads, default.get("n_heads"))
    head_dim = default.get("head_dim")
    if not reader.has("head_dim") and head_dim is None and n_embd % n_heads:
        raise reader.fail(keys.n_heads, f"is {n_heads}, which does not divide {keys.n_embd} {n_embd}")
    has_head_dim = reader.has("head_dim") or head_dim is not None
    head_dim = reader.integer("head_dim", head_dim or n_embd // n_heads)
    n_kv_heads = reader.integer(keys.n_kv_heads, default.get("n_kv_heads", n_heads))
    if n_heads % n_kv_heads:
        raise reader.fail(keys.n_kv_heads, f"is {n_kv_heads}, which does not divide the {n_heads} heads")
    n_layers = reader.integer(keys.n_layers, default.get("n_layers"))
    if n_layers > MAX_LAYERS:
        raise reader.fail(keys.n_layers, f"is {n_layers}; at most {MAX_LAYERS} are supported")
    rope = None if theta is None else _read_decoder_rope(reader, head_dim, theta, partial)
    return Decoder(
        reader=reader,
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=reader.integer(keys.n_ff, default.get("n_ff")),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        has_head_dim=has_head_dim,
        n_vocab=reader.integer("vocab_size", default.get("vocab_size")),
        n_ctx=reader.integer(keys.n_ctx, default.get("n_ctx", 2048)),
        norm_eps=reader.number(keys.norm_eps, default.get("norm_eps", 1e-6)),
        tied=reader.flag("tie_word_embeddings", default.get("tied", False)),
        rope=rope,
    )


def _read_decoder_rope(reader: ConfigReader, head_dim: int, theta: float, partial: float | None) -> Rope:
    """The RoPE settings, checked against the head's size; `theta` and `partial` as of `read_decoder`."""
    rope = read_rope(reader, theta=theta, partial=1.0 if partial is None else partial)
    if partial is None and rope.partial != 1:
        raise reader.fail("partial_rotary_factor", f"is {rope.partial}; only 1 is supported")
    if int(head_dim * rope.partial) % 2:
        raise reader.fail(
            "head_dim", f"is {head_dim}, of which {rope.partial:g} are rotated; RoPE needs an even number"
        )
    return rope


def metadata(
    architecture: str,
    d: Decoder,
    *,
    eps: str = RMS_EPS,
    kinds: tuple[str, ...] = KINDS,
    log_multiplier: bool = False,
    truncates: bool = True,
) -> tuple[dict[str, Value], np.ndarray | None]:
    """The metadata of every decoder, and llama3's frequency factors if the model has them.

    Args:
        eps: the key of the norms' epsilon, without the architecture.
        kinds, log_multiplier, truncates: see `rope_metadata`.
    """
    result = {
        "block_count": u32(d.n_layers),
        "context_length": u32(d.n_ctx),
        "embedding_length": u32(d.n_embd),
        "feed_forward_length": u32(d.n_ff),
        "attention.head_count": u32(d.n_heads),
        "attention.head_count_kv": u32(d.n_kv_heads),
        eps: f32(d.norm_eps),
        "vocab_size": u32(d.n_vocab),
    }
    if d.has_head_dim:
        result |= {"attention.key_length": u32(d.head_dim), "attention.value_length": u32(d.head_dim)}
    full = {f"{architecture}.{key}": value for key, value in result.items()}
    if d.rope is None:
        return full, None
    rope, factors = rope_metadata(
        d.rope,
        architecture,
        d.n_rotated,
        d.n_ctx,
        kinds=kinds,
        log_multiplier=log_multiplier,
        truncates=truncates,
    )
    return full | rope, factors


def booleans(values: list[bool]) -> Value:
    """A metadata array of booleans."""
    return Value(i32_array([]).type, values, BOOL)


def sliding_layers(reader: ConfigReader, n_layers: int, default: list[bool]) -> list[bool]:
    """Layers with sliding-window attention, from `layer_types`; `default` without that key.

    Raises:
        ConvertError: another length, or other types than full and sliding attention.
    """
    types = reader.config.get("layer_types")
    if types is None:
        return default
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != n_layers or any(kind not in known for kind in types):
        raise reader.fail(
            "layer_types", f"is {str(types)[:100]}; expected {n_layers} of full_attention and sliding_attention"
        )
    return [kind == "sliding_attention" for kind in types]


def every(n_layers: int, period: int) -> list[bool]:
    """Windows in all layers except every `period`-th."""
    return [bool((i + 1) % period) for i in range(n_layers)]


def no_window(d: Decoder) -> None:
    """Refuse a sliding window smaller than the context, and layers of other types than full attention."""
    window = d.reader.config.get("sliding_window")
    if window is not None and (type(window) is not int or window < d.n_ctx):
        raise d.reader.fail(
            "sliding_window",
            f"is {window!r}, smaller than {d.n_ctx} tokens of context: this family's models have no sliding attention",
        )
    full_only(d)


def full_only(d: Decoder) -> None:
    """Refuse layers of other types than full attention."""
    if any(sliding_layers(d.reader, d.n_layers, [])):
        raise d.reader.fail("layer_types", "has other types than full attention, which are not supported")


#: Prefixes of names in checkpoints of a base model without a head.
BARE = {name: f"model.{name}" for name in ("embed_tokens.", "layers.", "norm.")}
CLASSIFIER = "ForSequenceClassification"
#: Architectures whose output matrix is tied in llama.cpp, which refuses a separate one.
TIED_ELSEWHERE = ("gemma", "gemma2", "command-r", "cohere2")


def with_heads(*names: str) -> tuple[str, ...]:
    """transformers' classes of a family that also has embedding and classification models."""
    return tuple(f"{name}{head}" for name in names for head in ("ForCausalLM", "Model", CLASSIFIER))


def embedding_and_head(table: TensorTable, d: Decoder) -> None:
    """Token embedding, and the output matrix unless it is tied. An embedding model has none."""
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    embeds = architecture_name(table.checkpoint).endswith("Model") or table.checkpoint.has("modules.json")
    if embeds and (d.tied or not table.has(head)):
        table.ignore(head)
        tied = True
    else:
        tied = d.tied and table.ties(head, embedding)
    table.tensor("token_embd.weight", embedding, (d.n_vocab, d.n_embd))
    if not tied:
        table.tensor("output.weight", head, (d.n_vocab, d.n_embd))


def embedding_and_any_head(table: TensorTable, d: Decoder, architecture: str) -> dict[str, Value]:
    """Token embedding, and the head: the output matrix of a language model, or a classifier.

    Returns the metadata of a classifier, else an empty dict.
    """
    if not architecture_name(table.checkpoint).endswith(CLASSIFIER):
        embedding_and_head(table, d)
        return {}
    table.tensor("token_embd.weight", "model.embed_tokens.weight", (d.n_vocab, d.n_embd))
    classes = labels(d.reader)
    table.tensor("cls.output.weight", "score.weight", (len(classes), d.n_embd))
    return classifier_metadata(architecture, classes)


def architecture_name(checkpoint: Checkpoint) -> str:
    """transformers' class in `architectures` of config.json; "" without one."""
    names = checkpoint.config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def attention(
    layer: Layer,
    d: Decoder,
    *,
    bias: bool = False,
    output_bias: bool = False,
    rows: tuple[np.ndarray, np.ndarray] | None = None,
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    inner: str = "self_attn",
) -> None:
    """The four matrices of attention; `rows` reorders those of Q and K."""
    rows_q, rows_k = rows or (None, None)
    q, k, v, o = (f"{inner}.{name}" for name in names)
    layer.linear("attn_q", q, (d.n_q, d.n_embd), bias=bias, rows=rows_q)
    layer.linear("attn_k", k, (d.n_kv, d.n_embd), bias=bias, rows=rows_k)
    layer.linear("attn_v", v, (d.n_kv, d.n_embd), bias=bias)
    layer.linear("attn_output", o, (d.n_embd, d.n_q), bias=output_bias)


def gated_ffn(layer: Layer, d: Decoder, *, bias: bool = False, inner: str = "mlp") -> None:
    """A gated feed-forward's three matrices."""
    layer.linear("ffn_gate", f"{inner}.gate_proj", (d.n_ff, d.n_embd), bias=bias)
    layer.linear("ffn_up", f"{inner}.up_proj", (d.n_ff, d.n_embd), bias=bias)
    layer.linear("ffn_down", f"{inner}.down_proj", (d.n_embd, d.n_ff), bias=bias)


def head_norms(layer: Layer, d: Decoder, *, change: Change | None = None) -> None:
    """RMS norms of each head of Q and K."""
    layer.norm("attn_q_norm", "self_attn.q_norm", d.head_dim, change=change)
    layer.norm("attn_k_norm", "self_attn.k_norm", d.head_dim, change=change)


def finish(
    architecture: str, d: Decoder, values: dict[str, Value], table: TensorTable, factors: np.ndarray | None
) -> Plan:
    """The plan of a family, with llama3's factors as last tensor, and the metadata of sentence-transformers' files."""
    if f"{architecture}.attention.causal" not in values:
        d.reader.must_be("is_causal", True)  # transformers 5 allows bidirectional attention in any decoder
    if factors is not None:
        table.computed("rope_freqs.weight", factors)
    pooled = values.get(f"{architecture}.pooling_type")
    embedder = read_embedder(
        table.checkpoint,
        architecture,
        d.n_ctx,
        has_classifier=pooled is not None and pooled.value == RANK,
        projected=architecture == PROJECTED,
    )
    values = values | embedder.values
    sources = table.sources()
    own_output = any(source.name == "output.weight" for source in sources)
    if d.tied and own_output and architecture in TIED_ELSEWHERE:
        table.warnings.append(f"llama.cpp does not load {architecture} files with an output matrix of their own")
    return Plan(architecture, values, sources, d.n_vocab, [*table.warnings, *embedder.warnings])
