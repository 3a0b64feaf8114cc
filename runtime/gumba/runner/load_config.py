"""What a model is loaded with: its sizes, the type of its KV cache, its threads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """Settings of ``load_model``.

    Attributes:
        n_ctx: Maximum number of tokens of a sequence; None: the training context, at most 4096.
        max_batch_tokens: Maximum number of tokens in one step. Models with an encoder, which reads a text in one step, use
            ``n_ctx`` if that is more.
        max_sequences: Number of sequences that must fit into the window pool (``KVCache.window_pool``), which layers with a
            sliding window get if that saves memory; 0: no window pool.
        kv_tokens: Size of the KV cache in tokens, for all sequences together.
        kv_memory: Size of the KV cache in bytes. Without either: DEFAULT_SEQUENCES sequences of ``n_ctx`` tokens, or as many
            (at least one) as fit into an eighth of the available memory.
        kv_type: Data type of the KV cache: "f16", "bf16", "f32" or "q8_0" (8.5 bits per element); None: bf16 on processors
            with ``avx512_bf16``, else f16.
        n_states: Number of slots for recurrent states, checkpoints of cached prefixes included; None: MAX_STATES, more if
            they are small, or as many as fit into an eighth of the available memory.
        portable: Whether results have the same bits on every processor: f16 pages by default, and no instructions whose
            results differ from those of others.
        n_threads: Compute threads; None: one per core that this process may use.
    """

    n_ctx: int | None = None
    max_batch_tokens: int = 512
    max_sequences: int = 0
    kv_tokens: int | None = None
    kv_memory: int | None = None
    kv_type: str | None = None
    n_states: int | None = None
    portable: bool = False
    n_threads: int | None = None


#: Every setting at its default.
DEFAULT = LoadConfig()
