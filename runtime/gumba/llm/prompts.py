"""Prompts in the forms that callers give them: a text, token ids, or vLLM's dictionaries of either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from gumba.errors import RequestError
from gumba.validation import is_iterable, show

#: A prompt: text, token ids, or vLLM's dictionaries of one, {"prompt": text} and {"prompt_token_ids": ids}.
Prompt = str | Sequence[int] | np.ndarray[Any, Any] | Mapping[str, object]


def prompt_list(prompts: str | Iterable[Prompt] | Mapping[str, object]) -> list[Prompt]:
    """A text, or several prompts, as a list of prompts."""
    if not is_iterable(prompts):
        raise RequestError(f"prompts: expected a text or a list of prompts, found {show(prompts)}")
    listed: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
    for prompt in listed:
        if isinstance(prompt, Integral):
            raise RequestError("prompts: expected a list of prompts; give token ids as a list in that list, [[1, 2]]")
    return listed


def prompt_text(prompt: Prompt) -> str | None:
    """The text of a prompt; None if it consists of token ids."""
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    return text if isinstance(text, str) else None


def plain_prompt(prompt: Mapping[str, object]) -> object:
    """The text or token ids of vLLM's prompt dictionary. Raises RequestError for other keys."""
    for name, value in prompt.items():
        if name not in ("prompt", "prompt_token_ids") and value not in (None, {}):
            raise RequestError(f"prompt: expected 'prompt' or 'prompt_token_ids', found {show(name)}: {show(value)}")
    ids, text = prompt.get("prompt_token_ids"), prompt.get("prompt")
    if ids is None and not isinstance(text, str):
        raise RequestError(
            f"prompt: expected a text in 'prompt' or token ids in 'prompt_token_ids', found {show(prompt)}"
        )
    return text if ids is None else ids


def with_token_ids(
    prompts: str | Iterable[Prompt] | None, token_ids: Sequence[object] | np.ndarray[Any, Any] | None
) -> str | Iterable[Prompt]:
    """``prompts`` with their token ids (vLLM's ``prompt_token_ids``), which take precedence over texts.

    Raises RequestError if neither is given, or if their numbers differ.
    """
    if token_ids is None:
        if prompts is None:
            raise RequestError("prompts: expected a text or a list of prompts, found None")
        return prompts
    if (
        isinstance(token_ids, str | bytes)
        or not is_iterable(token_ids)
        or not isinstance(token_ids, Sequence | np.ndarray)
    ):
        raise RequestError(f"prompt_token_ids: expected a list of token ids, or several, found {show(token_ids)}")
    listed: list[Any] = [token_ids] if len(token_ids) and isinstance(token_ids[0], Integral) else list(token_ids)
    for ids in listed:
        if isinstance(ids, str | bytes | Mapping):
            raise RequestError(f"prompt_token_ids: expected lists of token ids, found {show(ids)}")
    if prompts is None:
        return listed
    texts = prompt_list(prompts)
    if len(texts) != len(listed):
        raise RequestError(f"prompt_token_ids: expected one list per prompt ({len(texts)}), found {len(listed)}")
    return [{"prompt": prompt_text(text), "prompt_token_ids": ids} for text, ids in zip(texts, listed)]
