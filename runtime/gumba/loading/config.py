"""The configuration of a model: ``Config``, and readers of the metadata keys that several architectures share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from gumba.backends.cache_shapes import KVShape, StateShape
from gumba.gguf import GGUFArray, GGUFFile
from gumba.loading.metadata import MetadataReader
from gumba.loading.rope import Rope, read_rope
from gumba.loading.weight_loader import MAX_LAYERS, MAX_WIDTH

#: GGUF's ``pooling_type``, by number. "rank": a classification head scores the text.
POOLINGS = ("none", "mean", "first", "last", "rank")


C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """Sizes and constants of a model, from metadata ``NAME.*``. Architectures with more of them extend it:

    ``ScaledConfig(**vars(config), residual_scale=...)``.
    """

    architecture: str
    n_vocab: int
    n_ctx_train: int
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    #: Sliding window: a token attends to this many tokens, itself included; 0: to all. In the layers that ``windowed`` names, or
    #: in all if it names none.
    window: int = field(default=0, kw_only=True)
    windowed: tuple[bool, ...] = field(default=(), kw_only=True)
    #: Mixture of experts: their number, 0 without; experts per token; and an expert's width.
    n_experts: int = field(default=0, kw_only=True)
    n_used: int = field(default=0, kw_only=True)
    n_ff_expert: int = field(default=0, kw_only=True)
    #: How the model was trained to pool hidden states, one of ``POOLINGS``; "" if the file does not say.
    pooling: str = field(default="", kw_only=True)
    #: Number of classifier outputs, 0 for a language model; and their names, if the file has any.
    n_labels: int = field(default=0, kw_only=True)
    labels: tuple[str, ...] = field(default=(), kw_only=True)
    #: The token that an encoder-decoder's output begins with; None for a model that continues its prompt.
    start_token: int | None = field(default=None, kw_only=True)

    #: Whether attention is causal: a token attends only to itself and those before it.
    causal = True
    #: Number of token types (first and second text of a pair).
    n_types = 1

    @property
    def max_ctx(self) -> int:
        """The largest context size that may be requested."""
        return self.n_ctx_train

    @property
    def n_q(self) -> int:
        """Width of the queries of all heads."""
        return self.n_heads * self.head_dim

    @property
    def n_kv(self) -> int:
        """Width of the keys of all KV heads."""
        return self.n_kv_heads * self.head_dim

    def window_of(self, i: int) -> int:
        """The sliding window of layer ``i``; 0: none."""
        return self.window if not self.windowed or self.windowed[i] else 0

    @property
    def kv_shapes(self) -> list[KVShape]:
        """What each layer keeps of a token in the KV cache."""
        return [KVShape(self.n_kv_heads, self.head_dim, self.head_dim, self.window_of(i)) for i in range(self.n_layers)]

    @property
    def state_parts(self) -> list[tuple[StateShape, ...]]:
        """The parts of each layer's recurrent state; none for a layer, or a model, without."""
        return []


@dataclass(frozen=True)
class EncoderConfig(Config):
    """``n_types``: number of token types."""

    n_types: int = field(kw_only=True)

    causal = False


#: Largest number of experts, and of experts per token.
MAX_EXPERTS, MAX_USED_EXPERTS = 1024, 64
#: Largest window.
MAX_WINDOW = 1 << 30
#: Keys of features that not every architecture has, and the values with which they have no effect.
INERT_KEYS: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}
#: The same for encoders, whose attention is bidirectional.
ENCODER_INERT_KEYS: dict[str, tuple[object, ...]] = INERT_KEYS | {"attention.causal": (False,)}
#: Keys for image tokens: how many rotary pairs each of their coordinates rotates (of a text token all coordinates are equal), and
#: after how many layers image features are added.
MULTIMODAL_KEYS = ("rope.dimension_sections", "n_deepstack_layers")
#: The keys of INERT_KEYS that a mixture of experts reads.
EXPERT_KEYS = ("expert_count", "expert_used_count")


@contextmanager
def read_metadata(
    gguf: GGUFFile,
    name: str,
    *own: str,
    inert: Mapping[str, tuple[object, ...]] = INERT_KEYS,
    multimodal: bool = False,
) -> Iterator[MetadataReader]:
    """The metadata of architecture ``name``. A key that is neither read nor without effect refuses the file at the end.

    The keys of ``inert``, but for the architecture's ``own``, must have values that change nothing. ``multimodal``: files may
    have keys for image tokens, which do not concern text. Raises UnsupportedError for what this version does not compute.
    """
    metadata = MetadataReader(gguf, name)
    metadata.must_be({key: values for key, values in inert.items() if key not in own})
    for key in MULTIMODAL_KEYS if multimodal else ():
        metadata.has(key)
    yield metadata
    metadata.finish()


def read_plain_config(gguf: GGUFFile, name: str, *, neox: bool, norm: str = "layer_norm_rms_epsilon") -> Config:
    """The configuration of an architecture without metadata keys of its own; arguments as in ``read_common``."""
    with read_metadata(gguf, name) as metadata:
        return read_common(metadata, neox=neox, norm=norm)


def read_plain_encoder(gguf: GGUFFile, name: str, *, neox: bool) -> EncoderConfig:
    """The configuration of an encoder without metadata keys of its own; ``neox``: see ``Rope``."""
    with read_metadata(gguf, name, inert=ENCODER_INERT_KEYS) as metadata:
        return read_encoder(metadata, read_common(metadata, neox=neox, norm="layer_norm_epsilon"))


def read_encoder(metadata: MetadataReader, common: Config) -> EncoderConfig:
    """``common`` with what encoders have besides: the number of token types."""
    tensor = metadata.gguf.tensors.get("token_types.weight")
    n_types = int(tensor.shape[0]) if tensor is not None and len(tensor.shape) == 2 else 1
    return EncoderConfig(**vars(common), n_types=n_types)


def read_common(
    metadata: MetadataReader,
    *,
    neox: bool,
    norm: str = "layer_norm_rms_epsilon",
    freq_base: float = 10000.0,
    own_values: bool = False,
    n_kv_heads: int | None = None,
    n_ff: int | None = None,
) -> Config:
    """The configuration that every architecture has.

    ``norm``: the key of the norms' epsilon; ``neox``: see ``Rope``; ``freq_base``: if the file has none; ``own_values``: values
    may have another size than keys; ``n_kv_heads``: None if the file has one number for all layers; ``n_ff``: for a file that has
    none, or one per layer (None: one number is required).
    """
    n_embd = metadata.count("embedding_length", MAX_WIDTH)
    n_heads = metadata.count("attention.head_count", MAX_WIDTH)
    if n_kv_heads is None:
        n_kv_heads = metadata.count("attention.head_count_kv", MAX_WIDTH, n_heads)
    if n_heads % n_kv_heads:
        raise metadata.error("attention.head_count", f"{n_heads} is not a multiple of head_count_kv {n_kv_heads}")
    if not metadata.has("attention.key_length") and n_embd % n_heads:
        raise metadata.error("embedding_length", f"{n_embd} is not a multiple of attention.head_count {n_heads}")
    head_dim = metadata.count("attention.key_length", 4096, max(1, n_embd // n_heads))
    value_dim = metadata.count("attention.value_length", 4096, head_dim)
    if value_dim != head_dim and not own_values:
        raise metadata.unsupported("attention.value_length", f"{value_dim} differs from key_length {head_dim}")
    n_ctx_train = metadata.count("context_length", 1 << 30)
    pooled, key = metadata.has("pooling_type"), "feed_forward_length"
    n_labels, labels = read_labels(metadata)
    return Config(
        architecture=metadata.name,
        pooling=POOLINGS[metadata.size("pooling_type", len(POOLINGS) - 1)] if pooled else "",
        n_labels=n_labels,
        labels=labels,
        n_vocab=metadata.vocabulary_size(),
        n_ctx_train=n_ctx_train,
        n_layers=metadata.count("block_count", MAX_LAYERS),
        n_embd=n_embd,
        n_ff=n_ff if n_ff and metadata.is_array(key) else metadata.count(key, MAX_WIDTH, n_ff),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=metadata.number(f"attention.{norm}", minimum=1e-30, maximum=1.0),
        rope=read_rope(metadata, head_dim, n_ctx_train, neox=neox, freq_base=freq_base),
    )


def read_labels(metadata: MetadataReader) -> tuple[int, tuple[str, ...]]:
    """Number of labels of the classifier head, and their names if the file has them; 0 and none without a head."""
    n_labels = 0
    for name in ("cls.output.weight", "cls.weight"):
        tensor = metadata.gguf.tensors.get(name)
        if tensor is not None:
            n_labels = tensor.shape[0]
            break
    key = "classifier.output_labels"
    labels: tuple[str, ...] = ()
    if metadata.has(key):
        value = metadata.gguf.metadata[f"{metadata.name}.{key}"]
        values = value.to_list() if isinstance(value, GGUFArray) else [value]
        labels = tuple(label for label in values if isinstance(label, str))
        if len(values) != n_labels or len(labels) != n_labels:
            raise metadata.error(key, f"expected the names of the head's {n_labels} labels")
    return n_labels, labels


def read_expert_counts(metadata: MetadataReader) -> tuple[int, int]:
    """Experts of a layer, and experts per token; 0 and 0 without."""
    n_experts = metadata.size("expert_count", MAX_EXPERTS)
    n_used = metadata.size("expert_used_count", min(MAX_USED_EXPERTS, n_experts) if n_experts else MAX_USED_EXPERTS)
    if n_experts and not n_used:
        raise metadata.error("expert_used_count", f"is 0, expected 1 to {n_experts}")
    return (n_experts, n_used) if n_experts else (0, 0)


def read_experts(metadata: MetadataReader, common: C, *, split: bool = False) -> C:
    """``common`` with the experts that the file must have. If it has no width of an expert, that is the width of a layer.

    ``split``: the width of a layer, divided by the number of experts per token.
    """
    n_experts, n_used = read_expert_counts(metadata)
    if not n_experts:
        raise metadata.error("expert_count", "is 0, expected at least 1")
    default = common.n_ff // n_used or 1 if split else common.n_ff
    n_ff_expert = metadata.count("expert_feed_forward_length", MAX_WIDTH, default)
    return replace(common, n_experts=n_experts, n_used=n_used, n_ff_expert=n_ff_expert)


def read_single_window(metadata: MetadataReader, common: C) -> C:
    """``common`` with one sliding window for all layers, if the file has a window smaller than the context."""
    window = metadata.size("attention.sliding_window", MAX_WINDOW)
    return replace(common, window=window if window < common.n_ctx_train else 0)


def read_windows(
    metadata: MetadataReader, common: C, period: int, *, default: int | None = None, first: bool = False
) -> C:
    """``common`` with a sliding window in some layers; ``period`` and ``first`` as in ``windowed_layers``.

    ``default``: the window if the file has none (None: it must have one; 0: no window).
    """
    key = "attention.sliding_window"
    window = metadata.size(key, MAX_WINDOW) if default == 0 else metadata.count(key, MAX_WINDOW, default)
    windowed = windowed_layers(metadata, common.n_layers, period, first=first)
    return replace(common, window=window, windowed=windowed)


def read_windowed_config(gguf: GGUFFile, name: str, period: int, *, neox: bool) -> Config:
    """The configuration of an architecture whose only keys of its own are windows, in all but the last of ``period`` layers."""
    with read_metadata(gguf, name, "attention.sliding_window") as metadata:
        return read_windows(metadata, read_common(metadata, neox=neox), period, default=0)


def windowed_layers(metadata: MetadataReader, n_layers: int, period: int, *, first: bool = False) -> tuple[bool, ...]:
    """Which layers have a sliding window: all but the last (``first``: the first) of each ``period`` layers.

    The file may say so for each layer, or give another period.
    """
    key = "attention.sliding_window_pattern"
    if metadata.is_array(key):
        return metadata.flags(key, n_layers) or ()
    period = metadata.count(key, MAX_LAYERS, period)
    return tuple((i if first else i + 1) % period != 0 for i in range(n_layers))
