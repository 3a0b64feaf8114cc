"""How tokens are chosen: llama-cpp-python's keywords, and the ``SamplingParams`` they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar
from gumba.compat.llama_cpp.options import require
from gumba.errors import RequestError
from gumba.sampling_params import SamplingParams
from gumba.validation import show

Array: TypeAlias = "np.ndarray[Any, Any]"
#: Called with the token ids so far (int32) and the logits of the next token (float32 [n_vocab]); returns new logits.
LogitsProcessor: TypeAlias = Callable[[Array, Array], Array]
#: Called with the same; True ends the text.
StoppingCriteria: TypeAlias = Callable[[Array, Array], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Logits processors, called one after the other."""

    def __call__(self, input_ids: Array, scores: Array) -> Array:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Stopping criteria, of which one is enough."""

    def __call__(self, input_ids: Array, logits: Array) -> bool:
        met = [criterion(input_ids, logits) for criterion in self]  # call all of them: they may have state
        return any(met)


class MinTokensLogitsProcessor:
    """Excludes ``token_eos`` until ``min_tokens`` tokens have been generated."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: Array, scores: Array) -> Array:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


@dataclass(frozen=True, kw_only=True)
class Controls:
    """The keywords of ``Llama.generate`` and of everything built on it. Out-of-range filters are off, as in llama.cpp."""

    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    temp: float = 0.8
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logits_processor: LogitsProcessorList | Sequence[LogitsProcessor] | None = None
    grammar: LlamaGrammar | None = None
    logit_bias: Mapping[Any, float] | None = None

    def params(self, *, window: int, seed: int, max_tokens: int | None = None, **more: Any) -> SamplingParams:
        """The same for gumba. ``window``: how many of the last tokens the penalties look at.

        Raises RequestError (a ValueError) for a value that is out of range.
        """
        self._check()
        temperature, samplers = self.temp, None
        if self.temp < 0:
            temperature, samplers = 1.0, ("penalties",)
        elif self.temp > 0 and self.mirostat_mode in (1, 2):
            temperature = 1.0  # llama-cpp-python then omits it
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            samplers=samplers,
            top_k=max(self.top_k, 0),
            top_p=min(max(self.top_p, 0.0), 1.0),
            min_p=min(max(self.min_p, 0.0), 1.0),
            typical_p=min(max(self.typical_p, 0.0), 1.0),
            mirostat=self.mirostat_mode if self.mirostat_mode in (1, 2) else 0,
            mirostat_tau=self.mirostat_tau,
            mirostat_eta=self.mirostat_eta,
            repetition_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_window=window,
            logits_processors=tuple(map(_processor, self.logits_processor or ())),
            logit_bias={_token(token): value for token, value in (self.logit_bias or {}).items()},
            structured_outputs=None if self.grammar is None else self.grammar.structured_outputs(),
            seed=seed,
            **more,
        )
        return params

    def _check(self) -> None:
        """Raise ArgumentError (a TypeError) for a value of the wrong type."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "float"):
                require(field.name, value, Real, "a number")
        require("grammar", self.grammar, (LlamaGrammar, type(None)), "a LlamaGrammar or None")
        require("logit_bias", self.logit_bias, (Mapping, type(None)), "a dict of token ids or None")
        require("logits_processor", self.logits_processor, (Sequence, type(None)), "a list of functions or None")


def _processor(processor: LogitsProcessor) -> Callable[[list[int], Array], Array]:
    """Wrap a logits processor so that gumba can call it."""
    return lambda ids, logits: processor(np.array(ids, np.intc), logits)


def _token(token: int | str) -> int:
    """A token id, possibly as text, like the keys of a JSON object."""
    try:
        return int(token)
    except (TypeError, ValueError):
        raise RequestError(f"logit_bias: expected token ids, found {show(token)}") from None
