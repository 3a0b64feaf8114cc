"""What a file says of a decoder: sizes and constants that all have, and groups of keys that some share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from gumba.errors import ModelError, UnsupportedError
from gumba.gguf import GGUFArray, GGUFFile
from gumba.loading.metadata import MetadataReader
from gumba.loading.rope import Rope, read_rope
from gumba.loading.weight_loader import MAX_LAYERS, MAX_WIDTH

#: GGUF's ``pooling_type``, by number. "rank": a classification head scores the text.
POOLINGS = ("none", "mean", "first", "last", "rank")


C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """Sizes and constants, from metadata ``NAME.*``."""

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
    #: Which hidden states the model was trained to embed with, one of ``POOLINGS``; "" where the file says nothing.
    pooling: str = field(default="", kw_only=True)
    #: Numbers that a head gives in the place of logits, 0 without one; and their names, where the file has any.
    n_labels: int = field(default=0, kw_only=True)
    labels: tuple[str, ...] = field(default=(), kw_only=True)
    #: Of an encoder-decoder: the token that every answer begins with. None: the model continues what it reads.
    start_token: int | None = field(default=None, kw_only=True)

    #: Whether a token sees only those before it.
    causal = True
    #: Types of tokens that are told apart (the first and the second text of a pair).
    n_types = 1

    @property
    def n_ctx_most(self) -> int:
        """The longest context that can be asked for."""
        return self.n_ctx_train

    @property
    def n_q(self) -> int:
        """Width of all queries."""
        return self.n_heads * self.head_dim

    @property
    def n_kv(self) -> int:
        """Width of all keys."""
        return self.n_kv_heads * self.head_dim

    def extended(self, cls: type[C], **more: Any) -> C:
        """The same as a ``cls`` (a Config with more fields)."""
        return cls(**{each.name: getattr(self, each.name) for each in fields(Config)}, **more)


@dataclass(frozen=True)
class EncoderConfig(Config):
    """``n_types``: types of tokens told apart."""

    n_types: int = field(kw_only=True)

    causal = False


E = TypeVar("E", bound=EncoderConfig)


@dataclass(frozen=True)
class WindowedConfig(Config):
    """``window``: tokens that a token sees in the layers that are ``windowed``; 0: all."""

    window: int
    windowed: tuple[bool, ...]

    def window_of(self, i: int) -> int:
        """Tokens that a token sees in layer ``i``; 0: all."""
        return self.window if self.windowed[i] else 0


@dataclass(frozen=True)
class ExpertsConfig(Config):
    """``n_used``: experts that a token chooses; ``n_ff_expert``: width of each."""

    n_experts: int
    n_used: int
    n_ff_expert: int


#: Largest number of experts, and of those that a token chooses.
MAX_EXPERTS, MAX_CHOSEN = 1024, 64
#: Largest window.
MAX_WINDOW = 1 << 30
#: Keys with the only values that have no effect, for architectures without what they ask for.
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
#: Keys about a picture's tokens: how many rotary pairs turn by each of their coordinates (a text's tokens have one position in
#: all), and after how many layers something of the picture is added.
PICTURE_KEYS = ("rope.dimension_sections", "n_deepstack_layers")
#: Keys of WITHOUT that belong together.
EXPERT_KEYS = ("expert_count", "expert_used_count")


@contextmanager
def read_metadata(
    gguf: GGUFFile,
    name: str,
    *own: str,
    without: Mapping[str, tuple[object, ...]] = INERT_KEYS,
    pictures: bool = False,
) -> Iterator[MetadataReader]:
    """The metadata of architecture ``name``: every key is required, has a default, or must have the one value that is computed.

    Keys of ``without`` other than the architecture's ``own`` may not ask for anything; in the end no key may be unread.
    ``pictures``: there may be keys about a picture's tokens, which say nothing about those of a text.
    """
    keys = MetadataReader(gguf, name)
    keys.must_be({key: values for key, values in without.items() if key not in own})
    for key in PICTURE_KEYS if pictures else ():
        keys.has(key)
    yield keys
    keys.finish()


def read_plain_config(gguf: GGUFFile, name: str, *, neox: bool, norm: str = "layer_norm_rms_epsilon") -> Config:
    """An architecture that has nothing beside what all have; arguments as of ``read_common``."""
    with read_metadata(gguf, name) as keys:
        return read_common(keys, neox=neox, norm=norm)


def read_plain_encoder(gguf: GGUFFile, name: str, *, neox: bool) -> EncoderConfig:
    """The configuration of an encoder without keys of its own; ``neox``: see ``Rope``."""
    with read_metadata(gguf, name, without=ENCODER_INERT_KEYS) as keys:
        return read_encoder(keys, read_common(keys, neox=neox, norm="layer_norm_epsilon"), EncoderConfig)


def read_encoder(keys: MetadataReader, common: Config, kind: type[E], **more: Any) -> E:
    """What encoders say of themselves beside their sizes: ``common`` as a ``kind`` of EncoderConfig, with ``more`` fields."""
    tensor = keys.gguf.tensors.get("token_types.weight")
    n_types = int(tensor.shape[0]) if tensor is not None and len(tensor.shape) == 2 else 1
    return common.extended(kind, n_types=n_types, **more)


def read_common(
    keys: MetadataReader,
    *,
    neox: bool,
    norm: str = "layer_norm_rms_epsilon",
    freq_base: float = 10000.0,
    own_values: bool = False,
    n_kv_heads: int | None = None,
    n_ff: int | None = None,
) -> Config:
    """What all decoders say of themselves.

    ``norm``: the key of the norms' epsilon; ``neox``: see ``Rope``; ``own_values``: values may have another size than keys;
    ``n_kv_heads``: None for a number that is the same in all layers; ``n_ff``: where the file has none, or
    one for each layer (None: it must have one number).
    """
    path, name = keys.gguf.path, keys.name
    n_embd = keys.count("embedding_length", MAX_WIDTH)
    n_heads = keys.count("attention.head_count", MAX_WIDTH)
    if n_kv_heads is None:
        n_kv_heads = keys.count("attention.head_count_kv", MAX_WIDTH, n_heads)
    if n_heads % n_kv_heads:
        raise ModelError(
            f"{path}: metadata {name}.attention.head_count {n_heads} is no multiple of head_count_kv {n_kv_heads}"
        )
    if not keys.has("attention.key_length") and n_embd % n_heads:
        raise ModelError(
            f"{path}: metadata {name}.embedding_length {n_embd} is no multiple of attention.head_count {n_heads}"
        )
    head_dim = keys.count("attention.key_length", 4096, max(1, n_embd // n_heads))
    value_dim = keys.count("attention.value_length", 4096, head_dim)
    if value_dim != head_dim and not own_values:
        raise UnsupportedError(
            f"{path}: metadata {name}.attention.value_length {value_dim} differs from key_length {head_dim}"
        )
    n_ctx_train = keys.count("context_length", 1 << 30)
    pooled, key = keys.has("pooling_type"), "feed_forward_length"
    n_labels, labels = read_labels(keys)
    return Config(
        architecture=name,
        pooling=POOLINGS[keys.size("pooling_type", len(POOLINGS) - 1)] if pooled else "",
        n_labels=n_labels,
        labels=labels,
        n_vocab=keys.vocabulary_size(),
        n_ctx_train=n_ctx_train,
        n_layers=keys.count("block_count", MAX_LAYERS),
        n_embd=n_embd,
        n_ff=n_ff if n_ff and keys.is_array(key) else keys.count(key, MAX_WIDTH, n_ff),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=keys.number(f"attention.{norm}", least=1e-30, most=1.0),
        rope=read_rope(keys, head_dim, n_ctx_train, neox=neox, freq_base=freq_base),
    )


def read_labels(keys: MetadataReader) -> tuple[int, tuple[str, ...]]:
    """How many numbers the head of a classifier gives, and the names of what they are for; 0 and none without a head."""
    n_labels = 0
    for name in ("cls.output.weight", "cls.weight"):
        tensor = keys.gguf.tensors.get(name)
        if tensor is not None:
            n_labels = tensor.shape[0]
            break
    key = "classifier.output_labels"
    labels: tuple[Any, ...] = ()
    if keys.has(key):
        value = keys.gguf.metadata[f"{keys.name}.{key}"]
        labels = tuple(value.to_list()) if isinstance(value, GGUFArray) else (value,)
        if len(labels) != n_labels or not all(isinstance(label, str) for label in labels):
            raise ModelError(
                f"{keys.gguf.path}: metadata {keys.name}.{key}: expected the names of the head's {n_labels} labels"
            )
    return n_labels, labels


def read_experts(keys: MetadataReader) -> tuple[int, int]:
    """Experts of a layer, and those that a token chooses; 0 and 0 where there are none."""
    n_experts = keys.size("expert_count", MAX_EXPERTS)
    n_used = keys.size("expert_used_count", min(MAX_CHOSEN, n_experts) if n_experts else MAX_CHOSEN)
    if n_experts and not n_used:
        raise ModelError(f"{keys.gguf.path}: metadata {keys.name}.expert_used_count is 0, expected 1 to {n_experts}")
    return (n_experts, n_used) if n_experts else (0, 0)


def read_required_experts(keys: MetadataReader, common: Config, *, split: bool = False) -> dict[str, int]:
    """The fields of an ``ExpertsConfig``. Where the file has no width of an expert, it is that of a layer.

    ``split``: that of a layer, divided among the experts that a token chooses.
    """
    n_experts, n_used = read_experts(keys)
    if not n_experts:
        raise ModelError(f"{keys.gguf.path}: metadata {keys.name}.expert_count is 0, expected at least 1")
    usual = common.n_ff // n_used or 1 if split else common.n_ff
    n_ff = keys.count("expert_feed_forward_length", MAX_WIDTH, usual)
    return {"n_experts": n_experts, "n_used": n_used, "n_ff_expert": n_ff}


def read_single_window(keys: MetadataReader, common: Config) -> int:
    """Tokens that a token sees in every layer; 0: all."""
    window = keys.size("attention.sliding_window", MAX_WINDOW)
    return window if window < common.n_ctx_train else 0


def read_window(
    keys: MetadataReader, common: Config, period: int, *, default: int | None = None, first: bool = False
) -> dict[str, Any]:
    """The fields of a ``WindowedConfig``; ``period`` and ``first`` as of ``windowed_layers``.

    ``default``: the window where the file has none (None: it must have one; 0: all).
    """
    key = "attention.sliding_window"
    return {
        "window": keys.size(key, MAX_WINDOW) if default == 0 else keys.count(key, MAX_WINDOW, default),
        "windowed": windowed_layers(keys, common.n_layers, period, first=first),
    }


def read_windowed_config(gguf: GGUFFile, name: str, period: int, *, neox: bool) -> WindowedConfig:
    """An architecture that has nothing beside what all have but windows, in all but the last of each ``period`` layers."""
    with read_metadata(gguf, name, "attention.sliding_window") as keys:
        common = read_common(keys, neox=neox)
        return common.extended(WindowedConfig, **read_window(keys, common, period, default=0))


def windowed_layers(keys: MetadataReader, n_layers: int, period: int, *, first: bool = False) -> tuple[bool, ...]:
    """Which layers see a window only: all but the last (``first``: but the first) of each ``period``.

    Unless the file says otherwise: for every layer, or by another period.
    """
    key = "attention.sliding_window_pattern"
    if keys.is_array(key):
        return keys.flags(key, n_layers) or ()
    period = keys.count(key, MAX_LAYERS, period)
    return tuple((i if first else i + 1) % period != 0 for i in range(n_layers))
