"""The metadata of an architecture, keys ``NAME.*``: each key is read and checked, known to have no effect, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gumba.errors import ModelError, UnsupportedError
from gumba.gguf import GGUFArray, GGUFFile
from gumba.loading.weight_loader import MAX_VOCABULARY, require_float, require_positive

#: Keys without effect on the computation, in every architecture.
NO_EFFECT_KEYS = {"context_length", "vocab_size", "rope.scaling.finetuned"}
#: Prefixes of the keys of vision and audio encoders, which lie in files of their own.
OTHER_MODALITIES = ("mm.", "vision.", "audio.")


class MetadataReader:
    """Reads the metadata of architecture ``name`` and remembers which keys were read, so that ``finish`` can refuse the others.

    Methods that read a key raise ModelError for a value of the wrong type or out of range.
    """

    def __init__(self, gguf: GGUFFile, name: str) -> None:
        self.gguf, self.name = gguf, name
        self._read = set(NO_EFFECT_KEYS)

    def _key(self, key: str) -> str:
        self._read.add(key)
        return f"{self.name}.{key}"

    def error(self, key: str, problem: str) -> ModelError:
        """An error to raise, which names the file and ``key``. ``problem``: "is ..., expected ..." or "expected ..."."""
        return ModelError(self._message(key, problem))

    def unsupported(self, key: str, problem: str) -> UnsupportedError:
        """As ``error``, for what a valid file may have but this version does not compute."""
        return UnsupportedError(self._message(key, problem))

    def _message(self, key: str, problem: str) -> str:
        colon = ":" if problem.startswith("expected") else ""
        return f"{self.gguf.path}: metadata {self.name}.{key}{colon} {problem}"

    def has(self, key: str) -> bool:
        """Whether the file has ``key``."""
        return self._key(key) in self.gguf.metadata

    def is_array(self, key: str) -> bool:
        """Whether ``key`` is an array."""
        return isinstance(self.gguf.metadata.get(self._key(key)), GGUFArray)

    def count(self, key: str, maximum: int, default: int | None = None) -> int:
        """An integer in 1 .. ``maximum``; ``default`` if the key is absent (None: it is required)."""
        return require_positive(self.gguf, self._key(key), maximum, default)

    def size(self, key: str, maximum: int, default: int = 0) -> int:
        """An integer in 0 .. ``maximum``; ``default`` if the key is absent."""
        value = self.gguf.get(self._key(key), int, default)
        if not 0 <= value <= maximum:
            raise self.error(key, f"is {value}, expected 0 to {maximum}")
        return value

    def counts(self, key: str, n: int, maximum: int, default: int | None = None) -> tuple[int, ...]:
        """One integer in 0 .. ``maximum`` for each of ``n`` layers; a single number in the file applies to all."""
        value = self.gguf.metadata.get(self._key(key))
        if not isinstance(value, GGUFArray):
            return (self.count(key, maximum, default),) * n
        counts = tuple(v for v in value.to_list() if type(v) is int and 0 <= v <= maximum)
        if len(value) != n or len(counts) != n:
            raise self.error(key, f"expected {n} integers from 0 to {maximum}")
        return counts

    def flags(self, key: str, n: int) -> tuple[bool, ...] | None:
        """One bool for each of ``n`` layers; None if the key is absent."""
        value = self.gguf.metadata.get(self._key(key))
        if value is None:
            return None
        values = value.to_list() if isinstance(value, GGUFArray) else []
        flags = tuple(v for v in values if type(v) is bool)
        if len(values) != n or len(flags) != n:
            raise self.error(key, f"expected {n} bools")
        return flags

    def numbers(self, key: str, n: int) -> tuple[float, ...] | None:
        """One number, possibly infinite, for each of ``n`` layers; None if the key is absent."""
        value = self.gguf.metadata.get(self._key(key))
        if value is None:
            return None
        values = value.to_list() if isinstance(value, GGUFArray) else []
        numbers = tuple(v for v in values if type(v) is float and v == v)
        if len(values) != n or len(numbers) != n:
            raise self.error(key, f"expected {n} numbers")
        return numbers

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        minimum: float = 1e-12,
        maximum: float = 1e12,
        or_zero: bool = False,
    ) -> float:
        """A number in ``minimum`` .. ``maximum``, or 0 with ``or_zero``; ``default`` if the key is absent."""
        name = self._key(key)
        if or_zero and self.gguf.get(name, float, 0.0) == 0.0:
            return default or 0.0 if name not in self.gguf.metadata else 0.0
        return require_float(self.gguf, name, default, minimum=minimum, maximum=maximum)

    def flag(self, key: str, default: bool) -> bool:
        """A bool."""
        return self.gguf.get(self._key(key), bool, default)

    def text(self, key: str, default: str, choices: Collection[str]) -> str:
        """One of ``choices``. Raises UnsupportedError for another text."""
        value = self.gguf.get(self._key(key), str, default)
        if value not in choices:
            raise self.unsupported(key, f"is {value!r}, expected one of {', '.join(sorted(choices))}")
        return value

    def must_be(self, allowed: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse the file if a key of ``allowed`` has another value than those, which this version does not compute.

        Raises UnsupportedError.
        """
        for key, values in allowed.items():
            value = self.gguf.metadata.get(self._key(key), values[0])
            others = value.to_list() if isinstance(value, GGUFArray) else [value]
            for other in others:
                if other not in values:
                    raise self.unsupported(key, f"is {other}, which this version cannot run")

    def finish(self) -> None:
        """Refuse the file if it has a key of the architecture that was not read: its effect is unknown.

        Raises UnsupportedError.
        """
        for key in self.gguf.metadata:
            own = key.removeprefix(f"{self.name}.")
            if own != key and own not in self._read and not own.startswith(OTHER_MODALITIES):
                raise self.unsupported(own, "is not known to this version, which cannot tell what it changes")

    def vocabulary_size(self) -> int:
        """Rows of the token embedding. Raises ModelError if the file has a vocabulary of another length."""
        path = self.gguf.path
        embedding = self.gguf.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelError(f"{path}: tensor token_embd.weight is missing or is not a matrix")
        n_vocab: int = embedding.shape[0]
        if not 1 <= n_vocab <= MAX_VOCABULARY:
            raise ModelError(f"{path}: tensor token_embd.weight has {n_vocab} rows, expected 1 to {MAX_VOCABULARY}")
        tokens = self.gguf.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, GGUFArray | str) and len(tokens) != n_vocab:
            raise ModelError(
                f"{path}: tokenizer.ggml.tokens has {len(tokens)} tokens, "
                f"but tensor token_embd.weight has {n_vocab} rows"
            )
        return n_vocab
