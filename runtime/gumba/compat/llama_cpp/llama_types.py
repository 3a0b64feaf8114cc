"""The request and response shapes under llama-cpp-python's module name."""

from __future__ import annotations

from gumba.openai.types import *  # noqa: F403
