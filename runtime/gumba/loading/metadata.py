"""An architecture's own metadata, ``NAME.key``: every key is read, checked, known to be without effect, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gumba.errors import ModelError, UnsupportedError
from gumba.gguf import GGUFArray, GGUFFile
from gumba.loading.weight_loader import MAX_VOCABULARY, require_float, require_positive

#: Keys that say nothing about the computation, whatever the architecture.
SILENT = {"context_length", "vocab_size", "rope.scaling.finetuned"}
#: Beginnings of keys of a model's other halves (pictures, sound), which lie in files of their own.
OTHER_HALVES = ("mm.", "vision.", "audio.")


class MetadataReader:
    """Reads the metadata of architecture ``name``; remembers what was read, so that ``finish`` can refuse the rest."""

    def __init__(self, gguf: GGUFFile, name: str) -> None:
        self.gguf, self.name = gguf, name
        self._read = set(SILENT)

    def _key(self, key: str) -> str:
        self._read.add(key)
        return f"{self.name}.{key}"

    def has(self, key: str) -> bool:
        """Whether the file says something about ``key``."""
        return self._key(key) in self.gguf.metadata

    def is_array(self, key: str) -> bool:
        """Whether ``key`` has several values."""
        return isinstance(self.gguf.metadata.get(self._key(key)), GGUFArray)

    def count(self, key: str, most: int, default: int | None = None) -> int:
        """An integer in 1 .. ``most``; ``default`` when it is absent (None: it must be there)."""
        return require_positive(self.gguf, self._key(key), most, default)

    def size(self, key: str, most: int, default: int = 0) -> int:
        """An integer in 0 .. ``most``; ``default`` when it is absent."""
        value = self.gguf.get(self._key(key), int, default)
        if not 0 <= value <= most:
            raise ModelError(f"{self.gguf.path}: metadata {self._key(key)} is {value}, expected 0 to {most}")
        return value

    def counts(self, key: str, n: int, most: int, default: int | None = None) -> tuple[int, ...]:
        """One integer in 0 .. ``most`` for each of ``n`` layers; one for all where the file has a single number."""
        value = self.gguf.metadata.get(self._key(key))
        if not isinstance(value, GGUFArray):
            return (self.count(key, most, default),) * n
        found: list[Any] = value.to_list()
        if len(found) != n or not all(type(each) is int and 0 <= each <= most for each in found):
            raise ModelError(f"{self.gguf.path}: metadata {self._key(key)}: expected {n} integers from 0 to {most}")
        return tuple(found)

    def flags(self, key: str, n: int) -> tuple[bool, ...] | None:
        """One bool for each of ``n`` layers; None when the key is absent."""
        value = self.gguf.metadata.get(self._key(key))
        if value is None:
            return None
        found = value.to_list() if isinstance(value, GGUFArray) else value
        if not isinstance(found, list) or len(found) != n or not all(type(each) is bool for each in found):
            raise ModelError(f"{self.gguf.path}: metadata {self._key(key)}: expected {n} bools")
        return tuple(found)

    def numbers(self, key: str, n: int) -> tuple[float, ...] | None:
        """One number, perhaps infinite, for each of ``n`` layers; None when the key is absent."""
        value = self.gguf.metadata.get(self._key(key))
        if value is None:
            return None
        found: list[Any] = value.to_list() if isinstance(value, GGUFArray) else []
        if len(found) != n or not all(type(each) is float and each == each for each in found):
            raise ModelError(f"{self.gguf.path}: metadata {self._key(key)}: expected {n} numbers")
        return tuple(found)

    def number(
        self, key: str, default: float | None = None, *, least: float = 1e-12, most: float = 1e12, zero: bool = False
    ) -> float:
        """A number in ``least`` .. ``most`` (or 0, where ``zero`` says so); ``default`` when it is absent."""
        name = self._key(key)
        if zero and self.gguf.get(name, float, 0.0) == 0.0:
            return default or 0.0 if name not in self.gguf.metadata else 0.0
        return require_float(self.gguf, name, default, least=least, most=most)

    def flag(self, key: str, default: bool) -> bool:
        """A bool."""
        return self.gguf.get(self._key(key), bool, default)

    def text(self, key: str, default: str, choices: Collection[str]) -> str:
        """One of ``choices``. Raises UnsupportedError for another."""
        value = self.gguf.get(self._key(key), str, default)
        if value not in choices:
            expected = ", ".join(sorted(choices))
            raise UnsupportedError(
                f"{self.gguf.path}: metadata {self._key(key)} is {value!r}, expected one of {expected}"
            )
        return value

    def must_be(self, allowed: Mapping[str, tuple[object, ...]]) -> None:
        """UnsupportedError for a key of ``allowed`` with a value other than those: it asks for what is not computed here."""
        for key, values in allowed.items():
            value = self.gguf.metadata.get(self._key(key), values[0])
            if isinstance(value, GGUFArray):
                wrong = [each for each in value.to_list() if each not in values]
                value = wrong[0] if wrong else values[0]
            if value not in values:
                raise UnsupportedError(
                    f"{self.gguf.path}: metadata {self._key(key)} is {value}, which this version cannot run"
                )

    def finish(self) -> None:
        """UnsupportedError for a key of the architecture that nothing has asked for: nobody knows what it changes."""
        for key in self.gguf.metadata:
            own = key.removeprefix(f"{self.name}.")
            if own != key and own not in self._read and not own.startswith(OTHER_HALVES):
                raise UnsupportedError(
                    f"{self.gguf.path}: metadata {key} is not known to this version, which cannot tell what it changes"
                )

    def vocabulary_size(self) -> int:
        """Rows of the embedding; the file's vocabulary, if it has one, must be as long."""
        gguf = self.gguf
        embedding = gguf.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelError(f"{gguf.path}: tensor token_embd.weight is missing or is no matrix")
        n_vocab: int = embedding.shape[0]
        if not 1 <= n_vocab <= MAX_VOCABULARY:
            raise ModelError(
                f"{gguf.path}: tensor token_embd.weight has {n_vocab} rows, expected 1 to {MAX_VOCABULARY}"
            )
        tokens: Any = gguf.metadata.get("tokenizer.ggml.tokens")
        if tokens is not None and hasattr(tokens, "__len__") and len(tokens) != n_vocab:
            raise ModelError(
                f"{gguf.path}: tokenizer.ggml.tokens has {len(tokens)} tokens, "
                f"but tensor token_embd.weight has {n_vocab} rows"
            )
        return n_vocab
