"""The prompt of a language model that reranks documents: a template with placeholders for the query and the document."""

from __future__ import annotations

import re

from gumba.chat.special_tokens import shielded
from gumba.errors import TemplateError
from gumba.gguf import GGUFFile
from gumba.tokenizer.tokenizer import Tokenizer

KEY = "tokenizer.chat_template.rerank"
_PLACES = re.compile(r"\{(query|document)\}")


class PairTemplate:
    """A text with the placeholders ``{query}`` and ``{document}``."""

    def __init__(self, source: str) -> None:
        """Raises TemplateError if a placeholder is missing or occurs twice."""
        self.source = source
        if sorted(_PLACES.findall(source)) != ["document", "query"]:
            raise TemplateError(f"{KEY}: expected {{query}} and {{document}} in it, once each")

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> PairTemplate | None:
        """The template of a file; None if it has none. Raises TemplateError for a malformed one."""
        source = gguf.metadata.get(KEY)
        if source is None:
            return None
        if not isinstance(source, str):
            raise TemplateError(f"{KEY}: expected a string, found {type(source).__name__}")
        return cls(source)

    def encode(self, tokenizer: Tokenizer, query: str, document: str) -> list[int]:
        """Token ids: control tokens come from the template only, never from the two texts. Raises as ``Tokenizer.encode``."""
        texts = {"query": query, "document": document}
        texts, mark = shielded(texts, tokenizer.control_texts, self.source)
        text = _PLACES.sub(lambda place: texts[place[1]], self.source)
        ids = tokenizer.encode(text, add_special=False, parse_special=True, shield=mark)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids
