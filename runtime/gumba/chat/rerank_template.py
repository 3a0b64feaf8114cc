"""How a language model that ranks documents is asked: a template with places for the query and the document."""

from __future__ import annotations

import re

from gumba.chat.special_tokens import shielded
from gumba.errors import TemplateError
from gumba.gguf import GGUFFile
from gumba.tokenizer.tokenizer import Tokenizer

KEY = "tokenizer.chat_template.rerank"
_PLACES = re.compile(r"\{(query|document)\}")


class PairTemplate:
    """A text in which ``{query}`` and ``{document}`` stand for two texts; nothing else in it has a meaning."""

    def __init__(self, source: str) -> None:
        """Raises TemplateError where a place is missing, or there twice."""
        self.source = source
        if sorted(_PLACES.findall(source)) != ["document", "query"]:
            raise TemplateError(f"{KEY}: expected {{query}} and {{document}} in it, once each")

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> PairTemplate | None:
        """The template of a file; None where it has none. Raises TemplateError for one of another form."""
        source = gguf.metadata.get(KEY)
        if source is None:
            return None
        if not isinstance(source, str):
            raise TemplateError(f"{KEY}: expected a string, found {type(source).__name__}")
        return cls(source)

    def encode(self, tokenizer: Tokenizer, query: str, document: str) -> list[int]:
        """Token ids: control tokens come from the template only, never from the two texts. Raises as ``Tokenizer.encode``."""
        given = {"query": query, "document": document}
        given, mark = shielded(given, tokenizer.control_texts, self.source)
        text = _PLACES.sub(lambda place: given[place[1]], self.source)
        ids = tokenizer.encode(text, add_special=False, parse_special=True, shield=mark)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids
