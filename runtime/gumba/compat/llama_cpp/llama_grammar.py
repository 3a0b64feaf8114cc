"""Grammars that constrain outputs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from gumba.compat.llama_cpp.schema_gbnf import json_schema_to_gbnf as json_schema_to_gbnf
from gumba.errors import RequestError
from gumba.sampling.structured.json_closing import close_objects
from gumba.sampling.structured.json_schema import parse_schema
from gumba.sampling_params import StructuredOutputsParams
from gumba.validation import show

LLAMA_GRAMMAR_DEFAULT_ROOT = "root"

#: White space between the parts of schema-constrained JSON: at most one space, as in llama.cpp's grammars.
WHITESPACE = " "

#: Any JSON object, for ``LlamaGrammar.from_string``.
JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( member ( "," ws member )* )? "}" ws
member ::= string ws ":" ws value ws
array  ::= "[" ws ( value ws ( "," ws value ws )* )? "]"
string ::= "\"" ( [^"\\\x00-\x1f\x7f] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} ) )* "\""
number ::= "-"? ( "0" | [1-9] [0-9]{0,15} ) ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,2} )?
ws     ::= [ \n]{0,20}
"""

#: The same for any JSON array.
JSON_ARR_GBNF = JSON_GBNF.replace("root   ::= object", "root   ::= array")

#: A list of lines that begin with "- ", for ``LlamaGrammar.from_string``.
LIST_GBNF = r"""
root ::= item+
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""


class LlamaGrammar:
    """A GBNF grammar, or a JSON schema, for the ``grammar`` keyword of generating calls.

    It is compiled when it is used: errors in it are raised there.
    """

    def __init__(self, *, _grammar: str | None = None, _schema: str | dict[str, Any] | None = None) -> None:
        self._grammar = _grammar
        self._schema = _schema

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar in GBNF, whose first rule is ``root``. Raises RequestError (a ValueError) for anything but text."""
        if not isinstance(grammar, str) or not grammar.strip():
            raise RequestError(f"grammar: expected the text of a GBNF grammar, found {show(grammar)}")
        return cls(_grammar=grammar)

    @classmethod
    def from_file(cls, file: str | PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A grammar from a file of GBNF."""
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{file}: the grammar file cannot be read: {error}") from None
        return cls.from_string(text, verbose)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar of the JSON texts that match a JSON schema. Raises RequestError if ``json_schema`` is not valid JSON.

        As in llama.cpp, an object with properties has no others unless its schema has ``additionalProperties``.
        """
        if not isinstance(json_schema, str):
            raise RequestError(f"json_schema: expected the text of a JSON schema, found {show(json_schema)}")
        schema = parse_schema(json_schema)
        close_objects(schema, everywhere=True)
        return cls(_schema=schema if isinstance(schema, dict) else json_schema)

    def structured_outputs(self) -> StructuredOutputsParams:
        """The same for ``SamplingParams``."""
        if self._grammar is not None:
            return StructuredOutputsParams(grammar=self._grammar)
        return StructuredOutputsParams(json=self._schema, whitespace_pattern=WHITESPACE)
