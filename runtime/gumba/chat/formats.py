"""The answer format of a model, detected from its chat template and vocabulary: reasoning tags and the tool parser."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from gumba.chat import harmony
from gumba.chat.output_parser import AnswerFormat, SplitterFactory
from gumba.chat.reasoning import ReasoningSplitter, Tags
from gumba.chat.tool_parsers.base import Tools
from gumba.chat.tool_parsers.registry import parser_of
from gumba.errors import RequestError
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

#: Reasoning formats by name.
REASONING: Mapping[str, Tags] = {
    "think": Tags("<think>", "</think>"),
    "cohere": Tags(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    "mistral": Tags("[THINK]", "[/THINK]"),
    "seed": Tags("<seed:think>", "</seed:think>"),
    "granite": Tags("<think>", "</think>", ("<response>", "</response>")),
    "granite-3.2": Tags("Here is my thought process:", "Here is my response:"),
    "gemma4": Tags("<|channel>thought", "<channel|>"),
    "apertus": Tags("<|inner_prefix|>", "<|inner_suffix|>"),
}

#: (text of a chat template, its reasoning format); the first matching row counts.
_REASONING_BY_SOURCE = (
    ("<|START_THINKING|>", "cohere"),
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed"),
    ("<response>", "granite"),
    ("Here is my thought process:", "granite-3.2"),
    ("<|channel>thought", "gemma4"),
    ("<|inner_prefix|>", "apertus"),
    ("<think>", "think"),
    ("</think>", "think"),
)


def answer_format(
    tokenizer: Tokenizer,
    source: str,
    prompt: Sequence[int],
    *,
    reasoning: str = "auto",
    tools: Sequence[Mapping[str, Any]] | None = None,
    constrained: bool = False,
) -> AnswerFormat | None:
    """How the answers to ``prompt`` are parsed; None: not at all.

    Args:
        tokenizer: The model's tokenizer.
        source: The text of the chat template.
        prompt: Token ids of the prompt; its end shows whether the template has opened the reasoning.
        reasoning: "auto": detected from the template; "off": left in the text; or a name of ``REASONING``.
        tools: Checked tools; without any, no calls are parsed.
        constrained: Whether structured outputs constrain the answer, which then begins without reasoning.

    Raises RequestError for another ``reasoning``.
    """
    if not isinstance(reasoning, str) or (reasoning not in ("auto", "off", "harmony") and reasoning not in REASONING):
        raise RequestError(f"reasoning: expected auto, off, {', '.join(REASONING)} or harmony, found {show(reasoning)}")
    functions = Tools([tool["function"] for tool in tools or ()])
    salt = hashlib.sha256(repr(list(prompt)).encode()).digest() if tools else b""
    has_harmony = harmony.CHANNEL in source and harmony.MESSAGE in source
    if reasoning == "harmony" or (has_harmony and (reasoning == "auto" or tools)):
        _, started, header = tokenizer.decode(prompt[-24:]).rpartition("<|start|>assistant")
        if not started or any(end in header for end in harmony.ENDS):
            header = ""
        factory: SplitterFactory = functools.partial(harmony.HarmonySplitter, functions if tools else None, header)
        return AnswerFormat(factory, None, functions, salt, harmony.TEXTS)
    tags = _tags(tokenizer, source, reasoning)
    opened = tags is not None and tokenizer.decode(prompt[-24:]).rstrip().endswith(tags.opening)
    parser = parser_of(source) if tools else None
    split = (
        None
        if tags is None or (opened and constrained)
        else functools.partial(ReasoningSplitter, tags, opened, parser, functions)
    )
    if split is None and parser is None:
        return None
    texts = (() if tags is None else tags.texts) + (() if parser is None else (*parser.markers, *parser.texts))
    return AnswerFormat(split, parser, functions, salt, texts)


def _tags(tokenizer: Tokenizer, source: str, reasoning: str) -> Tags | None:
    if reasoning == "off":
        return None
    if reasoning != "auto":
        return REASONING[reasoning]
    for text, name in _REASONING_BY_SOURCE:
        if text in source:
            return REASONING[name]
    return REASONING["think"] if tokenizer.token_id("<think>") is not None else None
