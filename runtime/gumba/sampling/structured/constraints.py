"""Constrained generation: which tokens may come next so that the whole text matches a schema, expression or grammar.

The masks come from llguidance (MIT, one 3 MB abi3 wheel, no dependencies): derivatives of regular expressions under an
Earley parser, 0.1 to 0.6 ms a token for 151,851 tokens (grammars: see gbnf_lark.py). Own code would have to redo both; xgrammar
needs torch. It is the extra ``gumba[structured]``, because its wheels ask for a newer glibc (2.31) than numba's.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from gumba.errors import RequestError
from gumba.sampling.structured.gbnf_lark import gbnf_to_lark
from gumba.sampling.structured.json_pointers import Schema
from gumba.sampling.structured.json_schema import check_schema, locate
from gumba.sampling.structured.token_tables import VocabularyTables, library, vocabulary_tables
from gumba.sampling_params import StructuredOutputsParams
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

log = logging.getLogger("gumba")

#: Compiled constraints kept per vocabulary.
CACHE_SIZE = 64
#: Longest regular expression, and most bytes of all choices together.
MAX_REGEX, MAX_CHOICES = 20_000, 200_000
#: Largest count in ``{m,n}``.
MAX_REPEAT = 65_536
#: Whitespace between the parts of JSON is limited: otherwise a model could generate whitespace forever.
WHITESPACE = r" |\n[ \t]{0,32}"
#: Characters allowed after a backslash in JSON. Not \\u, which the library does not decode: "\\u0061" would not be property "a".
ESCAPES = 'nrbtf\\"'

#: The library's error for a oneOf whose alternatives it cannot distinguish.
NOT_APART = "oneOf constraints are not supported"
#: Allow every token that matches, not only the longest one of forced text.
NO_FORCING = '%llguidance {"no_forcing": true}\n'


class Constraint:
    """The state of one constrained text. It belongs to one sequence; ``fork`` makes independent copies.

    ``mask`` and ``finished`` may be read any number of times between two tokens. Not thread-safe.
    """

    def __init__(self, matcher: Any, tables: VocabularyTables, tokenizer: Tokenizer, ended: bool = False) -> None:
        self._matcher = matcher
        self._tables = tables
        self._tokenizer = tokenizer
        self._ended = ended
        self._mask: npt.NDArray[np.uint32] | None = None
        self._finished = ended

    def mask(self) -> npt.NDArray[np.uint32]:
        """The tokens that may come next: uint32 [ceil(n_vocab / 32)], bit ``i % 32`` of word ``i // 32``; read-only.

        End-of-generation tokens are in it where the text is complete, other control tokens never. Raises RequestError when
        following the constraint takes too much memory or time, or no token can follow.
        """
        if self._mask is None:
            self._mask, self._finished = self._compute()
            self._mask.setflags(write=False)
        return self._mask

    @property
    def finished(self) -> bool:
        """Whether the text is complete and cannot continue: the mask has only end-of-generation tokens."""
        self.mask()
        return self._finished

    def accept(self, token: int) -> None:
        """Advance by one token. Raises RequestError, and does not change, for a token that the mask rules out."""
        token = self._tokenizer.check_id(token)
        if not self.mask()[token // 32] >> np.uint32(token % 32) & np.uint32(1):
            raise RequestError(
                f"token {token} ({show(self._tokenizer.token_bytes(token))}) does not continue the constrained text"
            )
        if token in self._tables.eog_ids:
            self._ended = True
        elif not self._matcher.consume_token(token):
            raise _too_complex(self._matcher)
        self._mask = None

    def fork(self) -> Constraint:
        """An independent copy."""
        return Constraint(self._matcher.deep_copy(), self._tables, self._tokenizer, self._ended)

    def _compute(self) -> tuple[npt.NDArray[np.uint32], bool]:
        tables = self._tables
        if self._ended:
            return tables.end_bits.copy(), True
        words = np.zeros(len(tables.text_bits), np.uint32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            raise _too_complex(self._matcher)
        words &= tables.text_bits
        going_on = bool(words.any())
        if self._matcher.is_accepting():
            words |= tables.end_bits
        elif not going_on:
            raise RequestError("structured_outputs: no token of this vocabulary continues the constrained text")
        return words, not going_on


def compile_constraint(spec: StructuredOutputsParams, tokenizer: Tokenizer) -> Constraint:
    """The constraint of ``spec``, at the start of a text.

    Expressions match the whole text, in the syntax of Rust's regex crate (which is Python's without lookaround and
    backreferences; ``\\d`` is ``[0-9]``). Any thread may call it; the last constraints of each vocabulary are
    kept compiled. Raises RequestError naming the field and, where it has one, the place: for what is malformed, not
    supported, too large, or matches no text at all.
    """
    tables = vocabulary_tables(tokenizer)
    kind, text = _source(spec)
    whitespace = WHITESPACE if spec.whitespace_pattern is None else _checked_regex(spec.whitespace_pattern)
    key = (kind, text, whitespace)
    with tables.lock:
        matcher = tables.compiled.get(key)
        if matcher is not None:
            tables.compiled.move_to_end(key)
            return Constraint(matcher.deep_copy(), tables, tokenizer)
    matcher = _compile(kind, text, whitespace, tables)
    constraint = Constraint(matcher.deep_copy(), tables, tokenizer)
    try:
        constraint.mask()
    except RequestError as error:
        raise RequestError(f"{kind}: expected something that a text can match ({error})") from None
    with tables.lock:
        tables.compiled[key] = matcher
        while len(tables.compiled) > CACHE_SIZE:
            tables.compiled.popitem(last=False)
    return constraint


def _source(spec: StructuredOutputsParams) -> tuple[str, str]:
    """(field, canonical text) of a request."""
    if spec.json is not None:
        return "json", spec.json if isinstance(spec.json, str) else json.dumps(spec.json)
    if spec.regex is not None:
        return "regex", spec.regex
    if spec.choice is not None:
        return "choice", json.dumps(list(spec.choice))
    if spec.grammar is not None:
        return "grammar", spec.grammar
    return "json_object", ""


def _compile(kind: str, text: str, whitespace: str, tables: VocabularyTables) -> Any:
    """The library's matcher at its start. Raises RequestError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{kind}: character {error.start} is half of a surrogate pair: not Unicode text") from None
    if kind == "json_object":
        matcher = _matcher(_json_grammar({"type": "object"}, whitespace), tables)
        if matcher.is_error():
            raise RequestError(f"whitespace_pattern: {_reason(matcher.get_error())}")
        return matcher
    if kind == "json":
        schema = check_schema(text)
        matcher = _matcher(_json_grammar(schema, whitespace), tables)
        if NOT_APART in matcher.get_error():
            log.warning(
                "json: oneOf is enforced like anyOf: its alternatives do not exclude each other by type or constant"
            )
            matcher = _matcher(_json_grammar(schema, whitespace, one_of_as_any_of=True), tables)
        if matcher.is_error():
            raise locate(
                schema,
                lambda part: _matcher(_json_grammar(part, whitespace, one_of_as_any_of=True), tables).get_error(),
            )
        return matcher
    if kind == "grammar":
        matcher = _matcher(NO_FORCING + gbnf_to_lark(text), tables)
    else:
        expression = _checked_regex(text) if kind == "regex" else _choices(json.loads(text))
        matcher = _matcher(f"{NO_FORCING}start: /{library().regex_to_lark(expression, use_ascii='d')}/\n", tables)
    if matcher.is_error():
        raise RequestError(f"{kind}: {_reason(matcher.get_error())}")
    return matcher


def _matcher(grammar: str, tables: VocabularyTables) -> Any:
    """A matcher with limits: tens of milliseconds per compilation or step, tens of megabytes."""
    module = library()
    limits = module.LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )
    grammar = module.LLMatcher.grammar_from_lark(grammar)
    return module.LLMatcher(tables.tokenizer, grammar, log_level=0, limits=limits)


def _json_grammar(schema: Schema | bool, whitespace: str, one_of_as_any_of: bool = False) -> str:
    options = {"whitespace_pattern": whitespace, "json_allowed_escapes": ESCAPES, "coerce_one_of": one_of_as_any_of}
    text = json.dumps({**(schema if isinstance(schema, dict) else {}), "x-guidance": options})
    return f"{NO_FORCING}start: %json {text}\n"


def _checked_regex(pattern: str) -> str:
    if len(pattern) > MAX_REGEX:
        raise RequestError(f"regex: {len(pattern)} characters, expected at most {MAX_REGEX}")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise RequestError("regex: ends in a backslash, expected an escape or two backslashes")
    # Escapes first, so that "\{" opens no count and "\x{41}" is none.
    for match in re.finditer(r"\\[xuUpP]\{[^}]*\}|\\.|\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}", pattern, re.DOTALL):
        for count in match.groups():
            if count and (len(count) > 9 or int(count) > MAX_REPEAT):
                raise RequestError(
                    f"regex: count {show(match.group())} at character {match.start()}, expected at most {MAX_REPEAT}"
                )
    return pattern


def _choices(choices: list[str]) -> str:
    try:
        size = sum(len(choice.encode()) for choice in choices)
    except UnicodeEncodeError as error:
        raise RequestError(f"choice: {show(error.object)} has half of a surrogate pair: not Unicode text") from None
    if size > MAX_CHOICES:
        raise RequestError(f"choice: {size} bytes of text, expected at most {MAX_CHOICES}")
    return "|".join(literal_regex(choice) for choice in dict.fromkeys(choices))


def literal_regex(text: str) -> str:
    """A regular expression that matches exactly this text."""
    return "".join(c if c.isascii() and c.isalnum() else rf"\u{{{ord(c):x}}}" for c in text)


def _reason(message: str) -> str:
    """The library's error message as one short line, without the source text that it repeats."""
    caret = re.search(r"^    (.*)\n    ( *)\^+$", message, re.MULTILINE)
    lines = [line for line in message.splitlines() if line and not line.startswith("<")]
    errors = [line[len("error: ") :] for line in lines if line.startswith("error: ")]
    reason = errors[-1] if errors else lines[0] if lines else "not understood"
    if "lookarounds not supported" in reason:
        reason = (
            "lookarounds, word boundaries and anchors inside an expression are not supported: it always matches whole"
        )
    reason = re.sub(r"^at \d+\(\d+\): ", "", reason)
    return reason[:300] + (f", at character {len(caret.group(2))}" if caret and errors else "")


def _too_complex(matcher: Any) -> RequestError:
    if "NoExtension" in matcher.get_error():
        return RequestError("structured_outputs: no text continues the constrained text")
    return RequestError(
        f"structured_outputs: the constraint is too complex to continue ({_reason(matcher.get_error())}); "
        "expected a simpler schema, expression or grammar"
    )
