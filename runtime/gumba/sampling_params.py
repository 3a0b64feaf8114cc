"""What a request asks for: ``SamplingParams``, ``BeamSearchParams`` and ``StructuredOutputsParams``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, fields
from numbers import Real
from typing import Any, Literal

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

__all__ = [
    "LogitsProcessor", "SAMPLERS", "MAX_COUNT", "MAX_SEQUENCES", "MAX_LOGPROBS", "SamplingParams", "BeamSearchParams",
    "ContrastiveSearchParams", "StructuredOutputsParams", "require_count", "require_number", "show",
]  # fmt: skip

#: Most samples of one prompt, and most beams.
MAX_SEQUENCES = 1024
#: Most likeliest tokens whose log-probabilities may be asked for.
MAX_LOGPROBS = 1000

#: The samplers in the order in which they are applied; ``SamplingParams.samplers`` names others.
SAMPLERS = (
    "penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "epsilon_cutoff", "eta_cutoff", "xtc",
    "temperature",
)  # fmt: skip
#: Other names that llama.cpp has for some of them.
_SAMPLER_ALIASES = {"typ_p": "typical_p", "temp": "temperature"}

#: A function of (token ids of prompt and answer so far, logits float32 [n_vocab] to change or replace) to the logits.
LogitsProcessor = Callable[[list[int], Any], Any]


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What the whole text of an answer must be; exactly one of the first five is given (the names are vLLM's).

    Args:
        json: A JSON schema, as a dict, True or JSON text; kept as JSON text.
        regex: A regular expression that matches the whole text.
        choice: Texts, one of which the answer is.
        grammar: A grammar in GBNF.
        json_object: True for any JSON object.
        whitespace_pattern: With ``json`` or ``json_object``, a regular expression of the white space between two parts of the
            JSON text, beside none; None: a space, or a line break with up to 32 blanks.

    Raises:
        RequestError: None or several are given, one has the wrong type, or ``json`` is not a schema.
    """

    json: str | Mapping[str, Any] | bool | None = None
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
    """How the tokens of one request are chosen, and when it ends. Names are vLLM's, defaults and order llama.cpp's.

    A token is chosen in these steps, each leaving at least one token or the request ends in a RequestError:

    1. ``logits_processors``, then ``logit_bias``; then tokens are ruled out by ``allowed_token_ids``, ``bad_words``,
       ``min_tokens``, ``no_repeat_ngram_size`` and ``structured_outputs``.
    2. The ``samplers`` in their order: by default penalties (repetition, frequency, presence), DRY, top-n-sigma, top-k,
       typical, top-p, min-p, epsilon and eta cutoff, XTC, temperature. With ``mirostat`` penalties, DRY and temperature
       alone, then mirostat.
    3. One token is drawn, by a number that depends on ``seed`` and the token's index alone.

    With a temperature of 0 the likeliest token after step 1, penalties and DRY is taken.

    Args:
        max_tokens: Most tokens to generate, 1 or more; None goes on to the end of the context.
        min_tokens: End-of-generation and stop tokens are ruled out before this many tokens, 0 to ``max_tokens``.
        n: Answers to generate, 1 to 1024.
        best_of: Answers to generate of which the ``n`` with the highest mean log-probability are returned, ``n`` to
            1024; None is ``n``.
        temperature: Divides the logits before the draw, 0 to 100. 0 takes the likeliest token.
        dynatemp_range: The temperature moves this much, 0 to 100, to both sides (at least to 0) with the entropy of the
            tokens left: up when it is high; 0 is off (as in llama.cpp).
        dynatemp_exponent: Power of the entropy's share of the largest one possible in that, 0 to 100.
        top_k: Keep the ``top_k`` likeliest tokens; 0, or vLLM's -1, keeps all (Fan et al., "Hierarchical neural story
            generation", 2018).
        top_p: Keep the likeliest tokens until they hold this much probability, 0 to 1; 1 keeps all (Holtzman et al., "The
            curious case of neural text degeneration", 2019).
        min_p: Keep tokens with at least this fraction of the likeliest token's probability, 0 to 1; 0 keeps all (Nguyen et
            al., "Turning up the heat: min-p sampling", 2024).
        typical_p: Keep the tokens whose surprise is nearest the entropy until they hold this much probability, 0 to 1; 1
            keeps all (Meister et al., "Locally typical sampling", 2022).
        top_n_sigma: Keep tokens whose logit is at most this many standard deviations of the logits below the largest, up to
            100; 0 and below (to -1) keep all (Tang et al., "Top-n-sigma: not all logits are you need", 2024).
        epsilon_cutoff: Keep tokens of at least this probability, 0 to 1 (Hewitt et al., "Truncation sampling as language
            model desmoothing", 2022). The likeliest always stays.
        eta_cutoff: Keep tokens with probability of at least min(eta, sqrt(eta) exp(-entropy)), 0 to 1 (the same paper).
        xtc_probability: How often, 0 to 1, all tokens of probability ``xtc_threshold`` or more except the least likely of
            them are dropped ("Exclude top choices", P. E. Weidmann, 2024).
        xtc_threshold: See there, 0 to 1.
        mirostat: 1 or 2 keeps the surprise of the tokens chosen near a target; 0 is off (Basu et al., "Mirostat: a neural
            text decoding algorithm that directly controls perplexity", 2021).
        mirostat_tau: Mirostat's target in bits a token, 0 to 100.
        mirostat_eta: Mirostat's learning rate, 0 to 10.
        min_keep: Each of the filters above leaves at least this many tokens, if it had them.
        repetition_penalty: Divides positive logits and multiplies negative ones of tokens that occurred in the
            window, 0.01 to 100; 1 changes nothing (Keskar et al., "CTRL", 2019).
        frequency_penalty: Subtracted from a token's logit for each time that it occurred in the window, -100 to 100.
        presence_penalty: Subtracted from a token's logit if it occurred in the window, -100 to 100.
        repetition_window: How many of the last tokens, prompt included, these three look at; -1 is all, 0 is none.
        dry_multiplier: A token that would go on with a repetition of L tokens, ``dry_allowed_length`` or more, loses
            ``dry_multiplier * dry_base ** (L - dry_allowed_length)``, 0 to 100; 0 is off ("DRY: don't repeat yourself",
            P. E. Weidmann, 2024).
        dry_base: See there, 1 to 100.
        dry_allowed_length: See there, 0 or more.
        dry_range: How many of the last tokens, prompt included, DRY looks at; -1 is all, 0 is none.
        dry_sequence_breakers: Texts across which DRY sees no repetition.
        no_repeat_ngram_size: No sequence of this many tokens, prompt included, occurs twice; 0 is off (Paulus et al., "A
            deep reinforced model for abstractive summarization", 2017).
        logit_bias: Added to the logits of tokens: a dict from token id (as an integer, or in digits as
            JSON has it) to a number up to 1e6; -inf rules the token out.
        bad_words: Texts that are not generated, as the tokens that they are encoded in.
        allowed_token_ids: The only tokens that may be chosen; None allows all.
        logits_processors: Functions of (token ids of prompt and answer so far, logits float32 [n_vocab] that they may
            change) that return the logits; -inf rules a token out.
        samplers: The samplers to apply, in this order, each at most once; None is ``gumba.sampling_params.SAMPLERS``. Those not
            named do nothing.
        seed: 0 to 2**64 - 1. The same seed gives the same tokens, alone or beside other requests. None draws a new one.
        stop: A string, or several, that end the text, which then excludes them.
        include_stop_str_in_output: The text ends with the stop string instead.
        stop_token_ids: Token ids that end the text like the model's own end-of-generation tokens.
        ignore_eos: Go on after an end-of-generation token.
        skip_special_tokens: Leave special tokens out of the text.
        logprobs: Return log-probabilities of the tokens chosen, and of this many likeliest ones at each place, 0 to 1000:
            of the model's own logits, before any of the above. None returns none.
        prompt_logprobs: The same of the prompt's tokens.
        priority: Requests with lower numbers come first, -2**31 to 2**31 - 1.
        structured_outputs: What the answer must look like; a dict of ``StructuredOutputsParams``' fields will do.
        prompt_lookup_tokens: Guess up to this many tokens, 0 to 1024, from what followed the last tokens earlier on, and
            check them in one step: the same answer, sooner (Saxena, "Prompt lookup decoding", 2023); 0 is off.
        cache_prompt: Start from what other requests computed of this prompt, and let others start from it.
        context_shift: Where the context is full go on instead of ending: of the tokens behind the first ``n_keep`` the older
            half is forgotten, and what is left is read anew.
        n_keep: First tokens that are never forgotten then, 0 or more; -1 is the whole prompt. The very first ones matter
            most (Xiao et al., "Efficient streaming language models with attention sinks", 2023).
        token_healing: Write the prompt's last token anew, as the beginning of a longer one perhaps (not with
            ``structured_outputs``, nor in a chat, whose template ends the prompt).
        detokenize: vLLM has it; only True is taken, since the text is always made.

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
                f"detokenize: expected True, found {show(detokenize)}; the text is always made, "
                "token_ids of an output are there too"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default == ():  # vLLM's way to say none
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
    """What searches have in common with ``SamplingParams``."""

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
    """How contrastive search goes (Su et al., "A contrastive framework for neural text generation", 2022).

    Args:
        penalty_alpha: What being alike costs, 0 to 1: of the ``top_k`` likeliest tokens the one with the largest
            ``(1 - penalty_alpha) * probability - penalty_alpha * cosine`` is taken, where the cosine is the largest one between
            the token's hidden state and those before. 0 takes the likeliest.
        top_k: Tokens compared, 1 to 1024; each of them is computed.
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
    """How beam search goes: the likeliest whole answers, found by keeping the best ``beam_width`` partial ones.

    Args:
        beam_width: Partial answers kept at each step, 1 to 1024.
        n: Best answers returned, 1 to ``beam_width``.
        max_tokens: Most tokens to generate, 1 or more; None goes on to the end of the context.
        min_tokens: End-of-generation and stop tokens are ruled out before this many tokens, 0 to ``max_tokens``.
        length_penalty: An answer's score is the sum of its log-probabilities divided by its length to this power, -100 to
            100; above 0 favours longer answers (Wu et al., "Google's neural machine translation system", 2016).
        early_stopping: True ends when ``beam_width`` answers are complete; False when none better seems likely; "never"
            when none better is possible.
        num_groups: Groups that the beams are split in evenly, 1 to ``beam_width`` (Vijayakumar et al., "Diverse beam
            search", 2016).
        diversity_penalty: Subtracted from a token's score for each time that earlier groups chose it in this step, 0 to 100.
        temperature: Divides the logits before their log-probabilities are taken, 0 to 100; 0 leaves them, as 1 does.
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


def _bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias in the order of the ids; from a mapping or from such pairs."""
    expected = f"{name}: expected a dict from token ids to numbers, found {show(value)}"
    if isinstance(value, (str, bytes)) or not is_iterable(value):
        raise RequestError(expected)
    found: dict[int, float] = {}
    for pair in value.items() if isinstance(value, Mapping) else value:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise RequestError(expected)
        token = require_count(name, _token(pair[0]), 0)
        if token in found:
            raise RequestError(f"{name}: expected each token id once, found {token} twice")
        banned = isinstance(pair[1], Real) and pair[1] == -math.inf
        found[token] = -math.inf if banned else require_number(name, pair[1], -1e6, 1e6)
    return tuple(sorted(found.items()))


def _token(key: Any) -> Any:
    """A token id; the keys of JSON objects are texts."""
    digits = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 20
    return int(key) if digits else key


def _samplers(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not is_iterable(value):
        raise RequestError(f"{name}: expected a list of names, found {show(value)}")
    found: list[str] = []
    for item in value:
        sampler = _SAMPLER_ALIASES.get(item, item) if isinstance(item, str) else item
        if not isinstance(sampler, str) or sampler not in SAMPLERS:
            raise RequestError(f"{name}: expected names among {', '.join(SAMPLERS)}, found {show(item)}")
        if sampler in found:
            raise RequestError(f"{name}: expected each name once, found {show(item)} again")
        found.append(sampler)
    return tuple(found)


def _callables(name: str, value: Any) -> tuple[LogitsProcessor, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not is_iterable(value):
        raise RequestError(f"{name}: expected a list of functions, found {show(value)}")
    found = tuple(value)
    for item in found:
        if not callable(item):
            raise RequestError(f"{name}: expected functions, found {show(item)}")
    return found


def _structured(name: str, value: Any) -> StructuredOutputsParams | None:
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
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
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
