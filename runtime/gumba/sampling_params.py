"""Parameters of a request: ``SamplingParams``, ``BeamSearchParams``, ``ContrastiveSearchParams``, ``StructuredOutputsParams``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Literal, TypeAlias

from gumba.errors import RequestError
from gumba.validation import (
    MAX_COUNT,
    is_iterable,
    require_boolean,
    require_count,
    require_ids,
    require_number,
    require_optional_ids,
    require_optional_text,
    require_schema,
    require_strings,
    show,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "LogitsProcessor", "SAMPLERS", "MAX_COUNT", "MAX_SEQUENCES", "MAX_LOGPROBS", "SamplingParams", "BeamSearchParams",
    "ContrastiveSearchParams", "StructuredOutputsParams",
]  # fmt: skip

#: Maximum number of answers to one prompt, and of beams.
MAX_SEQUENCES = 1024
#: Maximum of ``logprobs`` and ``prompt_logprobs``.
MAX_LOGPROBS = 1000

#: The samplers in their default order; ``SamplingParams.samplers`` sets another.
SAMPLERS = (
    "penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "epsilon_cutoff", "eta_cutoff", "xtc",
    "temperature",
)  # fmt: skip
#: llama.cpp's other names of samplers.
_SAMPLER_ALIASES = {"typ_p": "typical_p", "temp": "temperature"}

#: A function of (token ids of prompt and answer so far, logits float32 [n_vocab] to change or replace) to the logits.
LogitsProcessor: TypeAlias = "Callable[[list[int], np.ndarray], np.ndarray]"


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """A constraint on the whole text of an answer. Set exactly one of the first five fields (names as in vLLM).

    Args:
        json: A JSON schema, as a dict, True or JSON text; kept as JSON text.
        regex: A regular expression that matches the whole text.
        choice: Texts; the answer is one of them.
        grammar: A grammar in GBNF.
        json_object: True for any JSON object.
        whitespace_pattern: With ``json`` or ``json_object``, a regular expression of the white space allowed between two
            parts of the JSON text (none is always allowed); None: a space, or a line break with up to 32 blanks.

    Raises:
        RequestError: None or several are set, one has the wrong type, or ``json`` is not a schema.
    """

    json: str | Mapping[str, object] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        forms = [field.name for field in fields(self) if field.name != "whitespace_pattern"]
        given = [name for name in forms if getattr(self, name) is not None]
        if self.json_object is False:
            given.remove("json_object")
        if len(given) != 1:
            names = ", ".join(forms)
            raise RequestError(
                f"structured_outputs: expected exactly one of {names}, found {' and '.join(given) or 'none'}"
            )
        values = {
            "json": None if self.json is None else require_schema("json", self.json),
            "regex": require_optional_text("regex", self.regex),
            "choice": None if self.choice is None else require_strings("choice", self.choice),
            "grammar": require_optional_text("grammar", self.grammar),
            "json_object": None if self.json_object is None else require_boolean("json_object", self.json_object),
            "whitespace_pattern": require_optional_text("whitespace_pattern", self.whitespace_pattern),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.whitespace_pattern is not None and given[0] not in ("json", "json_object"):
            raise RequestError(f"whitespace_pattern: expected json or json_object with it, found {given[0]}")
        if given == ["choice"] and not self.choice:
            raise RequestError("choice: expected at least one string, found none")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of a request. Names as in vLLM; defaults and order of samplers as in llama.cpp.

    Each token is sampled in these steps; if a step excludes every token, the request ends with a RequestError:

    1. ``logits_processors``, then ``logit_bias``; then ``allowed_token_ids``, ``bad_words``, ``min_tokens``,
       ``no_repeat_ngram_size`` and ``structured_outputs`` exclude tokens.
    2. The ``samplers`` in their order: by default penalties (repetition, frequency, presence), DRY, top-n-sigma, top-k,
       typical, top-p, min-p, epsilon and eta cutoff, XTC, temperature. With ``mirostat``: penalties, DRY, temperature,
       then Mirostat.
    3. One token is drawn with a random number that depends only on ``seed`` and the token's index.

    With a temperature of 0, the most likely token after step 1, penalties and DRY is chosen.

    Args:
        max_tokens: Maximum number of tokens to generate, 1 or more; None: up to the end of the context.
        min_tokens: Exclude end-of-generation and stop tokens before this many tokens, 0 to ``max_tokens``.
        n: Number of answers, 1 to 1024.
        best_of: Number of answers to generate, ``n`` to 1024; the ``n`` with the highest mean log-probability are
            returned. None: ``n``.
        temperature: Divides the logits before sampling, 0 to 100. 0: greedy, the most likely token.
        dynatemp_range: Dynamic temperature (llama.cpp): the temperature varies by this much, 0 to 100, in both directions
            (at least to 0) with the entropy of the remaining tokens, higher at high entropy; 0: off.
        dynatemp_exponent: Exponent of the normalized entropy in that, 0 to 100.
        top_k: Keep the ``top_k`` most likely tokens; 0, or vLLM's -1: keep all (Fan et al., "Hierarchical neural story
            generation", 2018).
        top_p: Keep the most likely tokens whose probabilities sum to this, 0 to 1; 1: keep all (Holtzman et al., "The
            curious case of neural text degeneration", 2019).
        min_p: Keep tokens with at least this fraction of the highest probability, 0 to 1; 0: keep all (Nguyen et
            al., "Turning up the heat: min-p sampling", 2024).
        typical_p: Keep the tokens whose surprise is closest to the entropy and whose probabilities sum to this, 0 to 1; 1:
            keep all (Meister et al., "Locally typical sampling", 2022).
        top_n_sigma: Keep tokens whose logit is at most this many standard deviations of the logits below the highest, up to
            100; 0 and below (to -1): keep all (Tang et al., "Top-n-sigma: not all logits are you need", 2024).
        epsilon_cutoff: Keep tokens of at least this probability, 0 to 1 (Hewitt et al., "Truncation sampling as language
            model desmoothing", 2022). The most likely token is always kept.
        eta_cutoff: Keep tokens with a probability of at least min(eta, sqrt(eta) exp(-entropy)), 0 to 1 (the same paper).
        xtc_probability: Probability, 0 to 1, of dropping all tokens with a probability of ``xtc_threshold`` or more except
            the least likely of them ("Exclude top choices", P. E. Weidmann, 2024).
        xtc_threshold: See ``xtc_probability``, 0 to 1.
        mirostat: Version 1 or 2 keeps the surprise of the generated tokens close to a target; 0: off (Basu et al., "Mirostat:
            a neural text decoding algorithm that directly controls perplexity", 2021).
        mirostat_tau: Mirostat's target in bits per token, 0 to 100.
        mirostat_eta: Mirostat's learning rate, 0 to 10.
        min_keep: Minimum number of tokens that each of the filters above keeps.
        repetition_penalty: Divides positive logits and multiplies negative ones of tokens that occurred in the
            window, 0.01 to 100; 1: off (Keskar et al., "CTRL", 2019).
        frequency_penalty: Subtracted from a token's logit for each occurrence in the window, -100 to 100.
        presence_penalty: Subtracted from a token's logit if it occurred in the window, -100 to 100.
        repetition_window: Number of last tokens, including the prompt, that these three penalties consider; -1: all, 0: none.
        dry_multiplier: Subtract ``dry_multiplier * dry_base ** (L - dry_allowed_length)`` from the logit of a token that
            would continue a repetition of L >= ``dry_allowed_length`` tokens, 0 to 100; 0: off ("DRY: don't repeat yourself",
            P. E. Weidmann, 2024).
        dry_base: See ``dry_multiplier``, 1 to 100.
        dry_allowed_length: See ``dry_multiplier``, 0 or more.
        dry_range: Number of last tokens, including the prompt, that DRY considers; -1: all, 0: none.
        dry_sequence_breakers: Texts that end a repetition for DRY.
        no_repeat_ngram_size: No sequence of this many tokens occurs twice, including the prompt; 0: off (Paulus et al., "A
            deep reinforced model for abstractive summarization", 2017).
        logit_bias: Numbers added to the logits of tokens: a dict from token id (an integer, or a string of digits as in
            JSON) to a number up to 1e6; -inf excludes the token.
        bad_words: Texts that must not be generated, as the token sequences that encode them.
        allowed_token_ids: The only tokens that may be generated; None allows all.
        logits_processors: Functions of (token ids of prompt and answer so far, logits float32 [n_vocab], which they may
            change) that return the logits; -inf excludes a token.
        samplers: The samplers to apply, in this order, each at most once; None: ``gumba.sampling_params.SAMPLERS``. Samplers
            that are not listed are off.
        seed: 0 to 2**64 - 1. The same seed gives the same tokens, whatever other requests run. None: a random seed.
        stop: A string, or several, that end the answer, whose text then excludes them.
        include_stop_str_in_output: Include the stop string in the text.
        stop_token_ids: Token ids that end the answer, like the model's own end-of-generation tokens.
        ignore_eos: Continue after an end-of-generation token.
        skip_special_tokens: Omit special tokens from the text.
        logprobs: Return the log-probability of each generated token and of this many most likely alternatives, 0 to 1000,
            from the model's logits before any of the above. None: return none.
        prompt_logprobs: The same for the tokens of the prompt.
        priority: Requests with lower numbers are scheduled first, -2**31 to 2**31 - 1.
        structured_outputs: A constraint on the answer, also as a dict of the fields of ``StructuredOutputsParams``.
        prompt_lookup_tokens: Draft up to this many tokens, 0 to 1024, from what followed the last tokens earlier in the
            text, and verify them in one step: the same answer, faster (Saxena, "Prompt lookup decoding", 2023); 0: off.
        cache_prompt: Reuse cached pages of this prompt from other requests, and let others reuse its pages.
        context_shift: If the context is full, continue instead of ending: forget the older half of the tokens after the
            first ``n_keep``, and recompute the rest.
        n_keep: Number of first tokens that context shift keeps, 0 or more; -1: the whole prompt. The very first ones matter
            most (Xiao et al., "Efficient streaming language models with attention sinks", 2023).
        token_healing: Regenerate the prompt's last token, possibly as the start of a longer one (not with
            ``structured_outputs``, nor in a chat, whose template ends the prompt).
        detokenize: For vLLM's callers; only True is accepted, since answers always have a text.

    Raises:
        RequestError: A value has the wrong type or is out of range; the message names the field.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    n: int = 1
    best_of: int | None = None
    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    min_keep: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_window: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = -1
    dry_sequence_breakers: str | Sequence[str] = ("\n", ":", '"', "*")
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    bad_words: str | Sequence[str] = ()
    allowed_token_ids: Sequence[int] | None = None
    logits_processors: Sequence[LogitsProcessor] = ()
    samplers: Sequence[str] | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    structured_outputs: StructuredOutputsParams | None = None
    prompt_lookup_tokens: int = 0
    cache_prompt: bool = True
    token_healing: bool = False
    context_shift: bool = False
    n_keep: int = 4
    detokenize: InitVar[bool] = True

    def __post_init__(self, detokenize: bool) -> None:
        if detokenize is not True:
            raise RequestError(
                f"detokenize: expected True, found {show(detokenize)}; outputs always have a text, "
                "beside their token_ids"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default == ():  # vLLM's value for none
                value = ()
            if field.name in _RANGES:
                value = require_number(field.name, value, *_RANGES[field.name])
            elif field.name in _COUNTS:
                value = require_count(field.name, value, *_COUNTS[field.name])
                if field.name == "top_k":
                    value = max(value, 0)
            elif field.name in _OPTIONAL_COUNTS:
                value = None if value is None else require_count(field.name, value, *_OPTIONAL_COUNTS[field.name])
            else:
                value = _CHECKS[field.name](field.name, value)
            object.__setattr__(self, field.name, value)
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(f"best_of: expected at least n {self.n}, found {self.best_of}")
        if self.token_healing and self.structured_outputs is not None:
            raise RequestError("token_healing: expected False with structured_outputs, found True")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens: expected at most max_tokens {self.max_tokens}, found {self.min_tokens}")


@dataclass(frozen=True, kw_only=True)
class _SearchParams:
    """Fields of searches that ``SamplingParams`` has, too."""

    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    priority: int = 0

    def _check_shared(self, *own: str) -> None:
        """Check all fields but ``own`` as ``SamplingParams`` does."""
        shared = [field.name for field in fields(self) if field.name not in own]
        checked = SamplingParams(**{name: getattr(self, name) for name in shared})
        for name in shared:
            object.__setattr__(self, name, getattr(checked, name))


@dataclass(frozen=True, kw_only=True)
class ContrastiveSearchParams(_SearchParams):
    """Parameters of contrastive search (Su et al., "A contrastive framework for neural text generation", 2022).

    Args:
        penalty_alpha: Weight of the similarity penalty, 0 to 1: of the ``top_k`` most likely tokens, choose the one with the
            highest ``(1 - penalty_alpha) * probability - penalty_alpha * cosine``, where the cosine is the highest one of the
            token's hidden state and those of earlier tokens. 0: greedy.
        top_k: Number of candidates, 1 to 1024; the model computes each of them.
        max_tokens, min_tokens, stop_token_ids, ignore_eos, skip_special_tokens, priority: As of ``SamplingParams``.

    Raises:
        RequestError: A value has the wrong type or is out of range; the message names the field.
    """

    penalty_alpha: float = 0.6
    top_k: int = 4

    def __post_init__(self) -> None:
        self._check_shared("penalty_alpha", "top_k")
        object.__setattr__(self, "penalty_alpha", require_number("penalty_alpha", self.penalty_alpha, 0.0, 1.0))
        object.__setattr__(self, "top_k", require_count("top_k", self.top_k, 1, MAX_SEQUENCES))


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams(_SearchParams):
    """Parameters of beam search, which finds likely answers by keeping the ``beam_width`` best partial ones.

    Args:
        beam_width: Partial answers kept at each step, 1 to 1024.
        n: Number of best answers returned, 1 to ``beam_width``.
        max_tokens: Maximum number of tokens to generate, 1 or more; None: up to the end of the context.
        min_tokens: Exclude end-of-generation and stop tokens before this many tokens, 0 to ``max_tokens``.
        length_penalty: An answer's score is the sum of its log-probabilities divided by its length to this power, -100 to
            100; above 0 favours longer answers (Wu et al., "Google's neural machine translation system", 2016).
        early_stopping: True ends when ``beam_width`` answers are complete; False when a better one is unlikely; "never"
            when a better one is impossible.
        num_groups: Number of equal groups of beams, 1 to ``beam_width`` (Vijayakumar et al., "Diverse beam
            search", 2016).
        diversity_penalty: Subtracted from a token's score for each choice of it by earlier groups in this step, 0 to 100.
        temperature: Divides the logits before the log-softmax, 0 to 100; 0 and 1: off.
        repetition_penalty: Multiplies the log-probabilities of tokens that occurred in prompt or answer, 0.01 to 100.
        no_repeat_ngram_size, stop_token_ids, ignore_eos, skip_special_tokens, priority, cache_prompt: As of
            ``SamplingParams``.

    Raises:
        RequestError: A value has the wrong type or is out of range; the message names the field.
    """

    beam_width: int
    n: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_groups: int = 1
    diversity_penalty: float = 0.0
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    cache_prompt: bool = True

    def __post_init__(self) -> None:
        width = require_count("beam_width", self.beam_width, 1, MAX_SEQUENCES)
        early = self.early_stopping
        if not isinstance(early, bool) and not (isinstance(early, str) and early == "never"):
            raise RequestError(f'early_stopping: expected True, False or "never", found {show(early)}')
        groups = require_count("num_groups", self.num_groups, 1, width)
        if width % groups:
            raise RequestError(f"num_groups: expected a divisor of beam_width {width}, found {groups}")
        values = {
            "beam_width": width,
            "n": require_count("n", self.n, 1, width),
            "length_penalty": require_number("length_penalty", self.length_penalty, -100.0, 100.0),
            "early_stopping": early,
            "num_groups": groups,
            "diversity_penalty": require_number("diversity_penalty", self.diversity_penalty, 0.0, 100.0),
        }
        self._check_shared(*values)
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias in the order of the ids; from a mapping or from such pairs."""
    expected = f"{name}: expected a dict from token ids to numbers, found {show(value)}"
    if isinstance(value, (str, bytes)) or not is_iterable(value):
        raise RequestError(expected)
    biases: dict[int, float] = {}
    for pair in value.items() if isinstance(value, Mapping) else value:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise RequestError(expected)
        token = require_count(name, _token(pair[0]), 0)
        if token in biases:
            raise RequestError(f"{name}: expected each token id once, found {token} twice")
        banned = isinstance(pair[1], Real) and pair[1] == -math.inf
        biases[token] = -math.inf if banned else require_number(name, pair[1], -1e6, 1e6)
    return tuple(sorted(biases.items()))


def _token(key: object) -> object:
    """A token id; as a key of a JSON object it is a string."""
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 20:
        return int(key)
    return key


def _samplers(name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not is_iterable(value):
        raise RequestError(f"{name}: expected a list of names, found {show(value)}")
    samplers: list[str] = []
    for item in value:
        sampler = _SAMPLER_ALIASES.get(item, item) if isinstance(item, str) else item
        if not isinstance(sampler, str) or sampler not in SAMPLERS:
            raise RequestError(f"{name}: expected names among {', '.join(SAMPLERS)}, found {show(item)}")
        if sampler in samplers:
            raise RequestError(f"{name}: expected each name once, found {show(item)} again")
        samplers.append(sampler)
    return tuple(samplers)


def _callables(name: str, value: object) -> tuple[LogitsProcessor, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not is_iterable(value):
        raise RequestError(f"{name}: expected a list of functions, found {show(value)}")
    functions = tuple(value)
    for item in functions:
        if not callable(item):
            raise RequestError(f"{name}: expected functions, found {show(item)}")
    return functions


def _structured(name: str, value: object) -> StructuredOutputsParams | None:
    if value is None or isinstance(value, StructuredOutputsParams):
        return value
    known = [field.name for field in fields(StructuredOutputsParams)]
    if not isinstance(value, Mapping) or not all(key in known for key in value):
        raise RequestError(
            f"{name}: expected an object with one of {', '.join(known)} (a dict, or StructuredOutputsParams), "
            f"found {show(value)}"
        )
    return StructuredOutputsParams(**value)


_RANGES = {
    "temperature": (0.0, 100.0),
    "dynatemp_range": (0.0, 100.0),
    "dynatemp_exponent": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (-1.0, 100.0),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 10.0),
    "repetition_penalty": (0.01, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 100.0),
}
_COUNTS = {
    "min_tokens": (0, MAX_COUNT),
    "n": (1, MAX_SEQUENCES),
    "top_k": (-1, MAX_COUNT),
    "mirostat": (0, 2),
    "min_keep": (0, MAX_COUNT),
    "repetition_window": (-1, MAX_COUNT),
    "dry_allowed_length": (0, MAX_COUNT),
    "dry_range": (-1, MAX_COUNT),
    "no_repeat_ngram_size": (0, MAX_COUNT),
    "priority": (-MAX_COUNT - 1, MAX_COUNT),
    "prompt_lookup_tokens": (0, 1024),
    "n_keep": (-1, MAX_COUNT),
}
_OPTIONAL_COUNTS = {
    "max_tokens": (1, MAX_COUNT),
    "best_of": (1, MAX_SEQUENCES),
    "seed": (0, 2**64 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_CHECKS: dict[str, Callable[[str, object], object]] = {
    "dry_sequence_breakers": require_strings,
    "logit_bias": _bias,
    "bad_words": require_strings,
    "allowed_token_ids": require_optional_ids,
    "logits_processors": _callables,
    "samplers": _samplers,
    "stop": require_strings,
    "include_stop_str_in_output": require_boolean,
    "stop_token_ids": require_ids,
    "ignore_eos": require_boolean,
    "skip_special_tokens": require_boolean,
    "structured_outputs": _structured,
    "cache_prompt": require_boolean,
    "token_healing": require_boolean,
    "context_shift": require_boolean,
}
