"""How a chat completion runs: messages to a prompt, a text completion, and its conversion to a chat completion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

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
from gumba.compat.llama_cpp.errors import ChatTemplateError, OptionError
from gumba.compat.llama_cpp.function_formats import (
    MAX_CALLS,
    FunctionFormat,
    complete_calls,
    functions_of,
    pick,
    schema_grammar,
)
from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar
from gumba.compat.llama_cpp.options import logger, require, stop_list
from gumba.compat.llama_cpp.sampling import StoppingCriteriaList
from gumba.compat.llama_cpp.state import ChatModel, JsonObject
from gumba.errors import RequestError, TemplateError
from gumba.openai.requests import response_schema
from gumba.validation import show

if TYPE_CHECKING:
    from gumba.openai import types

#: A text completion, or the chunks of a streamed one.
CompletionResult: TypeAlias = "types.CreateCompletionResponse | Iterator[types.CreateCompletionStreamResponse]"
#: A chat completion, or the chunks of a streamed one.
ChatResult: TypeAlias = "types.CreateChatCompletionResponse | Iterator[types.CreateChatCompletionStreamResponse]"
#: A tool choice: "none", "auto", "required", or a function by its name.
ToolChoice: TypeAlias = "str | JsonObject"


@dataclass
class Prompt:
    """A prompt, what ends its answer, and the template whose form of tool calls the answer is parsed for."""

    ids: list[int]
    stops: list[str]
    source: str | None = None
    criteria: StoppingCriteriaList | None = None


class PromptBuilder(Protocol):
    """Builds the prompt of a conversation; ``options`` are the keywords about tools of ``create_chat_completion``."""

    def __call__(
        self, llama: ChatModel, messages: Sequence[JsonObject], tools: Sequence[JsonObject] | None, **options: object
    ) -> Prompt: ...


@dataclass(frozen=True)
class TemplatePrompts:
    """Prompts of a template: the file's own (``name``: one of several), or ``template`` with the text that ends an answer."""

    name: str | None
    template: str | None = None
    stop: str | None = None

    def __call__(
        self, llama: ChatModel, messages: Sequence[JsonObject], tools: Sequence[JsonObject] | None, **options: object
    ) -> Prompt:
        template = self._template(llama)
        return Prompt(_encode(llama, template, messages, tools), [self.stop] if self.stop else [], template.source)

    def _template(self, llama: ChatModel) -> ChatTemplate:
        try:
            if self.template is not None:
                return ChatTemplate(self.template)
            return llama.llm.chat_template if self.name is None else llama.file_template(self.name)
        except TemplateError as error:
            raise ChatTemplateError(str(error)) from error


def complete_chat(
    build_prompt: PromptBuilder,
    *,
    llama: ChatModel,
    messages: Sequence[JsonObject],
    functions: Sequence[JsonObject] | None = None,
    function_call: ToolChoice | None = None,
    tools: Sequence[JsonObject] | None = None,
    tool_choice: ToolChoice | None = None,
    stop: str | Sequence[str] | None = None,
    response_format: JsonObject | None = None,
    grammar: LlamaGrammar | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    stream: bool = False,
    **options: object,
) -> ChatResult:
    """A chat completion; ``options`` are passed on to ``create_completion``."""
    tools, tool_choice = _as_tools(functions, function_call, tools, tool_choice)
    prompt = build_prompt(
        llama, messages, tools, functions=functions, function_call=function_call, tool_choice=tool_choice
    )
    tool = _chosen_tool(tools, tool_choice)
    if tools and tool_choice == "required":
        complete = functools.partial(_continue, llama, prompt.ids, options)
        parameters = functions_of(tools)
        name = pick(complete, "", list(parameters)) if len(parameters) > 1 else next(iter(parameters))
        tool = {"name": name, "parameters": parameters[name]}
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
    return _chat_result(llama, prompt, tools, tool, completion)


def _chat_result(
    llama: ChatModel,
    prompt: Prompt,
    tools: Sequence[JsonObject] | None,
    tool: JsonObject | None,
    completion: CompletionResult,
) -> ChatResult:
    """A completion (or its chunks) as a chat completion (or its chunks); ``tool``: the function that had to be called."""
    if tool is not None:
        name = tool["name"]
        return call_chunks(completion, name) if isinstance(completion, Iterator) else call_answer(completion, name)
    parser = None
    if tools and prompt.source is not None:  # reasoning stays in the text, as in llama-cpp-python
        form = answer_format(
            llama.llm.tokenizer, prompt.source, prompt.ids, reasoning="off", tools=checked_tools(tools)
        )
        parser = None if form is None else form.parser()
    if isinstance(completion, Iterator):
        return answer_chunks(completion) if parser is None else parsed_chunks(completion, parser)
    return chat_answer(completion) if parser is None else parsed_answer(completion, parser)


#: The keywords that completions and chat completions share.
COMPLETION_KEYWORDS = frozenset((
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "max_tokens", "presence_penalty", "frequency_penalty",
    "repeat_penalty", "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta", "model", "logits_processor", "logit_bias",
))  # fmt: skip


def complete_function_chat(
    form: FunctionFormat,
    *,
    llama: ChatModel,
    messages: Sequence[JsonObject],
    functions: Sequence[JsonObject] | None = None,
    function_call: ToolChoice | None = None,
    tools: Sequence[JsonObject] | None = None,
    tool_choice: ToolChoice | None = None,
    stop: str | Sequence[str] | None = None,
    stream: bool = False,
    **options: Any,
) -> ChatResult:
    """A chat completion in a format whose answers begin with the opening of a message or of a call."""
    tools, tool_choice = _as_tools(functions, function_call, tools, tool_choice)
    stops = [*stop_list(stop), form.stop]
    ids = _encode(llama, ChatTemplate(form.template), messages, tools)
    opening = form.message if form.always else ""
    if tools:
        shared = {key: value for key, value in options.items() if key in COMPLETION_KEYWORDS} | {"stop": stops}
        complete = functools.partial(_continue, llama, ids, shared)
        parameters = functions_of(tools)
        tool = _chosen_tool(tools, tool_choice)
        call_openings = [form.call.replace("NAME", name) for name in parameters]
        if tool is not None:
            first = form.call.replace("NAME", tool["name"])
        else:
            required = tool_choice == "required"
            first = pick(complete, "", call_openings if required else [*call_openings, form.message])
        if first != form.message:
            calls = complete_calls(complete, form, parameters, first, 1 if tool is not None else MAX_CALLS)
            answer = calls_answer(list(calls))
            return whole_chunks(answer) if stream else answer
        opening = form.message
    after = llama.tokenize(opening.encode("utf-8"), add_bos=False, special=True) if opening else []

    def build_prompt(*args: object, **kwargs: object) -> Prompt:
        return Prompt([*ids, *after], [form.stop])

    return complete_chat(build_prompt, llama=llama, messages=messages, stop=stop, stream=stream, **options)


def _as_tools(
    functions: Sequence[JsonObject] | None,
    function_call: ToolChoice | None,
    tools: Sequence[JsonObject] | None,
    tool_choice: ToolChoice | None,
) -> tuple[Sequence[JsonObject] | None, ToolChoice | None]:
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


def _continue(
    llama: ChatModel,
    ids: list[int],
    options: Mapping[str, object],
    text: str,
    grammar: LlamaGrammar | None,
    **overrides: object,
) -> Any:
    """Complete a prompt that continues with ``text``."""
    after = llama.tokenize(text.encode("utf-8"), add_bos=False, special=True) if text else []
    return llama.create_completion([*ids, *after], grammar=grammar, **{**options, **overrides})


def _encode(
    llama: ChatModel,
    template: ChatTemplate,
    messages: Sequence[JsonObject],
    tools: Sequence[JsonObject] | None,
) -> list[int]:
    """Token ids of a conversation, up to where the answer begins."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages: expected a list of messages, found {show(messages)}")
    for i, message in enumerate(messages):
        require(f"messages[{i}]", message, Mapping, "a mapping with a role and a content")
    flat = [
        {**message, "content": _text(message["content"])} if "content" in message else message for message in messages
    ]
    try:
        variables: dict[str, Any] = {"tools": tools} if tools else {}
        if llama.has_own_tokenizer:
            return encode_chat(llama.llm.tokenizer, template, flat, **variables)
        text = template.render(flat, **variables)
        bos_id = llama.llm.tokenizer.bos_id
        bos = "" if bos_id is None else llama.llm.tokenizer.token_bytes(bos_id).decode("utf-8", "replace")
        return llama.tokenize(text.encode("utf-8"), add_bos=not (bos and text.startswith(bos)), special=True)
    except TemplateError as error:
        raise ChatTemplateError(str(error)) from error


def _text(content: object) -> Any:
    """The text of a message's content, which may come in parts. Raises OptionError for parts that are not text."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise OptionError(f"messages: gumba reads parts of text only, found {show(part)}")
    return "".join(part["text"] for part in content)


def _chosen_tool(tools: Sequence[JsonObject] | None, choice: ToolChoice | None) -> JsonObject | None:
    """The function that ``tool_choice`` names; None if it names none. Raises RequestError for an unknown one."""
    if tools is None or not isinstance(choice, Mapping):
        return None
    name = (choice.get("function") or {}).get("name")
    for tool in tools:
        function: JsonObject = tool.get("function") or {}
        if function.get("name") == name:
            return function
    raise RequestError(f"tool_choice: {show(name)} is not among the tools")


def _response_grammar(response_format: JsonObject) -> LlamaGrammar | None:
    """The grammar of a ``response_format``; None for plain text. Raises RequestError for an unknown type."""
    require("response_format", response_format, Mapping, "an object with a type")
    if response_format.get("type") == "json_schema":
        inner = response_format.get("json_schema") or {}
        require("response_format.json_schema", inner, Mapping, "an object with a schema")
    kind, schema = response_schema(response_format, default={"type": "object"})
    return None if kind == "text" else schema_grammar(schema)


#: Completes chats: called with ``llama=`` and the keywords of ``create_chat_completion``.
Handler: TypeAlias = "Callable[..., ChatResult]"
