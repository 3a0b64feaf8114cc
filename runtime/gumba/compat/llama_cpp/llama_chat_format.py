"""Chat completions: messages to a prompt, and completions to answers of OpenAI's chat form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from gumba.chat.formats import answer_format
from gumba.chat.template import ChatTemplate, encode_chat
from gumba.chat.tool_parsers.base import checked_tools
from gumba.compat.llama_cpp.chat_answers import (
    answer_chunks,
    call_answer,
    call_chunks,
    calls_answer,
    chat_answer,
    parsed_answer,
    parsed_chunks,
    whole_chunks,
)
from gumba.compat.llama_cpp.chat_formats import CHAT_FORMATS
from gumba.compat.llama_cpp.function_formats import (
    FUNCTION_FORMATS,
    MAX_CALLS,
    FunctionFormat,
    calls,
    functions_of,
    pick,
    schema_grammar,
)
from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar
from gumba.compat.llama_cpp.llama_tokenizer import LlamaTokenizer, auto_tokenizer
from gumba.compat.llama_cpp.options import OptionError, logger, require, stop_list
from gumba.compat.llama_cpp.sampling import StoppingCriteriaList
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
from gumba.sampling_params import show

if TYPE_CHECKING:
    from gumba.compat.llama_cpp.llama import Llama

Answer = dict[str, Any]


class LlamaChatCompletionHandlerNotFoundException(RequestError):
    """A ``chat_format`` of an unknown name."""


class ChatTemplateError(TemplateError, ValueError):
    """A chat template that is wrong or refuses the messages. A ValueError too, as llama-cpp-python raises."""


#: llama-cpp-python's name of the file's own template.
_FILE_TEMPLATE = (None, "chat_template.default")

Handler: TypeAlias = Callable[..., Answer | Iterator[Answer]]


@dataclass
class ChatFormatterResponse:
    """A formatter's result: the prompt, and what ends the answer. ``added_special``: the prompt includes BOS."""

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """Called with ``messages=`` and the other keywords of ``create_chat_completion`` that a prompt may depend on."""

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse: ...


class LlamaChatCompletionHandler(Protocol):
    """Called with ``llama=`` and the keywords of ``create_chat_completion``."""

    def __call__(self, *, llama: Llama, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any: ...


class LlamaChatCompletionHandlerRegistry:
    """The handlers by name; one registry for all."""

    _chat_handlers: ClassVar[dict[str, Handler]] = {}

    def register_chat_completion_handler(self, name: str, chat_handler: Handler, overwrite: bool = False) -> None:
        """Add a handler. Raises RequestError (a ValueError) for a name that is taken, unless ``overwrite``."""
        if not overwrite and name in self._chat_handlers:
            raise RequestError(f"chat_format: a handler named {show(name)} is already registered")
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Remove a handler. Raises RequestError (a ValueError) if there is none."""
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
    """Decorator: the function answers chats of the format ``name``."""

    def register(handler: Handler) -> Handler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return handler

    return register


def register_chat_format(name: str) -> Callable[[ChatFormatter], ChatFormatter]:
    """Decorator: the function formats the prompts of the format ``name``."""

    def register(formatter: ChatFormatter) -> ChatFormatter:
        handler = chat_formatter_to_chat_completion_handler(formatter)
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return formatter

    return register


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter) -> Handler:
    """A handler that answers chats with the prompts of a formatter."""
    return functools.partial(_complete, _Formatted(chat_formatter))


def get_chat_completion_handler(name: str | None) -> Handler:
    """What answers conversations in the format ``name``; None: by the file's template, "chat_template.NAME": by the one of a
    name.

    Raises LlamaChatCompletionHandlerNotFoundException (a ValueError) for an unknown name.
    """
    if name in _FILE_TEMPLATE:
        return functools.partial(_complete, _Templated(None))
    if isinstance(name, str) and name.startswith("chat_template."):
        return functools.partial(_complete, _Templated(name.removeprefix("chat_template.")))
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name or "")


@dataclass
class _Prompt:
    """A prompt, what ends its answer, and the template whose way of calling tools is looked for in the answer."""

    ids: list[int]
    stops: list[str]
    source: str | None = None
    criteria: StoppingCriteriaList | None = None


@dataclass(frozen=True)
class _Templated:
    """Prompts by a template: a file's own (``name``: one of several), or ``template`` with the text that ends an answer."""

    name: str | None
    template: str | None = None
    stop: str | None = None

    def __call__(self, llama: Llama, messages: Any, tools: Any, **kwargs: Any) -> _Prompt:
        template = self._template(llama)
        return _Prompt(_ids(llama, template, messages, tools), [self.stop] if self.stop else [], template.source)

    def _template(self, llama: Llama) -> ChatTemplate:
        try:
            if self.template is not None:
                return ChatTemplate(self.template)
            return llama.llm.chat_template if self.name is None else llama.file_template(self.name)
        except TemplateError as error:
            raise ChatTemplateError(str(error)) from error


@dataclass(frozen=True)
class _Formatted:
    """Prompts of an application's formatter."""

    formatter: ChatFormatter

    def __call__(self, llama: Llama, messages: Any, tools: Any, **kwargs: Any) -> _Prompt:
        made = self.formatter(messages=messages, tools=tools, **kwargs)
        ids = llama.tokenize(made.prompt.encode("utf-8"), add_bos=not made.added_special, special=True)
        stops = [made.stop] if isinstance(made.stop, str) else list(made.stop or ())
        return _Prompt(ids, stops, getattr(self.formatter, "template", None), made.stopping_criteria)


def _complete(
    prompt_of: Callable[..., _Prompt],
    *,
    llama: Llama,
    messages: Sequence[Mapping[str, Any]],
    functions: Sequence[Mapping[str, Any]] | None = None,
    function_call: str | Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    stop: str | Sequence[str] | None = None,
    response_format: Mapping[str, Any] | None = None,
    grammar: LlamaGrammar | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    stream: bool = False,
    **options: Any,
) -> Answer | Iterator[Answer]:
    """A chat completion; ``options`` go to ``create_completion`` as they are."""
    tools, tool_choice = _as_tools(functions, function_call, tools, tool_choice)
    prompt = prompt_of(
        llama, messages, tools, functions=functions, function_call=function_call, tool_choice=tool_choice
    )
    tool = _chosen_tool(tools, tool_choice)
    if tools and tool_choice == "required":
        complete = functools.partial(_go_on, llama, prompt.ids, options)
        chosen = functions_of(tools)
        name = pick(complete, "", list(chosen)) if len(chosen) > 1 else next(iter(chosen))
        tool = {"name": name, "parameters": chosen[name]}
    if tool is not None:
        grammar = schema_grammar(tool.get("parameters") or {"type": "object"})
    elif response_format is not None:
        grammar = _response_grammar(response_format) or grammar
    if prompt.criteria is not None:
        options["stopping_criteria"] = prompt.criteria
    completion = llama.create_completion(
        prompt.ids,
        stop=[*stop_list(stop), *prompt.stops],
        grammar=grammar,
        logprobs=(top_logprobs or 0) if logprobs else None,
        stream=stream,
        **options,
    )
    if tool is not None:
        name = tool["name"]
        return call_answer(completion, name) if isinstance(completion, dict) else call_chunks(completion, name)
    parser = None
    if tools and prompt.source is not None:  # reasoning stays in the text, as llama-cpp-python leaves it
        form = answer_format(
            llama.llm.tokenizer, prompt.source, prompt.ids, reasoning="off", tools=checked_tools(tools)
        )
        parser = None if form is None else form.parser()
    if isinstance(completion, dict):
        return chat_answer(completion) if parser is None else parsed_answer(completion, parser)
    return answer_chunks(completion) if parser is None else parsed_chunks(completion, parser)


def _as_tools(
    functions: Sequence[Mapping[str, Any]] | None,
    function_call: str | Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None,
) -> tuple[Sequence[Mapping[str, Any]] | None, str | Mapping[str, Any] | None]:
    """(tools, tool_choice), converted from OpenAI's older functions and function_call if necessary."""
    require("functions", functions, (list, tuple, type(None)), "a list of functions")
    require("tool_choice", tool_choice, (str, Mapping, type(None)), "a text or a function")
    require("function_call", function_call, (str, Mapping, type(None)), "a text or a function")
    if functions is not None:
        tools = [{"type": "function", "function": function} for function in functions]
    if function_call is not None:
        tool_choice = function_call if isinstance(function_call, str) else {"function": function_call}
    if isinstance(tool_choice, str) and tool_choice not in ("none", "auto", "required"):
        raise RequestError(f"tool_choice: expected 'none', 'auto', 'required' or a function, found {show(tool_choice)}")
    if not tools and (tool_choice == "required" or isinstance(tool_choice, Mapping)):
        logger.warning("tool_choice has no effect: no tools are offered")
    return None if tool_choice == "none" or tools is None else checked_tools(tools), tool_choice


def _go_on(
    llama: Llama, ids: list[int], options: Mapping[str, Any], text: str, grammar: LlamaGrammar | None, **more: Any
) -> Any:
    """Complete a prompt that goes on with ``text``."""
    after = llama.tokenize(text.encode("utf-8"), add_bos=False, special=True) if text else []
    return llama.create_completion([*ids, *after], grammar=grammar, **{**options, **more})


def _with_functions(
    form: FunctionFormat,
    *,
    llama: Llama,
    messages: Sequence[Mapping[str, Any]],
    functions: Sequence[Mapping[str, Any]] | None = None,
    function_call: str | Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    stop: str | Sequence[str] | None = None,
    stream: bool = False,
    **options: Any,
) -> Answer | Iterator[Answer]:
    """A chat completion in a format whose answers begin with a message's or a call's opening."""
    tools, tool_choice = _as_tools(functions, function_call, tools, tool_choice)
    stops = [*stop_list(stop), form.stop]
    ids = _ids(llama, ChatTemplate(form.template), messages, tools)
    before = form.message if form.always else ""
    if tools:
        plain = {key: value for key, value in options.items() if key in COMPLETION_KEYWORDS} | {"stop": stops}
        complete = functools.partial(_go_on, llama, ids, plain)
        known = functions_of(tools)
        tool = _chosen_tool(tools, tool_choice)
        openings = [form.call.replace("NAME", name) for name in known]
        if tool is not None:
            first = form.call.replace("NAME", tool["name"])
        else:
            first = pick(complete, "", openings if tool_choice == "required" else [*openings, form.message])
        if first != form.message:
            made = list(calls(complete, form, known, first, 1 if tool is not None else MAX_CALLS))
            return whole_chunks(calls_answer(made)) if stream else calls_answer(made)
        before = form.message
    after = llama.tokenize(before.encode("utf-8"), add_bos=False, special=True) if before else []
    handler = functools.partial(_complete, lambda *given, **kwargs: _Prompt([*ids, *after], [form.stop]))
    return handler(llama=llama, messages=messages, stop=stop, stream=stream, **options)


#: The keywords of a completion that are those of a chat completion too.
COMPLETION_KEYWORDS = frozenset((
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "max_tokens", "presence_penalty", "frequency_penalty",
    "repeat_penalty", "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta", "model", "logits_processor", "logit_bias",
))  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the prompt


def _ids(
    llama: Llama,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[int]:
    """Token ids of a conversation up to where the answer begins."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages: expected a list of messages, found {show(messages)}")
    for i, each in enumerate(messages):
        require(f"messages[{i}]", each, Mapping, "a mapping with a role and a content")
    flat = [{**each, "content": _text(each["content"])} if "content" in each else each for each in messages]
    try:
        variables: dict[str, Any] = {"tools": tools} if tools else {}
        if isinstance(llama.tokenizer_, LlamaTokenizer):
            return encode_chat(llama.llm.tokenizer, template, flat, **variables)
        text = template.render(flat, **variables)
        bos = llama.llm.tokenizer.bos_id
        first = "" if bos is None else llama.llm.tokenizer.token_bytes(bos).decode("utf-8", "replace")
        return llama.tokenize(text.encode("utf-8"), add_bos=not (first and text.startswith(first)), special=True)
    except TemplateError as error:
        raise ChatTemplateError(str(error)) from error


def _text(content: Any) -> Any:
    """The text of a message that comes in parts. Raises OptionError for parts that are no text."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise OptionError(f"messages: gumba reads parts of text only, found {show(part)}")
    return "".join(part["text"] for part in content)


def _chosen_tool(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The function that must be called; None when none must. Raises RequestError when it is not there."""
    if tools is None or not isinstance(choice, Mapping):
        return None
    name = (choice.get("function") or {}).get("name")
    for tool in tools:
        function: Mapping[str, Any] = tool.get("function") or {}
        if function.get("name") == name:
            return function
    raise RequestError(f"tool_choice: {show(name)} is not among the tools")


def _response_grammar(response_format: Mapping[str, Any]) -> LlamaGrammar | None:
    """What ``response_format`` holds the answer to; None for plain text. Raises RequestError for an unknown type."""
    require("response_format", response_format, Mapping, "an object with a type")
    kind = response_format.get("type")
    if kind == "json_object":
        return schema_grammar(response_format.get("schema", {"type": "object"}))
    if kind == "json_schema":
        inner = response_format.get("json_schema") or {}
        require("response_format.json_schema", inner, Mapping, "an object with a schema")
        return schema_grammar(inner.get("schema", {"type": "object"}))
    if kind != "text":
        raise RequestError(f"response_format: expected type text, json_object or json_schema, found {show(kind)}")
    return None


# ----------------------------------------------------------------------------------------------- the formats by name


class Jinja2ChatFormatter:
    """Formats prompts with a Jinja template. Each of ``stop_token_ids`` ends the answer, as does ``eos_token``."""

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

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        """The prompt of ``messages``; ``kwargs`` are variables of the template."""
        try:
            prompt = self._template.render(messages, self.add_generation_prompt, **kwargs)
        except TemplateError as error:
            raise ChatTemplateError(str(error)) from error
        ends = self.stop_token_ids
        criteria = (
            None if ends is None else StoppingCriteriaList([lambda ids, logits: bool(len(ids)) and ids[-1] in ends])
        )
        return ChatFormatterResponse(prompt, [self.eos_token] if self.eos_token else [], criteria, added_special=True)

    def to_chat_handler(self) -> Handler:
        """A handler that answers chats with these prompts."""
        return chat_formatter_to_chat_completion_handler(self)


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """Formats prompts with the template of a ``tokenizer_config.json``. Raises RequestError (a ValueError) for a missing key."""
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
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> Handler:
    """A handler that answers chats with the template of a ``tokenizer_config.json``."""
    formatter = hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    return chat_formatter_to_chat_completion_handler(formatter)


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: Any) -> ChatFormatter:
    """Formats prompts with a tokenizer of the package transformers. Raises an ImportError if that is not installed."""
    tokenizer = auto_tokenizer(pretrained_model_name_or_path)

    def formatted(*, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return ChatFormatterResponse(prompt, tokenizer.eos_token, added_special=True)

    return formatted


def hf_autotokenizer_to_chat_completion_handler(pretrained_model_name_or_path: Any) -> Handler:
    """A handler that answers chats with the prompts of a tokenizer of the package transformers."""
    return chat_formatter_to_chat_completion_handler(hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path))


def guess_chat_format_from_gguf_metadata(metadata: Mapping[str, str]) -> str | None:
    """The format of a file's template (chatml, llama-3 or mistral-instruct), recognized by the markers it contains."""
    template = metadata.get("tokenizer.chat_template", "")
    marks = {"chatml": "<|im_start|>", "llama-3": "<|start_header_id|>", "mistral-instruct": "[INST]"}
    return next((name for name, mark in marks.items() if mark in template), None)


def _formatter(name: str) -> Callable[..., ChatFormatterResponse]:
    """The formatter of the entry ``name`` of ``CHAT_FORMATS``."""
    source, stop = CHAT_FORMATS[name]

    def formatted(messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        return ChatFormatterResponse(ChatTemplate(source).render(messages), stop)

    return formatted


for _name, (_source, _stop) in CHAT_FORMATS.items():
    register_chat_completion_handler(_name)(functools.partial(_complete, _Templated(None, _source, _stop)))
for _name, _form in FUNCTION_FORMATS.items():
    register_chat_completion_handler(_name)(functools.partial(_with_functions, _form))

chatml_function_calling = functools.partial(_with_functions, FUNCTION_FORMATS["chatml-function-calling"])
functionary_chat_handler = functools.partial(_with_functions, FUNCTION_FORMATS["functionary"])
functionary_v1_v2_chat_handler = functools.partial(_with_functions, FUNCTION_FORMATS["functionary-v2"])
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
