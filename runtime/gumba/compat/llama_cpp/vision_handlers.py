"""llama-cpp-python's image handlers, by name: they complete text chats and refuse images, because gumba has no vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gumba.compat.llama_cpp.chat_completion import ChatResult, TemplatePrompts, complete_chat
from gumba.compat.llama_cpp.errors import OptionError
from gumba.compat.llama_cpp.state import ChatModel, JsonObject
from gumba.validation import show


class Llava15ChatHandler:
    """Stands for llama-cpp-python's image handlers: completes text chats with the file's template, and refuses images.

    ``clip_model_path`` is not opened. ``create_chat_completion`` raises OptionError, naming this handler, for a message with
    an image.
    """

    def __init__(self, clip_model_path: str = "", verbose: bool = True, **options: object) -> None:
        self.clip_model_path = clip_model_path
        self.verbose = verbose

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None = None, **kwargs: object) -> Llava15ChatHandler:
        """A handler; nothing is downloaded."""
        return cls(filename or "")

    def __call__(self, *, llama: ChatModel, messages: Sequence[JsonObject], **options: Any) -> ChatResult:
        """Complete a chat of text. Raises OptionError for a message with an image."""
        for i, message in enumerate(messages):
            parts = message.get("content")
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, Mapping) and part.get("type") not in (None, "text"):
                    raise OptionError(
                        f"messages[{i}]: {type(self).__name__} has no vision: gumba reads text alone, found "
                        f"a part of type {show(part.get('type'))}"
                    )
        return complete_chat(TemplatePrompts(None), llama=llama, messages=messages, **options)


class MTMDChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""


class Gemma4ChatHandler(MTMDChatHandler):
    """As ``Llava15ChatHandler``."""


class Llava16ChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""


class ObsidianChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""


class MoondreamChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""


class NanoLlavaChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""


class Llama3VisionAlphaChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""


Llama3VisionAlpha = Llama3VisionAlphaChatHandler


class MiniCPMv26ChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""


class Qwen25VLChatHandler(Llava15ChatHandler):
    """As ``Llava15ChatHandler``."""
