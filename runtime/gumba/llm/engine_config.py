"""Settings of one ``LLM``, checked: what the model, the KV cache, the scheduler and the drafts are set up with."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from gumba.runner.load_config import LoadConfig


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one ``LLM``.

    Attributes:
        load: What the model is loaded with; ``load.max_sequences`` is also the maximum number of running requests.
        max_queue: Maximum number of waiting requests; None: no limit.
        prefix_caching: Whether requests share the KV pages of common prefixes.
        draft_model: The model that drafts tokens; None: no drafts.
        draft_tokens: Maximum number of tokens per draft.
        unload_after: Idle time in seconds before the model is unloaded; None: never.
        seed: Seed of requests without a seed; None: each request draws one.
    """

    load: LoadConfig
    max_queue: int | None = None
    prefix_caching: bool = True
    draft_model: str | PathLike[str] | None = None
    draft_tokens: int = 4
    unload_after: float | None = None
    seed: int | None = None
