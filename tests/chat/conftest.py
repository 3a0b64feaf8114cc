"""A tiny model whose answers are dictated, by a logits processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba import LLM, SamplingParams
from support import tiny_chat

MARKS = ("[TOOL_CALLS]", "[ARGS]", "<think>", "</think>", "<|channel>", "<channel|>")
END = 2


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, in whose vocabulary ``MARKS`` are control tokens."""
    return tiny_chat.write(tmp_path_factory.mktemp("marked") / "marked.gguf", more=MARKS, context=2048)


@pytest.fixture(scope="module")
def plain(marked: Path) -> Iterator[LLM]:
    with LLM(marked) as llm:
        yield llm


@pytest.fixture(scope="module")
def hermes(marked: Path) -> Iterator[LLM]:
    with LLM(marked, chat_template="hermes") as llm:
        yield llm


@pytest.fixture(scope="module")
def dictate(plain: LLM) -> Callable[..., SamplingParams]:
    """``dictate(text, **params)``: parameters with which a model of this vocabulary answers ``text``."""

    def made(text: str, **params: Any) -> SamplingParams:
        ids = [*plain.tokenizer.encode(text, add_special=False, parse_special=True), END]
        starts: list[int] = []

        def force(tokens: list[int], logits: np.ndarray) -> np.ndarray:
            starts.append(len(tokens))
            forced = np.full_like(logits, -np.inf)
            forced[ids[min(len(tokens) - starts[0], len(ids) - 1)]] = 0.0
            return forced

        return SamplingParams(**{"max_tokens": 400, "temperature": 0, **params, "logits_processors": (force,)})

    return made
