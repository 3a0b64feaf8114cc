"""Generation with transformers' keywords of ``generate``: searches, samples, and its order of logits processors (5.24)."""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gumba.compat.transformers import processors
from gumba.compat.transformers.arrays import as_kind
from gumba.compat.transformers.keywords import SAMPLING
from gumba.errors import RequestError, UnsupportedError
from gumba.llm.llm import LLM
from gumba.sampling_params import BeamSearchParams, ContrastiveSearchParams, SamplingParams
from gumba.validation import require_boolean, require_count, require_number, require_strings, show

log = logging.getLogger("gumba.compat.transformers")

#: transformers' order of samplers.
_SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
#: Keywords that beam search and contrastive search do not support.
_NOT_IN_SEARCHES = (
    "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "stop_strings", "max_time", "stopping_criteria", "logits_processor",
    "prefix_allowed_tokens_fn", "streamer",
)  # fmt: skip

_seeds: random.Random = secrets.SystemRandom()


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Derive the seeds of all later calls without one from ``seed``. ``deterministic`` has no effect: gumba always is."""
    global _seeds
    _seeds = random.Random(require_count("seed", seed, 0, 2**64 - 1))


@dataclass(frozen=True)
class Row:
    """A prompt: its token ids, its number of tokens for length limits, and the ids with padding (None: without padding)."""

    ids: list[int]
    n_counted: int
    padded: list[int] | None = None


class Plan:
    """The keywords of one call, resolved for one model.

    Args:
        llm: The model.
        options: Keywords, checked and merged.
        default_new_tokens: Maximum number of new tokens if no keyword gives one.

    Raises:
        RequestError: A value has the wrong type or is out of range.
        UnsupportedError: Keywords that gumba cannot combine.
    """

    def __init__(self, llm: LLM, options: Mapping[str, Any], default_new_tokens: int) -> None:
        self._llm, self._options, self._default = llm, dict(options), default_new_tokens
        self._n_vocab = llm.tokenizer.n_vocab
        self.n = require_count("num_return_sequences", options.get("num_return_sequences", 1), 1)
        self.beams = require_count("num_beams", options.get("num_beams", 1), 1)
        self.samples = require_boolean("do_sample", options.get("do_sample", False))
        self.streamer = options.get("streamer")
        if self.streamer is not None and not (hasattr(self.streamer, "put") and hasattr(self.streamer, "end")):
            raise RequestError(f"streamer: expected an object with put and end, found {show(self.streamer)}")
        alpha = require_number("penalty_alpha", options.get("penalty_alpha", 0.0), 0.0, 1.0)
        self.contrastive = not self.samples and self.beams == 1 and alpha > 0
        ends: object = options.get("eos_token_id")
        ends = ends.tolist() if hasattr(ends, "tolist") else ends
        #: Tokens that end an answer; None: the file's. A negative id is none, as in transformers.
        self.ends: list[int] | None = None
        if ends is not None and ends != []:
            listed = [ends] if isinstance(ends, int) else list(ends) if isinstance(ends, list | tuple | set) else ends
            if isinstance(listed, list):
                listed = [token for token in listed if not isinstance(token, int) or token >= 0]
            self.ends = [] if listed == [] else processors.token_ids("eos_token_id", listed, self._n_vocab)
        self._check()

    def _check(self) -> None:
        if self.beams > 1:
            if self.samples:
                raise UnsupportedError("num_beams: gumba's beam search does not sample: expected do_sample=False")
            if self.n > self.beams:
                raise RequestError(f"num_return_sequences: expected at most num_beams {self.beams}, found {self.n}")
        elif self.n > 1 and not self.samples and self.streamer is None:
            raise RequestError(
                f"num_return_sequences: {self.n} different answers need do_sample=True or num_beams, found neither"
            )
        if self.beams > 1 or self.contrastive:
            for name in _NOT_IN_SEARCHES:
                value = self._options.get(name)
                if value is not None and not (isinstance(value, list | tuple) and not value):
                    raise UnsupportedError(
                        f"{name}: gumba does not support it with num_beams or penalty_alpha, found {show(value)}"
                    )

    @property
    def _end_ids(self) -> list[int]:
        return sorted(self._llm.tokenizer.eog_ids) if self.ends is None else self.ends

    @property
    def pad(self) -> int:
        """The token that pads rows after the end of an answer."""
        given = self._options.get("pad_token_id")
        if given is not None:
            return processors.token_ids("pad_token_id", given, self._n_vocab)[0]
        tokenizer = self._llm.tokenizer
        known: list[int | None] = [tokenizer.pad_id, *(self.ends or []), tokenizer.eos_id]
        return next((token for token in known if token is not None), 0)

    @property
    def infers_mask(self) -> bool:
        """Whether padding is recognised by its token: there is one, and it does not end answers."""
        given = self._options.get("pad_token_id")
        ends: list[int] | list[int | None] = [self._llm.tokenizer.eos_id] if self.ends is None else self.ends
        return (given is not None or self._llm.tokenizer.pad_id is not None) and self.pad not in ends

    def new_tokens(self, n_counted: int) -> tuple[int, int]:
        """Maximum and minimum number of new tokens after ``n_counted`` tokens of input."""
        options = self._options
        most, least = options.get("max_new_tokens"), options.get("min_new_tokens")
        if most is None and options.get("max_length") is not None:
            most = require_count("max_length", options["max_length"], 1) - n_counted
            if most < 1:
                raise RequestError(f"max_length: the input has {n_counted} tokens already; set max_new_tokens instead")
        most = self._default if most is None else require_count("max_new_tokens", most, 1)
        if least is None and options.get("min_length") is not None:
            least = max(0, require_count("min_length", options["min_length"], 0) - n_counted)
        least = 0 if least is None else require_count("min_new_tokens", least, 0)
        if least > most:
            log.warning("min_new_tokens: %d, but at most %d tokens are generated", least, most)
        return most, min(least, most)

    def answers(self, rows: Sequence[Row]) -> list[list[list[int]]]:
        """Token ids of the ``n`` answers to each row, ends of generation included."""
        if self.beams > 1:
            return [self._beams(row) for row in rows]
        if self.contrastive:
            return [[self._contrastive(row)] for row in rows]
        samples = [self._sample(row, i) for i, row in enumerate(rows) for _ in range(self.n)]
        seeds = self._seeds(len(rows))
        params = [replace(sample[0], seed=seed) for sample, seed in zip(samples, seeds)]
        prompts = [row.ids for row in rows for _ in range(self.n)]
        results = self._llm.generate(prompts, params)
        answers = []
        for result, (answer_params, stop) in zip(results, samples):
            self._warn_if_full(result.finish_reason, len(result.token_ids), answer_params.max_tokens)
            answers.append(result.token_ids if stop is None else stop.without_end(result.token_ids))
        return [answers[i : i + self.n] for i in range(0, len(answers), self.n)]

    def streamed(self, row: Row, prompt: list[list[int]], kind: str = "np") -> list[int]:
        """The answer to a row; the streamer receives its tokens as they come, and the end also after an error.

        Args:
            row: The prompt.
            prompt: The streamer's first value, [1, n].
            kind: Type of the streamer's values: int64 arrays ("np") or PyTorch tensors ("pt").
        """
        params, stop = self._sample(row, 0)
        params = replace(params, seed=self._seeds(1)[0])
        streamer: Any = self.streamer
        answer: list[int] = []
        reason = None
        try:
            streamer.put(as_kind(np.array(prompt, np.int64), kind))
            for output in self._llm.stream(row.ids, params):
                reason = output.finish_reason or reason
                if output.token_id is not None:
                    answer.append(output.token_id)
                    if stop is None or len(stop.without_end(answer)) == len(answer):
                        streamer.put(as_kind(np.array([output.token_id], np.int64), kind))
        finally:
            streamer.end()
        self._warn_if_full(reason, len(answer), params.max_tokens)
        return answer if stop is None else stop.without_end(answer)

    def _warn_if_full(self, reason: str | None, count: int, most: int | None) -> None:
        if reason == "length" and most is not None and count < most:
            log.warning(
                "the context of %d tokens is full after %d new ones: load the model with a larger n_ctx",
                self._llm.model.n_ctx,
                count,
            )

    def _seeds(self, n_rows: int) -> list[int]:
        seed = self._options.get("seed")
        if seed is None:
            return [_seeds.getrandbits(64) for _ in range(n_rows * self.n)]
        seed = require_count("seed", seed, 0, 2**64 - 1)
        return [(seed + i) % 2**64 for _ in range(n_rows) for i in range(self.n)]

    def _shared(self, row: Row) -> dict[str, Any]:
        """The parameters that all decoding methods share."""
        most, least = self.new_tokens(row.n_counted)
        return {
            "max_tokens": most,
            "min_tokens": least,
            "stop_token_ids": self.ends or (),
            "ignore_eos": self.ends is not None,
        }

    def _beams(self, row: Row) -> list[list[int]]:
        options = self._options
        params = BeamSearchParams(
            beam_width=self.beams,
            n=self.n,
            length_penalty=options.get("length_penalty", 1.0),
            early_stopping=options.get("early_stopping", False),
            num_groups=options.get("num_beam_groups", 1),
            diversity_penalty=options.get("diversity_penalty", 0.0),
            repetition_penalty=options.get("repetition_penalty", 1.0),
            no_repeat_ngram_size=options.get("no_repeat_ngram_size", 0),
            **self._shared(row),
        )
        (result,) = self._llm.beam_search([row.ids], params)
        return [list(sequence.token_ids) for sequence in result.sequences]

    def _contrastive(self, row: Row) -> list[int]:
        options = self._options
        for name, same in (("repetition_penalty", 1), ("no_repeat_ngram_size", 0)):
            if options.get(name, same) != same:
                raise UnsupportedError(
                    f"{name}: gumba does not support it with penalty_alpha, found {show(options[name])}"
                )
        params = ContrastiveSearchParams(
            penalty_alpha=options["penalty_alpha"], top_k=options.get("top_k", 50), **self._shared(row)
        )
        (result,) = self._llm.contrastive_search([row.ids], params)
        return list(result.token_ids)

    def _sample(self, row: Row, index: int) -> tuple[SamplingParams, processors.Stop | None]:
        """Parameters of a sampled or greedy answer, and its stopping criteria."""
        options, shared = self._options, self._shared(row)
        stop = self._stop(row)
        changes = self._processors(row, index, shared)
        penalty = require_number("repetition_penalty", options.get("repetition_penalty", 1.0), 0.01, 100.0)
        if changes.own:
            penalty = 1.0
        if stop is not None and shared["min_tokens"]:
            ends = self._end_ids
            changes.functions.append(processors.not_before(len(row.ids) + shared["min_tokens"], ends))
            shared["min_tokens"] = 0
        values = {name: options.get(name, default) for name, default in SAMPLING.items()}
        if not self.samples:
            values["temperature"] = 0
        params = SamplingParams(
            **values,
            **shared,
            samplers=_SAMPLERS,
            repetition_window=-1,
            repetition_penalty=penalty,
            no_repeat_ngram_size=options.get("no_repeat_ngram_size", 0),
            prompt_lookup_tokens=options.get("prompt_lookup_num_tokens", 0),
            stop=require_strings("stop_strings", options.get("stop_strings", ())),
            logits_processors=[*changes.functions, *([] if stop is None else [stop])],
        )
        return params, stop

    def _stop(self, row: Row) -> processors.Stop | None:
        listed, most = _functions("stopping_criteria", self._options), self._options.get("max_time")
        if not listed and most is None:
            return None
        ends = self._end_ids
        if not ends:
            raise UnsupportedError(
                "stopping_criteria, max_time: the model has no end-of-generation token; set eos_token_id"
            )
        deadline = None if most is None else time.monotonic() + require_number("max_time", most, 0.0, 1e9)
        before = self._start(row.ids)
        return processors.Stop(listed, deadline, ends[0], len(before), row.padded or before)

    def _start(self, ids: list[int]) -> list[int]:
        """The prompt's tokens that processors receive: for an encoder-decoder only the start token."""
        start = self._llm.model.config.start_token
        return ids if start is None else [start]

    def _processors(self, row: Row, index: int, shared: Mapping[str, Any]) -> _Changes:
        """Logits processors in transformers' order, for keywords without a field of ``SamplingParams``."""
        options, n_vocab, n_prompt = self._options, self._n_vocab, len(self._start(row.ids))
        ends = self._end_ids
        before: list[processors.Processor] = []
        after: list[processors.Processor] = []
        if options.get("sequence_bias"):
            before.append(processors.sequence_bias(processors.biases(options["sequence_bias"], n_vocab)))
        if options.get("bad_words_ids") is not None:
            words = processors.bad_words(options["bad_words_ids"], ends, n_vocab)
            before.append(processors.sequence_bias(words))  # -inf stays -inf whatever comes next
        if options.get("prefix_allowed_tokens_fn") is not None:
            for function in _functions("prefix_allowed_tokens_fn", options):
                before.append(processors.allowed_only(function, index, n_vocab))
        if options.get("forced_bos_token_id") is not None:
            (token, *_) = processors.token_ids("forced_bos_token_id", options["forced_bos_token_id"], n_vocab)
            after.append(processors.only_at(1, token))
        if options.get("forced_eos_token_id") is not None:
            (token, *_) = processors.token_ids("forced_eos_token_id", options["forced_eos_token_id"], n_vocab)
            after.append(processors.only_at(n_prompt + shared["max_tokens"] - 1, token))
        if options.get("exponential_decay_length_penalty") is not None:
            start, factor = processors.decay(options["exponential_decay_length_penalty"])
            after.append(processors.longer_penalty(n_prompt + start, factor, ends))
        if options.get("suppress_tokens") is not None:
            after.append(
                processors.not_before(
                    1 << 62, processors.token_ids("suppress_tokens", options["suppress_tokens"], n_vocab)
                )
            )
        if options.get("begin_suppress_tokens") is not None:
            tokens = processors.token_ids("begin_suppress_tokens", options["begin_suppress_tokens"], n_vocab)
            after.append(processors.not_at(n_prompt, tokens))
        given = _functions("logits_processor", options)
        after += [processors.foreign(function, n_prompt, row.padded or self._start(row.ids)) for function in given]
        penalty = options.get("repetition_penalty", 1.0)
        own = bool(after) and penalty != 1.0
        return _Changes([*before, *([processors.repetition(penalty)] if own else []), *after], own)


@dataclass
class _Changes:
    """Logits processors; ``own``: the repetition penalty is among them."""

    functions: list[processors.Processor]
    own: bool


def _functions(name: str, options: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """A function, or several, as a list. Raises RequestError for other values."""
    given = options.get(name)
    listed = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    for function in listed:
        if not callable(function):
            raise RequestError(f"{name}: expected functions, found {show(function)}")
    return listed
