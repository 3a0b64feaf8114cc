"""Settings of one ``LLM``, checked: what the model, the KV cache, the scheduler and the drafts are set up with."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike


@dataclass(frozen=True)
class CacheConfig:
    """Size and data type of the KV cache, and the number of recurrent states.

    Attributes:
        kv_tokens: Size of the KV cache in tokens; None: ``kv_memory`` or the available memory determines it.
        kv_memory: Size of the KV cache in bytes; None: ``kv_tokens`` or the available memory determines it.
        kv_type: Data type, "f16", "bf16", "f32" or "q8_0"; None: the fastest on this processor (f16 if ``portable``).
        n_states: Number of recurrent states; None: the memory determines it.
        prefix_caching: Whether requests share the KV pages of common prefixes.
    """

    kv_tokens: int | None = None
    kv_memory: int | None = None
    kv_type: str | None = None
    n_states: int | None = None
    prefix_caching: bool = True


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one ``LLM``.

    Attributes:
        n_ctx: Context length in tokens, prompt and answer together; None: the model's own, at most 4096.
        n_threads: Compute threads; None: one per core that this process may use.
        max_batch_tokens: Maximum number of tokens in one step.
        max_sequences: Maximum number of running requests.
        max_queue: Maximum number of waiting requests; None: no limit.
        cache: The KV cache.
        portable: Whether answers have the same bits on every processor.
        draft_model: The model that drafts tokens; None: no drafts.
        draft_tokens: Maximum number of tokens per draft.
        unload_after: Idle time in seconds before the model is unloaded; None: never.
        seed: Seed of requests without a seed; None: each request draws one.
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    max_batch_tokens: int = 512
    max_sequences: int = 32
    max_queue: int | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    portable: bool = False
    draft_model: str | PathLike[str] | None = None
    draft_tokens: int = 4
    unload_after: float | None = None
    seed: int | None = None
