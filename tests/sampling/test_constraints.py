"""Constrained generation: the text of random tokens under the mask is always valid, checked by independent oracles."""

from __future__ import annotations

import gc
import json
import random
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba import LLM, SamplingParams
from gumba.errors import RequestError
from gumba.sampling.structured import token_tables
from gumba.sampling.structured.constraints import Constraint, compile_constraint
from gumba.sampling_params import StructuredOutputsParams
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.tokenizer.vocabulary import TokenType

DATA = Path(__file__).parent.parent / "data"
VOCABULARIES = sorted(path.stem for path in DATA.glob("tokenizer_*.gguf"))
_loaded: dict[str, Tokenizer] = {}


def tokenizer_of(name: str) -> Tokenizer:
    if name not in _loaded:
        _loaded[name] = Tokenizer.from_gguf(DATA / f"{name}.gguf")
    return _loaded[name]


def allowed(constraint: Constraint, n_vocab: int) -> list[int]:
    mask = constraint.mask()
    assert mask.dtype == np.uint32 and mask.shape == ((n_vocab + 31) // 32,)
    bits = mask[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    return [int(token) for token in np.flatnonzero(bits)]


def sample(
    constraint: Constraint, tokenizer: Tokenizer, seed: int, wordy: int = 30, most: int = 2000
) -> tuple[bytes, list[int]]:
    """Random tokens to the end of generation; past ``wordy`` of them those that lead to an end soon are taken."""
    rng = random.Random(seed)
    ids: list[int] = []
    while len(ids) < most:
        tokens = allowed(constraint, tokenizer.n_vocab)
        ends = [token for token in tokens if token in tokenizer.eog_ids]
        texts = [token for token in tokens if token not in tokenizer.eog_ids]
        assert constraint.finished == (not texts)
        if ends and (not texts or len(ids) >= wordy or rng.random() < 0.2):
            assert set(ends) == tokenizer.eog_ids
            constraint.accept(rng.choice(ends))
            assert constraint.finished and set(allowed(constraint, tokenizer.n_vocab)) == tokenizer.eog_ids
            return tokenizer.decode_bytes(ids, continuation=True), ids
        closing = (
            [t for t in texts if tokenizer.token_bytes(t) in CLOSING]
            if len(ids) >= wordy and rng.random() < 0.8
            else []
        )
        token = rng.choice(closing or texts)
        constraint.accept(token)
        ids.append(token)
    raise AssertionError(f"no end after {tokenizer.decode_bytes(ids, continuation=True)!r}")


CLOSING = [bytes([byte]) for byte in b'"}])0ab:,@.com']
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["red", "green", 3, None]}, "minItems": 1, "maxItems": 3},
        "at": {"$ref": "#/$defs/point"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
    },
    "required": ["name", "age", "tags", "at"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "next": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]}},
            "required": ["x", "next"],
            "additionalProperties": False,
        }
    },
}


def check_point(value: Any) -> None:
    while value is not None:
        assert set(value) == {"x", "next"} and isinstance(value["x"], int | float) and not isinstance(value["x"], bool)
        value = value["next"]


def check_answer(text: str) -> None:
    value = json.loads(text)
    assert {"name", "age", "tags", "at"} <= set(value) <= set(SCHEMA["properties"])
    assert isinstance(value["name"], str) and len(value["name"]) <= 12
    assert type(value["age"]) is int and 0 <= value["age"] <= 130
    assert 1 <= len(value["tags"]) <= 3 and all(tag in ("red", "green", 3, None) for tag in value["tags"])
    check_point(value["at"])
    assert "code" not in value or re.fullmatch("[A-Z]{2}-[0-9]{1,3}", value["code"])


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_match_the_schema(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for spec in (SCHEMA, json.dumps(SCHEMA)):
        constraint = compile_constraint(StructuredOutputsParams(json=spec), tokenizer)
        for seed in range(20):
            check_answer(sample(constraint.fork(), tokenizer, seed)[0].decode())


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_are_json_objects(name: str) -> None:
    tokenizer = tokenizer_of(name)
    constraint = compile_constraint(StructuredOutputsParams(json_object=True), tokenizer)
    for seed in range(20):
        assert isinstance(json.loads(sample(constraint.fork(), tokenizer, seed, wordy=12)[0]), dict)


def follows(spec: dict[str, Any], text: str, name: str = "tokenizer_smollm") -> bool:
    """Whether a constraint takes the whole of ``text``."""
    tokenizer = tokenizer_of(name)
    constraint = compile_constraint(StructuredOutputsParams(**spec), tokenizer)
    try:
        for token in tokenizer.encode(text, False):
            constraint.accept(token)
    except RequestError:
        return False
    (end, *_) = tokenizer.eog_ids
    return bool(int(constraint.mask()[end // 32]) >> end % 32 & 1)


#: (schema, texts that are valid, texts that are not)
JSON_TEXTS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    # A name has one spelling, so that no other schema applies to it.
    (
        {"properties": {"age": {"type": "integer"}, "\"\n\u00e9": {"type": "null"}}},
        ['{"age":1}', '{"ag":"x"}', '{"\\"\\n\u00e9":null}'],
        ['{"age":"x"}', '{"\\u0061ge":"x"}', '{"ag\\u0065":"x"}', '{"\\"\\n\\u00e9":1}', '{"\\u0022\\n\u00e9":1}'],
    ),
    ({"patternProperties": {"^a": {"type": "null"}}}, ['{"ab":null,"b":1}'], ['{"ab":1}', '{"\\u0061":1}']),
    (
        {"type": "object", "properties": {"at": {"format": "date"}}},
        ['{"at":"2024-02-29"}', '{"at":"2000-02-29"}', '{"at":"0001-12-31"}'],
        ['{"at":"2023-02-29"}', '{"at":"1900-02-29"}', '{"at":"2023-04-31"}', '{"at":"0000-01-01"}'],
    ),
    ({"type": "string", "format": "date", "pattern": "^2"}, ['"2024-02-29"'], ['"1924-02-29"', '"2023-02-29"']),
    (
        {"$ref": "#/at/0", "at": [{"type": "string", "format": "date-time"}]},
        ['"2024-02-29T23:59:59Z"', '"2024-02-28t00:00:00.5+14:00"'],
        ['"2023-02-29T00:00:00Z"', '"2024-02-28T12:00:60Z"', '"2024-02-28T24:00:00Z"', '"2024-02-28T12:00:00"'],
    ),
    ({"type": "string", "format": "time"}, ['"23:59:59z"'], ['"22:10:60Z"', '"24:00:00Z"']),
    (
        {"minProperties": 2, "required": ["a"], "type": "object"},
        ['{"a":1,"b":2}'],
        ['{"a":1}', '{"a":1,"a":2}'],
    ),
    # Names: given, by a pattern, by their length.
    (
        {"additionalProperties": {"type": "integer"}, "propertyNames": {"$ref": "#/$defs/E"}, "type": "object",
         "$defs": {"E": {"enum": ["a", "b"], "type": "string"}}},
        ['{"a":1,"b":2}', "{}"],
        ['{"c":1}', '{"a":"x"}'],
    ),
    ({"type": "object", "propertyNames": {"pattern": "^x+$"}}, ['{"xx":[]}'], ['{"y":1}']),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, ['{"xx":1}'], ['{"xxx":1}']),
    # pydantic's pattern of a Decimal, and what sites require of passwords.
    (
        {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
        ['"1.5"', '".5"', '"-07"'],
        ['"."', '"+"', '""', '"1a"'],
    ),
    ({"type": "string", "pattern": r"^(?=.*[A-Z])(?=.*\d).{3,}$"}, ['"aB1"'], ['"ab1"', '"B1"', '"aBc"']),
    # What keywords that are not enforced mean for the number of items.
    ({"items": {"enum": ["a", "b"]}, "uniqueItems": True, "type": "array"}, ['["a","b"]'], ['["a","b","a"]']),
    ({"contains": {"type": "integer"}, "minContains": 2, "type": "array"}, ["[1,2]"], ["[]", "[1]"]),
    # Objects without further properties, across parts.
    (
        {"allOf": [{"$ref": "#/$defs/A"}], "properties": {"z": {"type": "integer"}}, "unevaluatedProperties": False,
         "type": "object", "$defs": {"A": {"properties": {"a": {"type": "string"}}, "required": ["a"]}}},
        ['{"a":"x","z":1}'],
        ['{"a":"x","z":1,"q":1}', '{"z":1}', '{"a":"x","z":"x"}'],
    ),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, ['{"a":1}'], ['{"b":1}']),
    ({"prefixItems": [{"type": "null"}], "unevaluatedItems": False, "type": "array"}, ["[null]"], ["[null,1]"]),
    # Formats that are annotations.
    ({"type": "string", "format": "phone"}, ['"x"'], ["1"]),
    ({"oneOf": [{"type": "string"}, {"type": "string", "format": "password"}]}, ['"x"'], ["1"]),
]  # fmt: skip

#: (schema, places that the warning names)
NOT_HELD: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
    ({"items": {"type": "object", "minProperties": 3, "required": ["a"]}}, "#/items/minProperties"),
    ({"properties": {"a": {"not": {"const": 1}}}}, "#/properties/a/not"),
    ({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {}, "type": "object"}, "#/if"),
    ({"dependentRequired": {"a": ["b"]}, "dependencies": {"a": ["c"]}}, "#/dependencies, #/dependentRequired"),
    ({"contains": {"type": "null"}, "maxContains": 1}, "#/contains"),
    ({"propertyNames": {"enum": ["a"]}, "properties": {"b": {}}}, "#/propertyNames"),
    ({"propertyNames": {"pattern": "^a", "maxLength": 3}}, "#/propertyNames"),
    ({"propertyNames": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "#/propertyNames"),
    ({"uniqueItems": False, "not": False, "if": True, "propertyNames": {"type": "string"}}, ""),
]


@pytest.mark.parametrize("index", range(len(JSON_TEXTS)))
def test_what_a_schema_allows(index: int) -> None:
    schema, valid, invalid = JSON_TEXTS[index]
    assert [text for text in valid if not follows({"json": schema}, text)] == []
    assert [text for text in invalid if follows({"json": schema}, text)] == []


@pytest.mark.parametrize("index", range(len(NOT_HELD)))
def test_a_warning_names_what_is_not_held(index: int, caplog: pytest.LogCaptureFixture) -> None:
    schema, places = NOT_HELD[index]
    compile_constraint(StructuredOutputsParams(json=schema), tokenizer_of("tokenizer_smollm"))
    [message] = [each.getMessage() for each in caplog.records if each.name == "gumba"] or [": "]
    assert message.split(": ")[-1] == places


def test_white_space_between_the_parts_of_json() -> None:
    """vLLM's name; " " is what llama.cpp's grammars allow."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False}
    for spec in ({"json": schema}, {"json_object": True}):
        for text, plain, blank in (
            ('{"a":1}', True, True), ('{ "a": 1 }', True, True), ('{\n  "a": 1}', True, False), ('{  "a":1}', False, False)
        ):  # fmt: skip
            assert follows(spec, text) == plain, text
            assert follows({**spec, "whitespace_pattern": " "}, text) == blank, text


def test_one_of_with_overlapping_alternatives_is_held_as_any_of(caplog: pytest.LogCaptureFixture) -> None:
    schema = {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 9}]}
    assert follows({"json": schema}, "5") and not follows({"json": schema}, "true")
    assert "oneOf is enforced like anyOf" in caplog.text


REGEXES = [
    "a+[bc]?", "^(ab|a)*$", r"\d{3}-\d{2,4}", "(?i)yes|no", r"[a-z]+@[a-z]+\.(com|org)", "é{2}\n?", "", "a|", r"\{\}[/\"]x",
    "(a+)+b", "^a|b$", r"[^\x00-\x7f]{1,3}", "(?:x{0,3}y){2}", ".{0,4}",
]  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_match_the_expression(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for pattern in filter(None, REGEXES):
        constraint = compile_constraint(StructuredOutputsParams(regex=pattern), tokenizer)
        for seed in range(12):
            text = sample(constraint.fork(), tokenizer, seed)[0].decode()
            assert re.fullmatch(pattern, text), (pattern, text)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_are_choices_and_every_choice_comes(name: str) -> None:
    tokenizer = tokenizer_of(name)
    choices = ["yes", "no", "not", 'a "b" \\ /c\n', "été 😀", "^.*$"]
    constraint = compile_constraint(StructuredOutputsParams(choice=choices), tokenizer)
    assert {sample(constraint.fork(), tokenizer, seed)[0].decode() for seed in range(150)} == set(choices)


def words(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The tokens that are text, worked out apart from the code under test."""
    plain = (TokenType.NORMAL, TokenType.BYTE, TokenType.USER_DEFINED)
    return {
        token: tokenizer.token_bytes(token)
        for token in range(tokenizer.n_vocab)
        if tokenizer.token_type(token) in plain
        and token not in tokenizer.eog_ids
        and tokenizer.token_bytes(token)
        and not (tokenizer.add_space_prefix and tokenizer.token_type(token) == TokenType.USER_DEFINED)
    }


def some(letters: str, low: int, high: int) -> list[str]:
    """Every text of these letters with ``low`` to ``high`` of them."""
    found, last = [""] if low == 0 else [], [""]
    for length in range(1, high + 1):
        last = [text + letter for text in last for letter in letters]
        found += last if length >= low else []
    return found


def nested(prefix: bool) -> str:
    """``(`` n times, one or two of a and b, ``)`` n times, for n up to 30; or what may begin so."""
    inner = "[ab]{1,2}" if not prefix else "(?:[ab]{1,2})?"
    rows = [rf"\({{{n}}}{inner}" + (rf"\){{{n}}}" if not prefix else "") for n in range(31)]
    rows += [rf"\({{{n}}}[ab]{{1,2}}\){{0,{n}}}" for n in range(31)] if prefix else []
    return "|".join(rows)


def finite(texts: list[str]) -> tuple[Any, Any]:
    members = {text.encode() for text in texts}
    starts = {text[:end] for text in members for end in range(len(text) + 1)}
    return members.__contains__, starts.__contains__


def matching(member: str, prefix: str) -> tuple[Any, Any]:
    return re.compile(member.encode()).fullmatch, re.compile(prefix.encode()).fullmatch


#: (request, whether a text is in the language, whether it begins one that is)
LANGUAGES: list[tuple[dict[str, Any], tuple[Any, Any]]] = [
    ({"choice": ["a", "ab", "abc", "é", "  b", "\nx"]}, finite(["a", "ab", "abc", "é", "  b", "\nx"])),
    (
        {"regex": "(a|b){1,7}é?"},
        finite([text + end for text in some("ab", 1, 7) for end in ("", "é")]),
    ),
    ({"json": {"enum": ["a b", 1, 10, True]}}, finite(['"a b"', "1", "10", "true"])),
    ({"grammar": 'root ::= "(" root ")" | [ab]{1,2}'}, matching(nested(False), nested(True))),
    ({"grammar": 'root ::= [ab]* "a"'}, matching("[ab]*a", "[ab]*")),
    ({"grammar": 'root ::= ws "a" ws\nws ::= ([ \\n] ws)?'}, matching("[ \n]*a[ \n]*", "[ \n]*(a[ \n]*)?")),
    ({"grammar": 'root ::= root "b" | "a"'}, matching("ab*", "(ab*)?")),
]  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("index", range(7))
def test_masks_are_what_brute_force_finds(name: str, index: int) -> None:
    tokenizer = tokenizer_of(name)
    spec, (member, prefix) = LANGUAGES[index]
    start = compile_constraint(StructuredOutputsParams(**spec), tokenizer)
    pieces = words(tokenizer)
    for seed in range(8):
        constraint, text, rng = start.fork(), b"", random.Random(seed)
        for _ in range(6):
            expected = {token for token, piece in pieces.items() if prefix(text + piece)}
            if member(text):
                expected |= tokenizer.eog_ids
            assert set(allowed(constraint, tokenizer.n_vocab)) == expected, (spec, text)
            going_on = sorted(expected - tokenizer.eog_ids)
            assert constraint.finished == (not going_on)
            if not going_on:
                break
            token = rng.choice(going_on)
            constraint.accept(token)
            text += pieces[token]


ARITHMETIC = """
# sums of numbers and calls, with blanks
root ::= term (ws [-+*/] ws term)*
term ::= "-"? [0-9]+ | name "(" ( root ("," ws root)* )? ")"   # a call
       | "(" root ")" | "\\"" [^"]{0,3} "\\""
name ::= "sin" | "si" | "s" [a-z]?
ws ::= ( " " ws )?
"""


def reads_sum(text: str, at: int = 0) -> set[int]:
    """The places where a sum that begins ``at`` may end."""
    ends, waiting = set(), list(reads_term(text, at))
    while waiting:
        end = waiting.pop()
        if end not in ends:
            ends.add(end)
            sign = re.compile(" *[-+*/]( *)").match(text, end)
            if sign:
                waiting += [e for space in range(sign.start(1), sign.end() + 1) for e in reads_term(text, space)]
    return ends


def reads_term(text: str, at: int) -> set[int]:
    ends = {
        at + n
        for m in [re.compile("-?([0-9]+)").match(text, at)]
        if m
        for n in range(m.start(1) + 1 - at, m.end() - at + 1)
    }
    quoted = re.compile('"[^"]{0,3}"').match(text, at)
    ends |= {quoted.end()} if quoted else set()
    for head in ("(", "sin(", "si(", *(f"s{c}(" for c in ["", *map(chr, range(97, 123))])):
        if text.startswith(head, at):
            inner = reads_sum(text, at + len(head))
            if head != "(":
                inner |= {at + len(head)}
                while (
                    more := {
                        e
                        for end in inner
                        if end > at + len(head)
                        for comma in [re.compile(", *").match(text, end)]
                        if comma
                        for e in reads_sum(text, comma.end())
                    }
                    - inner
                ):
                    inner |= more
            ends |= {end + 1 for end in inner if text.startswith(")", end)}
    return ends


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_match_the_recursive_grammar(name: str) -> None:
    tokenizer = tokenizer_of(name)
    constraint = compile_constraint(StructuredOutputsParams(grammar=ARITHMETIC), tokenizer)
    seen = set()
    for seed in range(25):
        text = sample(constraint.fork(), tokenizer, seed, wordy=15)[0].decode()
        assert len(text) in reads_sum(text), text
        seen |= set(text)
    assert set('(",0') <= seen


def test_a_token_outside_the_mask_is_refused_and_changes_nothing() -> None:
    tokenizer = tokenizer_of("tokenizer_smollm")
    constraint = compile_constraint(StructuredOutputsParams(regex="ab?"), tokenizer)
    before = allowed(constraint, tokenizer.n_vocab)
    (end, *_), b = tokenizer.eog_ids, tokenizer.encode("b")[0]
    for token in (b, end):
        with pytest.raises(RequestError, match=f"token {token} .*does not continue the constrained text"):
            constraint.accept(token)
        assert allowed(constraint, tokenizer.n_vocab) == before
    for token in (-1, tokenizer.n_vocab, 2**40, True, "1"):
        with pytest.raises(RequestError, match="token id"):
            constraint.accept(token)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        constraint.mask()[0] = 1


def test_forks_go_their_own_ways() -> None:
    tokenizer = tokenizer_of("tokenizer_sentencepiece")
    constraint = compile_constraint(StructuredOutputsParams(json=SCHEMA), tokenizer)
    alone = [sample(constraint.fork(), tokenizer, seed)[1] for seed in range(3)]
    forks = [constraint.fork() for _ in alone]
    for step in range(max(map(len, alone))):
        for fork, ids in zip(forks, alone):
            if step < len(ids):
                assert ids[step] in allowed(fork, tokenizer.n_vocab)
                fork.accept(ids[step])
    middle = constraint.fork()
    for token in alone[0][:5]:
        middle.accept(token)
    other = middle.fork()
    mask = middle.mask().copy()
    for token in alone[0][5:]:
        other.accept(token)
    assert (middle.mask() == mask).all() and other.finished and not middle.finished and other.fork().finished


@pytest.mark.parametrize("name", VOCABULARIES)
def test_control_tokens_are_never_allowed(name: str) -> None:
    tokenizer = tokenizer_of(name)
    constraint = compile_constraint(StructuredOutputsParams(regex=r"(.|\n)*"), tokenizer)
    for token in allowed(constraint, tokenizer.n_vocab):
        assert token in tokenizer.eog_ids or not tokenizer.is_special(token)
        assert token in tokenizer.eog_ids or tokenizer.token_bytes(token)


def test_tables_are_built_once_and_go_with_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    init = token_tables.VocabularyTables.__init__

    def counted(self: Any, tokenizer: Tokenizer) -> None:
        built.append(id(tokenizer))
        init(self, tokenizer)

    monkeypatch.setattr(token_tables.VocabularyTables, "__init__", counted)
    found = [Tokenizer.from_gguf(DATA / "tokenizer_qwen2.gguf")]
    masks: list[bytes] = []

    def work() -> None:
        constraint = compile_constraint(StructuredOutputsParams(regex="[a-z]+"), found[0])
        masks.append(constraint.mask().tobytes())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and len(masks) == 8 and len(set(masks)) == 1
    gone = weakref.ref(found[0])
    found.clear()
    gc.collect()
    assert gone() is None


def test_the_last_constraints_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from gumba.sampling.structured import constraints

    monkeypatch.setattr(constraints, "CACHE_SIZE", 2)
    compiled = []
    compile_ = constraints._compile

    def counted(kind: str, text: str, whitespace: str, tables: Any) -> Any:
        compiled.append(text)
        return compile_(kind, text, whitespace, tables)

    monkeypatch.setattr(constraints, "_compile", counted)
    tokenizer = Tokenizer.from_gguf(DATA / "tokenizer_qwen2.gguf")
    for pattern in "abacab":
        compile_constraint(StructuredOutputsParams(regex=pattern), tokenizer)
    assert compiled == ["a", "b", "c", "b"]


def test_a_missing_library_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_tables, "llguidance", None)
    tokenizer = Tokenizer.from_gguf(DATA / "tokenizer_qwen2.gguf")
    with pytest.raises(RequestError, match=r"pip install 'gumba\[structured\]'"):
        compile_constraint(StructuredOutputsParams(json_object=True), tokenizer)


def test_a_complete_text_ends_the_answer_even_without_eos(tmp_path: Path) -> None:
    from support import tiny_chat

    choice = StructuredOutputsParams(choice=["yes", "yes sir"])
    with LLM(tiny_chat.write(tmp_path / "tiny.gguf")) as llm:
        for seed in range(20):
            params = SamplingParams(
                seed=seed, temperature=1.0, ignore_eos=True, skip_special_tokens=False, structured_outputs=choice
            )
            (result,) = llm.generate(["hello"], params)
            assert result.outputs[0].text in ("yes", "yes sir") and result.outputs[0].finish_reason == "stop"
