"""Chat templates: render messages to the prompt format of a model (Jinja2, with Hugging Face's conventions)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumba.chat.named_templates import CHAT_TEMPLATES, guess_name
from gumba.chat.special_tokens import shielded
from gumba.chat.tool_messages import calls_tools, rendered, with_objects
from gumba.errors import RequestError, TemplateError
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

if TYPE_CHECKING:
    from gumba.gguf.reader import GGUFFile

KEY = "tokenizer.chat_template"
MAX_SOURCE = 48 << 10  # characters; the largest template known has 40,436 (GigaChat 3.5)

#: The content of a message: a text, or OpenAI's parts, ``{"type": "text", "text": ...}``.
Content = str | Sequence[Mapping[str, Any]]
#: The roles of the OpenAI API. Others are accepted if the template contains their names.
ROLES = ("system", "user", "assistant", "tool", "developer", "function")


def plain_messages(messages: object, source: str | None = None) -> list[dict[str, Any]]:
    """Checked copies of ``messages`` whose contents are texts (parts are joined) and whose calls' arguments are objects.

    ``source``: the template's text, which may name roles beyond ``ROLES``; None accepts any role. A message without content
    must call tools. Raises RequestError naming the message at fault by its index.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages: expected a list of messages, found {show(messages)}")
    if not messages:
        raise RequestError("messages: expected at least one message, found none")
    checked = []
    for i, message in enumerate(messages):
        name = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise RequestError(f"{name}: expected a mapping with a 'role' and a 'content', found {show(message)}")
        role, content = message.get("role"), message.get("content")
        if "role" not in message:
            raise RequestError(f"{name}: there is no role in {show(dict(message))}")
        if not isinstance(role, str) or not role:
            raise RequestError(f"{name}.role: expected a string, found {show(role)}")
        if source is not None and role not in ROLES and not re.search(rf"(?<!\w){re.escape(role)}(?!\w)", source):
            raise RequestError(
                f"{name}.role: expected {', '.join(ROLES)}, or one that the chat template names, found {show(role)}"
            )
        plain = dict(message)
        if content is not None:
            plain["content"] = joined_text(f"{name}.content", content)
        elif not message.get("tool_calls") and not message.get("function_call"):
            raise RequestError(f"{name}: there is no content in {show(plain)}")
        checked.append(with_objects(plain, name))
    return checked


def joined_text(name: str, content: object) -> str:
    """The text of a message's ``content``. Raises RequestError if it is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestError(f"{name}: expected a text or a list of parts of text, found {show(content)}")
    texts = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise RequestError(
                f"{name}[{i}]: gumba reads text alone: expected {{'type': 'text', 'text': ...}}, found {show(part)}"
            )
        texts.append(text)
    return "".join(texts)


def _raise_exception(message: object = "") -> None:
    raise TemplateError(f"the chat template refuses these messages: {message!s:.500}")


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100:
        raise TemplateError("the chat template was stopped: a very long date format")
    return datetime.now().strftime(pattern)


@functools.cache
def _environment() -> Any:
    from gumba.chat.sandbox.environment import ChatEnvironment

    environment = ChatEnvironment()
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


class ChatTemplate:
    """A compiled chat template; ``source`` is its text.

    ``special_texts``: the values of ``bos_token``, ``eos_token`` and so on. Untrusted templates are safe to render: no access to
    Python, at most 2 seconds and 8 MB of output (several times that for messages with tool calls, which are tried in the
    variants that templates accept).
    """

    def __init__(self, source: str, special_texts: Mapping[str, str] | None = None, origin: str = "") -> None:
        """``origin``: the template's source, for errors. Raises TemplateError for a template that is too long or malformed."""
        import jinja2

        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters; the limit is {MAX_SOURCE}")
        self.source, self.origin = source, origin
        self._special_texts = dict(special_texts or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template is wrong in line {error.lineno}: {error.message}") from None
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
            raise TemplateError(f"the chat template does not compile: {error!s:.500}") from None

    @classmethod
    def named(cls, name: str, special_texts: Mapping[str, str] | None = None) -> ChatTemplate:
        """The built-in template ``name`` (``named_templates.CHAT_TEMPLATES``). Raises RequestError if there is none."""
        source = CHAT_TEMPLATES.get(name) if isinstance(name, str) else None
        if source is None:
            raise RequestError(f"chat_template: expected one of {', '.join(CHAT_TEMPLATES)}, found {show(name)}")
        return cls(source, special_texts, f"the built-in template {name!r}")

    @classmethod
    def given(
        cls, template: str | PathLike[str] | ChatTemplate, tokenizer: Tokenizer, gguf: GGUFFile | None = None
    ) -> ChatTemplate:
        """The template that a user names: a named template of ``gguf`` ("tool_use"), a built-in one, a file, or the text of a
        template (which contains {{ or {%).

        Raises RequestError if it is none of these or the file cannot be read, TemplateError for a malformed template.
        """
        if isinstance(template, ChatTemplate):
            return template
        if gguf is not None and isinstance(template, str) and f"{KEY}.{template}" in gguf.metadata:
            return cls.from_gguf(gguf, tokenizer, template)
        texts = special_texts(tokenizer)
        if isinstance(template, str) and template in CHAT_TEMPLATES:
            return cls.named(template, texts)
        if isinstance(template, str) and ("{{" in template or "{%" in template):
            return cls(template, texts, "the text that chat_template= gives")
        if not isinstance(template, str | PathLike):
            raise RequestError(f"chat_template: expected a name, a file or a ChatTemplate, found {show(template)}")
        path = Path(template)
        if isinstance(template, str) and not path.suffix and path.name == template and not path.exists():
            return cls.named(template)  # raises an error with the names
        try:
            with path.open(encoding="utf-8") as file:
                return cls(file.read(MAX_SOURCE + 1), texts, f"the file {template!s:.200}")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise RequestError(f"chat_template: {template!s:.200} cannot be read: {why!s:.200}") from None

    @classmethod
    def from_gguf(cls, gguf: GGUFFile, tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
        """The template of a file; if it has none, the built-in one for its vocabulary or architecture.

        ``name``: a named template ("tool_use") of a file with several; if there is none of this name, the default one. Raises
        TemplateError if there is no template, or it is malformed.
        """
        key = KEY if name is None else f"{KEY}.{name}"
        source = gguf.metadata.get(key)
        if source is None and name is not None:
            return cls.from_gguf(gguf, tokenizer)
        if source is None:
            others = [key.removeprefix(f"{KEY}.") for key in gguf.metadata if key.startswith(f"{KEY}.")]
            if others and others != ["rerank"]:  # which is not for chats
                raise TemplateError(
                    f"the file has chat templates named {', '.join(map(show, others[:8]))}, but no default one ({KEY}): choose "
                    "one (chat_template=..., --chat-template NAME or FILE)"
                )
            name = guess_name(tokenizer, gguf.metadata)
            if name is None:
                raise TemplateError(
                    f"the file has no chat template ({KEY}) and its vocabulary matches no known chat model: "
                    "use a plain prompt, or choose a template (chat_template=..., --chat-template NAME or FILE)"
                )
            return cls.named(name, special_texts(tokenizer))
        if not isinstance(source, str):
            raise TemplateError(f"{key}: expected a string, found {show(source)}")
        return cls(source, special_texts(tokenizer), f"the model file's {key}")

    def render(
        self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool = True, **kwargs: object
    ) -> str:
        """The prompt for a conversation.

        ``messages``: mappings with ``role`` and ``content``, as in the OpenAI API; contents that are lists of
        ``{"type": "text", "text": ...}`` are passed to the template as lists. Arguments of ``tool_calls`` may be objects or
        JSON text: the template gets the variant that it supports. ``add_generation_prompt``: end with the opening of the
        assistant's answer. ``kwargs``: further variables of the template (``tools``, ``enable_thinking``).

        Raises RequestError for malformed messages, TemplateError if the template rejects them, fails, or exceeds its limits of
        time and memory.
        """
        plain_messages(messages, self.source)
        given = [with_objects(dict(message), f"messages[{i}]") for i, message in enumerate(messages)]
        variables = {
            **self._special_texts,
            "tools": None,
            "documents": None,
            **kwargs,
            "add_generation_prompt": add_generation_prompt,
        }
        if any(map(calls_tools, given)):
            knows_tools = "tool" in self.source or "function" in self.source
            try:
                return rendered(lambda variant: self._render({**variables, "messages": variant}), given, knows_tools)
            except RecursionError:
                raise RequestError("messages: arguments of calls are nested too deeply or circular") from None
        return self._render({**variables, "messages": given})

    def _render(self, variables: dict[str, Any]) -> str:
        import jinja2

        from gumba.chat.sandbox.environment import render

        try:
            return render(self._template, variables)
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template fails: {error!s:.500}") from None
        except Exception as error:  # a template can raise anything: report it as the template's error
            raise TemplateError(f"the chat template fails: {type(error).__name__}: {error!s:.500}") from None


def special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """The values of ``bos_token``, ``eos_token`` and so on in a template; undefined ones are left out."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    texts: dict[str, str | None] = {
        f"{name}_token": tokenizer.token_bytes(token).decode("utf-8", "replace")
        for name, token in ids.items()
        if token is not None
    }
    texts |= tokenizer.template_texts
    return {name: text for name, text in texts.items() if text is not None}


def until_final_message(text: str, messages: Sequence[Mapping[str, object]]) -> str:
    """The prompt ``text`` of ``messages`` up to the end of the last message's content, which the model is to continue.

    Raises RequestError if that content is not text, or the template has changed it.
    """
    content = messages[-1].get("content") if messages else None
    if not isinstance(content, str) or content.strip() not in text:
        raise RequestError(f"messages: expected text to continue in the last message, found {show(content)}")
    start = text.rindex(content.strip())
    spaced = content.lstrip()
    return text[: start + len(spaced if text.startswith(spaced, start) else content.strip())]


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, object]],
    add_generation_prompt: bool = True,
    *,
    add_bos: bool = True,
    continue_final_message: bool = False,
    **kwargs: object,
) -> list[int]:
    """Token ids of a conversation: the rendered template with its control tokens parsed, and BOS exactly once.

    ``add_bos=False``: only if the template writes it. ``continue_final_message``: end with the text of the last message.

    Control tokens come from the template only. The text of a control token inside the messages, ``tools`` or ``documents``, or
    at the junction of two of their strings, is encoded as text: a character that occurs nowhere else is inserted into it while
    the template runs. So a template that searches a message for a control token's text does not find it. Not covered are
    templates that split such texts and join them again, or that write a part of one next to a message's text, and control
    tokens of a single character. User-defined tokens (``<think>``) are parsed everywhere, as the model's format expects; in
    vocabularies that mark turns with them (gpt-oss), contents can mark turns too.

    Arguments and errors as for `ChatTemplate.render`, except that contents in parts are joined: most templates do not support
    parts.
    """
    texts = {name: kwargs[name] for name in ("tools", "documents") if name in kwargs}
    messages = plain_messages(messages, template.source)  # joined before control tokens are matched
    (messages, texts), mark = shielded((messages, texts), tokenizer.control_texts, template.source)
    text = template.render(messages, add_generation_prompt, **{**kwargs, **texts})
    if not text and add_generation_prompt:
        origin = f" ({template.origin})" if template.origin else ""
        listed = ", ".join(f"messages[{i}] ({show(message['role'])})" for i, message in enumerate(messages[:4]))
        more = "" if len(messages) <= 4 else f" and {len(messages) - 4} more"
        raise TemplateError(f"the chat template{origin} renders an empty prompt for {listed}{more}")
    # A printed list or dict, and JSON in ASCII, contain the mark as an escape.
    text = text.replace(f"\\u{ord(mark):04x}", mark)
    if continue_final_message:
        text = until_final_message(text, messages)
    ids = tokenizer.encode(text, add_special=False, parse_special=True, shield=mark)
    if add_bos and tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids
