"""The grammar that json_schema_to_gbnf writes takes the texts that fit a schema, and no others."""

from __future__ import annotations

import json

import pytest

from gumba import GumbaError, RequestError, StructuredOutputsParams, UnsupportedError
from gumba.compat.llama_cpp.llama_grammar import JSON_ARR_GBNF, LIST_GBNF, json_schema_to_gbnf
from gumba.gguf import GGUFFile
from gumba.sampling.structured.constraints import compile_constraint
from gumba.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny):
    with GGUFFile(tiny) as file:
        return Tokenizer.from_gguf(file)


def fits(tokenizer, grammar, text):
    constraint = compile_constraint(StructuredOutputsParams(grammar=grammar), tokenizer)
    try:
        for token in tokenizer.encode(text, add_special=False):
            constraint.accept(token)
    except RequestError:
        return False
    return any(int(constraint.mask()[end // 32]) >> end % 32 & 1 for end in tokenizer.eog_ids)


NULL, INTEGER = {"type": "null"}, {"type": "integer"}
NODE = {
    "type": "object",
    "properties": {"v": INTEGER, "n": {"anyOf": [{"$ref": "#/$defs/N"}, NULL]}},
    "required": ["v"],
}
#: (schema, texts that fit, texts that do not)
CASES = [
    (True, ['{"a": [1, "b", null, true, -1.5e3]}', "1"], ["{a}", "01"]),
    (INTEGER, ["0", "-12"], ["1.5", "a"]),
    ({"type": ["string", "null"]}, ['"a\\n\\u00e9"', "null"], ["1", '"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"abc"'], ['"a"', '"abcd"']),
    ({"enum": ["a", 1, None, {"b": [2]}]}, ['"a"', "1", "null", '{"b": [2]}'], ['"b"', "2"]),
    ({"const": 'q"\n'}, ['"q\\"\\n"'], ['"q"']),
    (
        {"items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        ["[true]", "[true, false]"],
        ["[]", "[true,true,true]"],
    ),
    ({"type": "array", "items": {"type": "boolean"}}, ["[]", "[true,true,true]"], ["[1]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    ({"prefixItems": [NULL, INTEGER], "type": "array"}, ["[null, 1]"], ["[null]", "[1, 1]"]),
    (
        {"properties": {"a": NULL, "b": NULL, "c": NULL}, "required": ["b"]},
        ['{"b":null}', '{"a":null,"b":null}', '{"b":null,"c":null}', '{ "a": null, "b": null, "c": null }'],
        ["{}", '{"a":null}', '{"b":null,"d":null}', '{"a":null,"c":null}', '{"b":null,}'],
    ),
    (
        {"properties": {"a": NULL, "b": NULL}},
        ["{}", '{"a":null}', '{"b":null}', '{"a":null,"b":null}'],
        ['{"c":null}', '{,"b":null}'],
    ),
    ({"type": "object", "additionalProperties": INTEGER}, ["{}", '{"x":1,"y":2}'], ['{"x":"a"}']),
    (
        {"properties": {"a": {}}, "required": ["a", "z"], "additionalProperties": True},
        ['{"a":1,"z":2,"q":3}'],
        ['{"a":1}'],
    ),
    ({"type": "object"}, ['{"x":{"y":[]}}'], ["[]"]),
    (
        {"allOf": [{"$ref": "#/$defs/N"}], "title": "t", "$defs": {"N": NODE}},
        ['{"v":1,"n":{"v":2,"n":null}}'],
        ['{"n":null}', '{"v":1,"w":2}'],
    ),
    (
        {"oneOf": [INTEGER, {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]}]},
        ["3", '{"k":"a"}'],
        ['{"k":"b"}'],
    ),
]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_which_texts_fit(tokenizer, index):
    schema, valid, invalid = CASES[index]
    grammar = json_schema_to_gbnf(json.dumps(schema))
    assert [text for text in valid if not fits(tokenizer, grammar, text)] == []
    assert [text for text in invalid if fits(tokenizer, grammar, text)] == []


def test_the_order_of_properties(tokenizer):
    schema = json.dumps({"properties": {"a": NULL, "b": NULL}, "required": ["a", "b"]})
    grammar = json_schema_to_gbnf(schema, prop_order=["b"])
    assert fits(tokenizer, grammar, '{"b":null,"a":null}') and not fits(tokenizer, grammar, '{"a":null,"b":null}')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "a+"}, "at #: pattern not supported"),
        ({"properties": {"a": {"type": "integer", "minimum": 1}}}, "at #/properties/a: minimum not supported"),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, "at #/allOf: GBNF cannot hold"),
        ({"not": {}}, "at #: not not supported"),
        ({"items": False}, "at #/items: expected a schema that texts fit"),
        ({"$ref": "#/nothing"}, "not present"),
        ({"type": "text"}, "at #/type: expected null"),
        ({"anyOf": [], "title": "t"}, "at #/anyOf: "),
        ({"enum": []}, "at #/enum: "),
        ({"properties": 5}, "at #/properties: "),
        ({"type": "string", "minLength": "a"}, "at #/minLength: "),
        ({"items": {}, "maxItems": -1}, "at #/maxItems: "),
    ],
)
def test_what_is_not_written_is_refused_by_its_place(schema, message):
    with pytest.raises((UnsupportedError, RequestError), match=message) as error:
        json_schema_to_gbnf(json.dumps(schema))
    assert isinstance(error.value, GumbaError)


def test_deep_schemas_have_small_grammars():
    deep: dict = INTEGER
    for i in range(24):
        deep = {"anyOf": [NULL, {"properties": {"a": deep, "b": NULL}}]} if i % 2 else {"type": "array", "items": deep}
    assert len(json_schema_to_gbnf(json.dumps(deep))) < 20_000
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)} | {"d3000": INTEGER}
    with pytest.raises(RequestError, match="references lead more than 50 deep"):
        json_schema_to_gbnf(json.dumps({"$ref": "#/$defs/d0", "$defs": chain}))


def test_grammars_that_are_there(tokenizer):
    assert fits(tokenizer, JSON_ARR_GBNF, '[1, {"a": "b"}]') and not fits(tokenizer, JSON_ARR_GBNF, "{}")
    assert fits(tokenizer, LIST_GBNF, "- a\n- b\n") and not fits(tokenizer, LIST_GBNF, "a\n")
