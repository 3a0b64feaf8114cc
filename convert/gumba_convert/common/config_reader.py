"""Typed access to config.json and its sections."""

from __future__ import annotations

from gumba.errors import ConvertError
from gumba_convert.checkpoint.json_object import JsonObject


class ConfigReader:
    """Typed access to config.json. Every error names the key.

    Raises:
        ConvertError: a required key is missing, or has the wrong type or range.
    """

    def __init__(self, config: JsonObject, where: str, *, prefix: str = "") -> None:
        self.config = config
        self.where = where
        self.prefix = prefix

    def fail(self, key: str, message: str) -> ConvertError:
        return ConvertError(f"{self.where}: {self.prefix}{key} {message}")

    def has(self, key: str) -> bool:
        """Whether the key exists and is not null."""
        return self.config.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer below 2**31, required unless there is a default."""
        value = self.config.get(key)
        value = default if value is None else value
        if value is None:
            raise self.fail(key, "is missing")
        if type(value) is not int or not 0 < value < 2**31:
            raise self.fail(key, f"is {value!r}, expected a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite positive number, required unless there is a default."""
        value = self.config.get(key)
        value = default if value is None else value
        if value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e38:
            raise self.fail(key, f"is {value!r}, expected a positive number")
        return float(value)

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of `count` finite positive numbers."""
        value = self.config.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.fail(key, f"is {str(value)[:80]}, expected a list of {count} numbers")
        return [ConfigReader({key: item}, self.where, prefix=self.prefix).number(key) for item in value]

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.fail(key, f"is {value!r}, expected true or false")
        return value

    def must_be(self, key: str, *allowed: object) -> None:
        """Check that the key is absent, null, or one of the allowed values."""
        if self.has(key) and self.config[key] not in allowed:
            names = " or ".join(map(repr, allowed)) or "absent"
            raise self.fail(key, f"is {str(self.config[key])[:100]!r}; only {names} is supported")

    def require_full_weights(self) -> None:
        """Check that the checkpoint is not quantized, by `quantization_config`."""
        method = self.config.get("quantization_config")
        if method is not None:
            name = method.get("quant_method") if isinstance(method, dict) else method
            raise self.fail(
                "quantization_config",
                f"names a quantization ({name!s:.100}): use the checkpoint with full weights",
            )

    def section(self, key: str) -> ConfigReader | None:
        """A nested object; None if it is absent."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, f"is {value!r}, expected an object")
        return ConfigReader(value, self.where, prefix=f"{self.prefix}{key}.")
