"""Prompt caches: accepted, and empty, because the engine shares the pages of common prefixes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gumba.compat.llama_cpp.loaded import LlamaState


class BaseLlamaCache:
    """Takes what it is given and keeps nothing: results are the same, and the engine's own cache is underneath."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    def cache_size(self) -> int:
        """Bytes held: always 0."""
        return 0

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        raise KeyError("Key not found")

    def __contains__(self, key: Sequence[int]) -> bool:
        return False

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        """Keep nothing."""


class LlamaRAMCache(BaseLlamaCache):
    """Stands for llama-cpp-python's cache in memory."""


class LlamaDiskCache(BaseLlamaCache):
    """Stands for llama-cpp-python's cache on disk; nothing is written to ``cache_dir``."""

    def __init__(self, cache_dir: str = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)


LlamaCache = LlamaRAMCache
