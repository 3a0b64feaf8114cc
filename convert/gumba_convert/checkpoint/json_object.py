"""The type of JSON objects in a checkpoint's files."""

from __future__ import annotations

from typing import Any, TypeAlias

#: A parsed JSON object of an untrusted file: its values can have any JSON type, and are checked where they are used.
JsonObject: TypeAlias = "dict[str, Any]"
