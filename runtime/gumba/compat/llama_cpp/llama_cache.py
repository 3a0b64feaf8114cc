"""Prompt caches: accepted, and always empty, because the engine's prefix cache shares KV pages by itself."""

from __future__ import annotations

from collections.abc import Sequence

from gumba.compat.llama_cpp.state import LlamaState


class BaseLlamaCache:
    """A cache that keeps nothing: the engine's prefix cache does its work, with the same results."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    def cache_size(self) -> int:
        """Bytes in use: always 0."""
        return 0

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        raise KeyError("Key not found")

    def __contains__(self, key: Sequence[int]) -> bool:
        return False

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        """Keep nothing."""


class LlamaRAMCache(BaseLlamaCache):
    """llama-cpp-python's cache in memory."""


class LlamaDiskCache(BaseLlamaCache):
    """llama-cpp-python's cache on disk; nothing is written to ``cache_dir``."""

    def __init__(self, cache_dir: str = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)


LlamaCache = LlamaRAMCache
