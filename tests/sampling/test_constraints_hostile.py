"""Bad, unsupported and hostile constraints: a RequestError that names the place, in bounded memory."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba.errors import RequestError
from gumba.sampling.structured.constraints import compile_constraint
from gumba.sampling_params import StructuredOutputsParams
from gumba.tokenizer.tokenizer import Tokenizer

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(DATA / "tokenizer_smollm.gguf")


def array_of(depth: int) -> str:
    return '{"items":' * depth + "true" + "}" * depth


def all_of(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"allOf": list(parts)}


CHAIN = "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40 ::= "a"'

#: (request, what the message says)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"regex": "(" * 60_000 + "a" + ")" * 60_000}, "regex: 120001 characters, expected at most 20000"),
    ({"regex": "(" * 9000 + "a" + ")" * 9000}, r"regex: .*nested.*at character 250"),
    ({"regex": "a{0,2147483648}"}, r"regex: count '\{0,2147483648\}' at character 1, expected at most 65536"),
    ({"regex": r"\\{99999}"}, "at character 2, expected at most 65536"),
    ({"regex": "[a-z"}, "regex: unclosed character class, at character 0"),
    ({"regex": "a|*"}, "regex: repetition operator missing expression, at character 2"),
    ({"regex": "a\\"}, "regex: ends in a backslash"),
    ({"regex": "a(?=b)"}, "look-ahead.*not supported"),
    ({"regex": "a$b"}, "anchors inside an expression are not supported"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": r"[^\s\S]"}, "regex: expected something that a text can match"),
    ({"regex": r"(?-u:\xff)"}, "invalid UTF-8"),
    ({"regex": "\ud800"}, "half of a surrogate pair"),
    ({"choice": ["\udfff"]}, "half of a surrogate pair|surrogate"),
    ({"choice": ["x" * 200_001]}, "choice: 200001 bytes of text, expected at most 200000"),
    ({"json": array_of(101)}, "json: nested 101 deep, expected at most 100"),
    ({"json": {"enum": ["x"] * 10_001}}, "json: a schema of 10003 values"),
    ({"json": {"properties": {f"k{i}": True for i in range(401)}}}, "json: at #: 401 properties.*at most 400"),
    ({"json": {"required": [f"k{i}" for i in range(401)]}}, "json: at #: 401 properties.*at most 400"),
    ({"json": {"items": {"type": "strin"}}}, "json: at #/items/type: expected null, .*, found 'strin'"),
    ({"json": {"properties": {"a": 5}}}, "json: at #/properties/a: expected a schema .*, found 5"),
    (
        {"json": {"properties": {"a": {"items": {"not": {}}}}}},
        "json: at #/properties/a/items/not: expected a schema that",
    ),
    ({"json": {"items": {"$dynamicRef": "#x"}}}, "json: at #/items: .*dynamicRef"),
    ({"json": True, "whitespace_pattern": "(?=a)"}, "json: at #: .*look-around"),
    ({"json_object": True, "whitespace_pattern": "("}, "whitespace_pattern: "),
    ({"json": {"uniqueItems": "yes"}}, "json: at #/uniqueItems: expected true or false, found 'yes'"),
    ({"json": {"contains": {}, "minContains": -1}}, "json: at #/minContains: expected a number from 0, found -1"),
    ({"json": {"propertyNames": {"pattern": "("}, "type": "object"}}, "json: at #"),
    ({"json": {"properties": {"a": {"type": "string", "pattern": "(?!x)"}}}}, "json: at #/properties/a: look-around"),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 2}}, r"json: at #: .*minimum \(5\) is greater"),
    ({"json": {"$ref": "#/$defs/no"}}, r"json: at #/\$ref: expected .*found '#/\$defs/no': not present"),
    ({"json": {"$ref": "http://localhost/x"}}, r"json: at #/\$ref: expected # or a pointer"),
    ({"json": {"$ref": "#x", "y": {"$anchor": "x"}}}, r"json: at #/\$ref: expected # or a pointer"),
    ({"json": {"$ref": "#/x/y", "x": {"y": {"multipleOf": 1_000_003}}}}, "json: at #/x/y/multipleOf: .*found 1000003"),
    (
        {"json": {"$ref": "#/x~1/%7B", "x/": {"{": all_of(*({"pattern": f"(.*a){{{i}}}"} for i in range(60)))}}},
        "60 patterns",
    ),
    ({"json": {"items": {"$id": "http://localhost/x"}}}, r"json: at #/items/\$id: expected none"),
    ({"json": {"$ref": "#/x/y", "x": {"$id": "http://localhost/x", "y": True}}}, r"json: at #/x/y/\$id: expected none"),
    ({"json": {"$ref": "#"}}, "json: expected something that a text can match"),
    (
        {
            "json": {
                "unevaluatedProperties": False,
                "$ref": "#/$defs/d0",
                "$defs": {
                    f"d{i}": {"properties": {f"p{i}": {}}, "allOf": [{"$ref": f"#/$defs/d{min(i + 1, 30)}"}] * 2}
                    for i in range(31)
                },
            }
        },
        "json: references beside properties would be copied to more than 10000",
    ),
    ({"json": {"enum": []}}, "json: at #/enum: expected a list of 1 to"),
    ({"json": {"multipleOf": 1_000_003}}, "json: at #/multipleOf: .*found 1000003"),
    ({"json": {"multipleOf": 0}}, "json: at #/multipleOf: .*found 0"),
    ({"json": all_of(*({"pattern": f"a{{{i}}}"} for i in range(1000)))}, "json: 1000 patterns.*expected at most 8"),
    ({"json": all_of(*({"multipleOf": n} for n in (97, 91, 83)))}, "json: 3 patterns, formats and multiples"),
    ({"json": {"patternProperties": {f"^{i}x": True for i in range(500)}}}, "json: at #/patternProperties: more than"),
    ({"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000}, "grammar: 120012 characters, expected at most"),
    ({"grammar": "root ::= " + "(" * 600 + '"a"' + ")" * 600}, "line 1, column 60: expected groups nested at most 50"),
    ({"grammar": 'root ::= "a"' + "*" * 600}, "nested at most 50 deep"),
    ({"grammar": 'root ::= "a"{0,2147483648}'}, "line 1, column 16: expected a count up to 2000, found '2147483648}'"),
    ({"grammar": 'root ::= "a"{3,2}'}, r"expected counts \{m,n\}"),
    ({"grammar": "root ::= root"}, "rule 'root' never ends"),
    ({"grammar": 'root ::= root "a"'}, "rule 'root' never ends"),
    ({"grammar": 'root ::= "b" | x\nx ::= "a" y\ny ::= x x'}, "rule '[xy]' never ends"),
    ({"grammar": 'root ::= "a" x\n'}, "line 1, column 14: .*no rule is called 'x'"),
    ({"grammar": 'a ::= "a"'}, "no rule 'root'"),
    ({"grammar": 'root ::= "a"\nroot ::= "b"'}, "line 2, column 1: expected each rule once"),
    ({"grammar": 'root ::= ("a"'}, r"line 1, column 14: expected '\)', found the end"),
    ({"grammar": 'root ::= "a'}, "line 1, column 12: .*found the end"),
    ({"grammar": "root ::= [z-a]"}, "line 1, column 10: expected ranges of characters that ascend"),
    ({"grammar": r"root ::= [^\x00-\U0010FFFF]"}, "none is in this set"),
    ({"grammar": r'root ::= "\ud800"'}, "expected an escape that is a Unicode character"),
    ({"grammar": r'root ::= "\q"'}, "line 1, column 11: expected an escape"),
    ({"grammar": "root := x"}, "line 1, column 6: expected '::='"),
    ({"grammar": "root ::= <[7]>"}, "tokens by name or number are not supported"),
    ({"grammar": "".join(f'r{i} ::= "a"\n' for i in range(401))}, "grammar: more than 400 rules"),
    ({"grammar": 'root ::= "' + "a" * 20_001 + '"'}, "grammar: more than 20000 characters"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_what_is_bad_names_its_place(index: int, tokenizer: Tokenizer) -> None:
    request, message = BAD[index]
    compile_constraint(StructuredOutputsParams(choice=["a"]), tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RequestError, match=message) as caught:
        compile_constraint(StructuredOutputsParams(**request), tokenizer)
    assert len(str(caught.value)) < 700
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


#: Costly at first sight, but compiled in no time and followed in bounded memory: what they may begin with.
COSTLY: list[tuple[dict[str, Any], str]] = [
    ({"regex": "(a+)+b"}, "aaab"),
    ({"regex": "((a{0,65536}){65536}){65536}b"}, "aab"),
    ({"regex": "(.*a){50}"}, "a" * 50),
    ({"grammar": 'root ::= root root | "a" | ""'}, "aaa"),
    ({"grammar": 'root ::= x\nx ::= y\ny ::= x | "a"'}, "a"),
    ({"grammar": 'root ::= (("a"{0,2000}){0,2000}){0,2000} | "(" root ")"'}, "(aaa)"),
    ({"grammar": "root ::= r0\n" + CHAIN}, ""),
    ({"grammar": 'root ::= r0 | "(" root ")"\n' + CHAIN}, ""),
    ({"grammar": 'root ::= ("b" x){0} "a" | "(" root ")"\nx ::= "c"{0,0}'}, "(a)"),
    ({"json": {"type": "array", "minItems": 0, "maxItems": 2**31}}, "[1]"),
    ({"json": {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 2**31}]}}, '"ab"'),
    ({"json": json.loads(array_of(40))}, "1"),
    ({"choice": [f"choice {i}" for i in range(10_000)]}, "choice 77"),
]


@pytest.mark.parametrize("index", range(len(COSTLY)))
def test_what_looks_costly_is_followed(index: int, tokenizer: Tokenizer) -> None:
    request, text = COSTLY[index]
    constraint = compile_constraint(StructuredOutputsParams(**request), tokenizer)
    for token in tokenizer.encode(text, False):
        constraint.accept(token)
    (end, *_) = tokenizer.eog_ids
    assert not text or int(constraint.mask()[end // 32]) >> end % 32 & 1


def test_a_text_too_costly_to_follow_ends_in_an_error(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    with pytest.raises(RequestError, match="too complex to continue"):
        constraint = compile_constraint(StructuredOutputsParams(regex=".*a.{50}b"), tokenizer)
        for _ in range(2000):
            bits = constraint.mask()[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
            constraint.accept(int(rng.choice([t for t in np.flatnonzero(bits) if int(t) not in tokenizer.eog_ids])))
