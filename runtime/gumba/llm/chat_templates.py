"""The chat templates of one ``LLM``."""

from __future__ import annotations

import functools
from os import PathLike

from gumba.chat.template import ChatTemplate
from gumba.gguf import GGUFFile
from gumba.tokenizer.tokenizer import Tokenizer


class ChatTemplates:
    """The templates of a model file, read when they are first used, or one that replaces them.

    Args:
        gguf: The model file.
        tokenizer: Its tokenizer.
        given: Replaces the file's templates, see ``LLM(chat_template=...)``; None: the file's.

    Raises TemplateError or RequestError if ``given`` is not a template.
    """

    def __init__(
        self, gguf: GGUFFile, tokenizer: Tokenizer, given: str | PathLike[str] | ChatTemplate | None = None
    ) -> None:
        self._gguf, self._tokenizer = gguf, tokenizer
        if given is not None:
            self.default = self.tool_use = ChatTemplate.given(given, tokenizer, gguf)

    @functools.cached_property
    def default(self) -> ChatTemplate:
        """The template of conversations without tools. Raises TemplateError if it is missing or malformed."""
        return ChatTemplate.from_gguf(self._gguf, self._tokenizer)

    @functools.cached_property
    def tool_use(self) -> ChatTemplate:
        """The template of conversations with tools: a few files have two. Raises as ``default``."""
        if "tokenizer.chat_template.tool_use" in self._gguf.metadata:
            return ChatTemplate.from_gguf(self._gguf, self._tokenizer, "tool_use")
        return self.default
