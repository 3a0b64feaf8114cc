"""Pre-tokenizers: how a text is cut into words before byte-pair merging, by the name in ``tokenizer.ggml.pre``.

A pattern matches every character of every text, so that the words are what ``findall`` gives. Runs are possessive
(``++``) wherever the pattern that follows cannot take back from them: no backtracking, linear time.

llama.cpp runs some families' patterns one after another, each inside the pieces of the one before. Here each family is
one pattern; where a piece would end, the look-ahead names what would begin the next.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from gumba.errors import TokenizerError


@dataclass(frozen=True)
class PreTokenizer:
    """``pattern``: one word; ``whole_words``: a word that is itself a token is taken without merging ("ignore_merges");
    ``add_bos``: the family starts with BOS unless the file says otherwise."""

    pattern: str
    whole_words: bool = False
    add_bos: bool = False


_CONTRACTION = r"'(?:[stmd]|re|ve|ll)"
_ANY_CASE_CONTRACTION = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"

#: The pattern of GPT-2.
_GPT2 = PreTokenizer(
    rf"{_CONTRACTION}| ?\p{{L}}++| ?\p{{N}}++| ?[^\s\p{{L}}\p{{N}}]++|\s+(?!\S)|\s++",
)

#: GPT-2's, inside the pieces left between single digits.
_SMOLLM = PreTokenizer(
    rf"{_CONTRACTION}| ?\p{{L}}++|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]++|\s+(?![^\s\p{{N}}])|\s++",
)

#: GPT-2's, inside the pieces left between runs of punctuation; then numbers apart from the space before them, and ASCII
#: digits in threes.
_PUNCTUATION = r"\p{P}$+<=>\^~|"
_DEFAULT = PreTokenizer(
    rf"[{_PUNCTUATION}]++| ?\p{{L}}++|[0-9]{{3}}|(?:(?![0-9]{{3}})\p{{N}})++"
    rf"| ?[^\s\p{{L}}\p{{N}}{_PUNCTUATION}]++|\s+(?![^\s{_PUNCTUATION}])|\s++",
)


def _tiktoken_style(number: str, **options: Any) -> PreTokenizer:
    return PreTokenizer(
        rf"{_ANY_CASE_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}++|{number}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+"
        r"|\s*[\r\n]++|\s+(?!\S)|\s++",
        **options,
    )


_LLAMA3 = _tiktoken_style(r"\p{N}{1,3}+", whole_words=True, add_bos=True)
_QWEN2 = _tiktoken_style(r"\p{N}")

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "command-r": _SMOLLM,
}


@functools.cache
def compiled(name: str) -> Any:
    """The compiled pattern of a pre-tokenizer. Raises TokenizerError for an unknown name, listing the known ones."""
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise TokenizerError(f"tokenizer.ggml.pre: unknown pre-tokenizer {name!r:.80}; known are {known}")
    import regex

    return regex.compile(PRE_TOKENIZERS[name].pattern, regex.VERSION0)
