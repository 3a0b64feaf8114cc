"""Chat formats by name, and the formatters and handlers that applications register."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from gumba.chat.template import ChatTemplate
from gumba.compat.llama_cpp.chat_completion import (
    ChatResult,
    Handler,
    Prompt,
    TemplatePrompts,
    complete_chat,
    complete_function_chat,
)
from gumba.compat.llama_cpp.chat_formats import CHAT_FORMATS
from gumba.compat.llama_cpp.errors import ChatTemplateError
from gumba.compat.llama_cpp.function_formats import FUNCTION_FORMATS
from gumba.compat.llama_cpp.llama_tokenizer import auto_tokenizer
from gumba.compat.llama_cpp.sampling import StoppingCriteriaList
from gumba.compat.llama_cpp.state import ChatModel, JsonObject
from gumba.compat.llama_cpp.vision_handlers import Gemma4ChatHandler as Gemma4ChatHandler
from gumba.compat.llama_cpp.vision_handlers import Llama3VisionAlpha as Llama3VisionAlpha
from gumba.compat.llama_cpp.vision_handlers import Llama3VisionAlphaChatHandler as Llama3VisionAlphaChatHandler
from gumba.compat.llama_cpp.vision_handlers import Llava15ChatHandler as Llava15ChatHandler
from gumba.compat.llama_cpp.vision_handlers import Llava16ChatHandler as Llava16ChatHandler
from gumba.compat.llama_cpp.vision_handlers import MiniCPMv26ChatHandler as MiniCPMv26ChatHandler
from gumba.compat.llama_cpp.vision_handlers import MoondreamChatHandler as MoondreamChatHandler
from gumba.compat.llama_cpp.vision_handlers import MTMDChatHandler as MTMDChatHandler
from gumba.compat.llama_cpp.vision_handlers import NanoLlavaChatHandler as NanoLlavaChatHandler
from gumba.compat.llama_cpp.vision_handlers import ObsidianChatHandler as ObsidianChatHandler
from gumba.compat.llama_cpp.vision_handlers import Qwen25VLChatHandler as Qwen25VLChatHandler
from gumba.errors import RequestError, TemplateError
from gumba.validation import show


class LlamaChatCompletionHandlerNotFoundException(RequestError):
    """A ``chat_format`` of an unknown name."""


#: Names of the file's own template.
_FILE_TEMPLATE = (None, "chat_template.default")


@dataclass
class ChatFormatterResponse:
    """The result of a formatter: the prompt, and what ends the answer. ``added_special``: the prompt includes BOS."""

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """Formats the prompt of a chat; ``kwargs`` are keywords of ``create_chat_completion`` that a prompt may depend on."""

    def __call__(self, *, messages: Sequence[JsonObject], **kwargs: object) -> ChatFormatterResponse: ...


class LlamaChatCompletionHandler(Protocol):
    """Completes chats; ``kwargs`` are the keywords of ``create_chat_completion``."""

    def __call__(self, *, llama: ChatModel, messages: Sequence[JsonObject], **kwargs: object) -> ChatResult: ...


class LlamaChatCompletionHandlerRegistry:
    """Registry of chat handlers by name; all instances share one table."""

    _chat_handlers: ClassVar[dict[str, Handler]] = {}

    def register_chat_completion_handler(self, name: str, chat_handler: Handler, overwrite: bool = False) -> None:
        """Add a handler. Raises RequestError (a ValueError) if the name is registered already, unless ``overwrite``."""
        if not overwrite and name in self._chat_handlers:
            raise RequestError(f"chat_format: a handler named {show(name)} is already registered")
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Remove a handler. Raises RequestError (a ValueError) for an unknown name."""
        if self._chat_handlers.pop(name, None) is None:
            raise RequestError(f"chat_format: no handler named {show(name)} is registered")

    def get_chat_completion_handler_by_name(self, name: str) -> Handler:
        """The handler named ``name``. Raises LlamaChatCompletionHandlerNotFoundException (a ValueError) for an unknown one."""
        if name not in self._chat_handlers:
            raise LlamaChatCompletionHandlerNotFoundException(
                f"chat_format: expected one of {', '.join(self._chat_handlers)}, or None for the file's own, "
                f"found {show(name)}"
            )
        return self._chat_handlers[name]


def register_chat_completion_handler(name: str) -> Callable[[Handler], Handler]:
    """Decorator that registers a function as the handler of the chat format ``name``."""

    def register(handler: Handler) -> Handler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return handler

    return register


def register_chat_format(name: str) -> Callable[[ChatFormatter], ChatFormatter]:
    """Decorator that registers a function as the prompt formatter of the chat format ``name``."""

    def register(formatter: ChatFormatter) -> ChatFormatter:
        handler = chat_formatter_to_chat_completion_handler(formatter)
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return formatter

    return register


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter) -> Handler:
    """A handler that completes the prompts of a formatter."""
    return functools.partial(complete_chat, _FormatterPrompts(chat_formatter))


def get_chat_completion_handler(name: str | None) -> Handler:
    """The handler of the chat format ``name``. None: the file's template; "chat_template.NAME": the file's template NAME.

    Raises LlamaChatCompletionHandlerNotFoundException (a ValueError) for an unknown name.
    """
    if name in _FILE_TEMPLATE:
        return functools.partial(complete_chat, TemplatePrompts(None))
    if isinstance(name, str) and name.startswith("chat_template."):
        return functools.partial(complete_chat, TemplatePrompts(name.removeprefix("chat_template.")))
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name or "")


@dataclass(frozen=True)
class _FormatterPrompts:
    """Prompts of an application's formatter."""

    formatter: ChatFormatter

    def __call__(
        self, llama: ChatModel, messages: Sequence[JsonObject], tools: Sequence[JsonObject] | None, **options: object
    ) -> Prompt:
        response = self.formatter(messages=messages, tools=tools, **options)
        ids = llama.tokenize(response.prompt.encode("utf-8"), add_bos=not response.added_special, special=True)
        stops = [response.stop] if isinstance(response.stop, str) else list(response.stop or ())
        return Prompt(ids, stops, getattr(self.formatter, "template", None), response.stopping_criteria)


# ----------------------------------------------------------------------------------------------- the formats by name


class Jinja2ChatFormatter:
    """Formats prompts with a Jinja template. ``eos_token`` and each of ``stop_token_ids`` end the answer."""

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.template = template
        self.eos_token = eos_token
        self.bos_token = bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else set(stop_token_ids)
        try:
            self._template = ChatTemplate(template, {"eos_token": eos_token, "bos_token": bos_token})
        except TemplateError as error:
            raise ChatTemplateError(str(error)) from error

    def __call__(self, *, messages: Sequence[JsonObject], **kwargs: object) -> ChatFormatterResponse:
        """The prompt of ``messages``; ``kwargs`` are variables of the template."""
        try:
            prompt = self._template.render(messages, self.add_generation_prompt, **kwargs)
        except TemplateError as error:
            raise ChatTemplateError(str(error)) from error
        stops = self.stop_token_ids
        criteria = (
            None if stops is None else StoppingCriteriaList([lambda ids, logits: bool(len(ids)) and ids[-1] in stops])
        )
        return ChatFormatterResponse(prompt, [self.eos_token] if self.eos_token else [], criteria, added_special=True)

    def to_chat_handler(self) -> Handler:
        """A handler that completes these prompts."""
        return chat_formatter_to_chat_completion_handler(self)


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, object], add_generation_prompt: bool = True
) -> ChatFormatter:
    """A formatter with the template of a ``tokenizer_config.json``. Raises RequestError (a ValueError) for a missing key."""
    texts: dict[str, Any] = {}
    for key in ("chat_template", "bos_token", "eos_token"):
        value = tokenizer_config.get(key)
        texts[key] = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(texts[key], str):
            raise RequestError(f"tokenizer_config: {key}: expected text, found {show(value)}")
    return Jinja2ChatFormatter(
        texts["chat_template"], texts["eos_token"], texts["bos_token"], add_generation_prompt=add_generation_prompt
    )


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, object], add_generation_prompt: bool = True
) -> Handler:
    """A handler with the template of a ``tokenizer_config.json``."""
    formatter = hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    return chat_formatter_to_chat_completion_handler(formatter)


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: object) -> ChatFormatter:
    """A formatter with the template of a tokenizer of the package transformers. Raises an ImportError without that package."""
    tokenizer = auto_tokenizer(pretrained_model_name_or_path)

    def formatted(*, messages: Sequence[JsonObject], **kwargs: object) -> ChatFormatterResponse:
        prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return ChatFormatterResponse(prompt, tokenizer.eos_token, added_special=True)

    return formatted


def hf_autotokenizer_to_chat_completion_handler(pretrained_model_name_or_path: object) -> Handler:
    """A handler with the template of a tokenizer of the package transformers."""
    return chat_formatter_to_chat_completion_handler(hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path))


def guess_chat_format_from_gguf_metadata(metadata: Mapping[str, str]) -> str | None:
    """The format of a file's template (chatml, llama-3 or mistral-instruct), recognized by the markers it contains."""
    template = metadata.get("tokenizer.chat_template", "")
    markers = {"chatml": "<|im_start|>", "llama-3": "<|start_header_id|>", "mistral-instruct": "[INST]"}
    return next((name for name, marker in markers.items() if marker in template), None)


def _formatter(name: str) -> Callable[..., ChatFormatterResponse]:
    """The formatter of the entry ``name`` of ``CHAT_FORMATS``."""
    source, stop = CHAT_FORMATS[name]

    def formatted(messages: Sequence[JsonObject], **kwargs: object) -> ChatFormatterResponse:
        return ChatFormatterResponse(ChatTemplate(source).render(messages), stop)

    return formatted


for _name, (_source, _stop) in CHAT_FORMATS.items():
    register_chat_completion_handler(_name)(functools.partial(complete_chat, TemplatePrompts(None, _source, _stop)))
for _name, _form in FUNCTION_FORMATS.items():
    register_chat_completion_handler(_name)(functools.partial(complete_function_chat, _form))

chatml_function_calling = functools.partial(complete_function_chat, FUNCTION_FORMATS["chatml-function-calling"])
functionary_chat_handler = functools.partial(complete_function_chat, FUNCTION_FORMATS["functionary"])
functionary_v1_v2_chat_handler = functools.partial(complete_function_chat, FUNCTION_FORMATS["functionary-v2"])
format = _formatter("vicuna")
format_alpaca = _formatter("alpaca")
format_baichuan = _formatter("baichuan")
format_baichuan2 = _formatter("baichuan-2")
format_chatglm3 = _formatter("chatglm3")
format_chatml = _formatter("chatml")
format_gemma = _formatter("gemma")
format_intel = _formatter("intel")
format_llama2 = _formatter("llama-2")
format_llama3 = _formatter("llama-3")
format_mistral_instruct = _formatter("mistral-instruct")
format_mistrallite = _formatter("mistrallite")
format_oasst_llama = _formatter("oasst_llama")
format_open_orca = _formatter("open-orca")
format_openbuddy = _formatter("openbuddy")
format_openchat = _formatter("openchat")
format_phind = _formatter("phind")
format_pygmalion = _formatter("pygmalion")
format_qwen = _formatter("qwen")
format_redpajama_incite = _formatter("redpajama-incite")
format_saiga = _formatter("saiga")
format_snoozy = _formatter("snoozy")
format_zephyr = _formatter("zephyr")
