"""Chat completions: messages to a prompt, and completions to answers of OpenAI's chat form."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gumba.chat_parsing import AnswerParser, answer_format, checked_tools
from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar
from gumba.compat.llama_cpp.options import OptionError
from gumba.errors import RequestError, TemplateError
from gumba.params import show
from gumba.text import ChatTemplate, encode_chat

if TYPE_CHECKING:
    from gumba.compat.llama_cpp.llama import Llama

Answer = dict[str, Any]


class LlamaChatCompletionHandlerNotFoundException(RequestError):
    """A ``chat_format`` of an unknown name."""


class ChatTemplateError(TemplateError, ValueError):
    """A chat template that is wrong or refuses the messages. A ValueError too, as llama-cpp-python raises."""


def _turns(before: str, after: str, answer: str) -> str:
    """A template of one turn per message: ``before`` (where ROLE is its role), its text, ``after``; then ``answer``."""
    role = before.replace("ROLE", "{{ message['role'] }}")
    return f"{{% for message in messages %}}{role}{{{{ message['content'] }}}}{after}{{% endfor %}}{{{{ {answer!r} }}}}"


def _inst(system: str, start: str, end: str) -> str:
    """A template of Mistral's kind: the system's text goes into the next turn of the user."""
    return (
        "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
        f"{{% set ns.system = {system} %}}{{% elif message['role'] == 'user' %}}"
        f"{start}[INST] {{{{ ns.system ~ message['content'] }}}} [/INST]{{% set ns.system = '' %}}"
        f"{{% else %}}{{{{ ' ' ~ message['content'] }}}}{end}{{% endif %}}{{% endfor %}}"
    )


_CHATML = _turns("<|im_start|>ROLE\n", "<|im_end|>\n", "<|im_start|>assistant\n")

#: Name -> template, and the text that ends an answer where the file does not say so.
CHAT_FORMATS: dict[str, tuple[str, str]] = {
    "chatml": (_CHATML, "<|im_end|>"),
    "qwen": (_CHATML, "<|im_end|>"),
    "gemma": (
        "{% for message in messages %}<start_of_turn>"
        "{{ 'model' if message['role'] == 'assistant' else 'user' }}\n{{ message['content'] }}<end_of_turn>\n"
        "{% endfor %}{{ '<start_of_turn>model\n' }}",
        "<end_of_turn>",
    ),
    "llama-2": (_inst("'<<SYS>>\\n' ~ message['content'] ~ '\\n<</SYS>>\\n\\n'", "<s>", " </s>"), "</s>"),
    "llama-3": (
        _turns(
            "<|start_header_id|>ROLE<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        "<|eot_id|>",
    ),
    "mistral-instruct": (_inst("message['content'] ~ '\\n\\n'", "", "</s>"), "</s>"),
    "zephyr": (_turns("<|ROLE|>\n", "</s>\n", "<|assistant|>\n"), "</s>"),
}

#: What llama-cpp-python calls the file's own template.
_FILE_TEMPLATE = (None, "chat_template.default")


def get_chat_completion_handler(name: str | None) -> Callable[..., Answer | Iterator[Answer]]:
    """What answers conversations in the format ``name``; None: by the file's template.

    Raises LlamaChatCompletionHandlerNotFoundException (a ValueError) for an unknown name.
    """
    if name not in _FILE_TEMPLATE and name not in CHAT_FORMATS:
        raise LlamaChatCompletionHandlerNotFoundException(
            f"chat_format: expected one of {', '.join(CHAT_FORMATS)}, or None for the file's own, found {show(name)}"
        )
    return functools.partial(_complete, name)


def _complete(
    name: str | None,
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
    if functions is not None:
        tools = [{"type": "function", "function": function} for function in functions]
    if function_call is not None:
        tool_choice = function_call if isinstance(function_call, str) else {"function": function_call}
    tool = _chosen_tool(tools, tool_choice)
    if tool_choice == "none":
        tools = None
    if tool is not None:
        grammar = _schema_grammar(tool.get("parameters") or {"type": "object"})
    elif response_format is not None:
        grammar = _response_grammar(response_format) or grammar
    template = _template(llama, name)
    prompt = _prompt(llama, template, messages, tools)
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if name in CHAT_FORMATS:
        stops.append(CHAT_FORMATS[name][1])
    completion = llama.create_completion(
        prompt,
        stop=stops,
        grammar=grammar,
        logprobs=(top_logprobs or 0) if logprobs else None,
        stream=stream,
        **options,
    )
    if tool is not None:
        name = tool["name"]
        return _call(completion, name) if isinstance(completion, dict) else _call_chunks(completion, name)
    parser = None
    if tools:  # calls are looked for; reasoning stays in the text, as llama-cpp-python leaves it
        form = answer_format(llama.llm.tokenizer, template.source, prompt, reasoning="off", tools=checked_tools(tools))
        parser = None if form is None else form.parser()
    if isinstance(completion, dict):
        return _answer(completion) if parser is None else _parsed(completion, parser)
    return _answer_chunks(completion) if parser is None else _parsed_chunks(completion, parser)


# -------------------------------------------------------------------------------------------------------- the prompt


def _template(llama: Llama, name: str | None) -> ChatTemplate:
    try:
        return ChatTemplate(CHAT_FORMATS[name][0]) if name in CHAT_FORMATS else llama.llm.chat_template
    except TemplateError as error:
        raise ChatTemplateError(str(error)) from error


def _prompt(
    llama: Llama,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[int]:
    """Token ids of a conversation up to where the answer begins."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages: expected a list of messages, found {show(messages)}")
    flat = [{**each, "content": _text(each["content"])} if "content" in each else each for each in messages]
    try:
        variables: dict[str, Any] = {"tools": tools} if tools else {}
        return encode_chat(llama.llm.tokenizer, template, flat, **variables)
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
    kind = response_format.get("type")
    if kind == "json_object":
        return _schema_grammar(response_format.get("schema", {"type": "object"}))
    if kind == "json_schema":
        return _schema_grammar((response_format.get("json_schema") or {}).get("schema", {"type": "object"}))
    if kind != "text":
        raise RequestError(f"response_format: expected type text, json_object or json_schema, found {show(kind)}")
    return None


def _schema_grammar(schema: Any) -> LlamaGrammar:
    return LlamaGrammar.from_json_schema(schema if isinstance(schema, str) else json.dumps(schema))


# -------------------------------------------------------------------------------------------------------- the answer


def _answer(completion: Answer) -> Answer:
    choice = completion["choices"][0]
    return {
        "id": "chat" + completion["id"],
        "object": "chat.completion",
        "created": completion["created"],
        "model": completion["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": choice["text"]},
                "logprobs": _chat_logprobs(choice["logprobs"]),
                "finish_reason": choice["finish_reason"],
            }
        ],
        "usage": completion["usage"],
    }


def _call(completion: Answer, name: str) -> Answer:
    """The answer is a call of the function ``name``, whose arguments are the text."""
    answer = _answer(completion)
    function = {"name": name, "arguments": completion["choices"][0]["text"]}
    tool_call = {"id": _call_id(completion, name), "type": "function", "function": dict(function)}
    answer["choices"][0]["message"] |= {"content": None, "function_call": function, "tool_calls": [tool_call]}
    answer["choices"][0]["finish_reason"] = "tool_calls"
    return answer


def _parsed(completion: Answer, parser: AnswerParser) -> Answer:
    """The answer, with the calls of tools that are in its text."""
    answer = _answer(completion)
    first, last = parser.push(completion["choices"][0]["text"]), parser.finish()
    if last.calls:
        choice = answer["choices"][0]
        calls = [call.as_dict() for call in parser.named(last.calls)]
        choice["message"] |= {"content": first.content + last.content or None, "tool_calls": calls}
        choice["finish_reason"] = "tool_calls"
    return answer


def _parsed_chunks(chunks: Iterator[Answer], parser: AnswerParser) -> Iterator[Answer]:
    """As ``_answer_chunks``; calls come whole, before the last chunk."""
    for i, chunk in enumerate(chunks):
        if i == 0:
            yield _chunk(chunk, {"role": "assistant"}, None)
        choice = chunk["choices"][0]
        content, reason = parser.push(choice["text"]).content, choice["finish_reason"]
        calls: list[Answer] = []
        if reason is not None:
            last = parser.finish()
            content += last.content
            calls = [{"index": j, **call.as_dict()} for j, call in enumerate(parser.named(last.calls))]
        if content or choice["logprobs"]:
            yield _chunk(chunk, {"content": content}, None, choice["logprobs"])
        if calls:
            yield _chunk(chunk, {"tool_calls": calls}, None)
        if reason is not None:
            yield _chunk(chunk, {}, "tool_calls" if calls else reason)


def _answer_chunks(chunks: Iterator[Answer]) -> Iterator[Answer]:
    """The first chunk tells the role, the last one why the answer ended."""
    for i, chunk in enumerate(chunks):
        if i == 0:
            yield _chunk(chunk, {"role": "assistant"}, None)
        choice = chunk["choices"][0]
        done = choice["finish_reason"] is not None
        yield _chunk(chunk, {} if done else {"content": choice["text"]}, choice["finish_reason"], choice["logprobs"])


def _call_chunks(chunks: Iterator[Answer], name: str) -> Iterator[Answer]:
    """As ``_answer_chunks``, of a call's arguments."""
    empty = {"role": None, "content": None, "function_call": None, "tool_calls": None}
    for i, chunk in enumerate(chunks):
        if i == 0:
            yield _chunk(chunk, {**empty, "role": "assistant"}, None)
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            yield _chunk(chunk, empty, "tool_calls")
            continue
        function = {"name": name, "arguments": choice["text"]}
        tool_call = {"index": 0, "id": _call_id(chunk, name), "type": "function", "function": dict(function)}
        yield _chunk(chunk, {**empty, "function_call": function, "tool_calls": [tool_call]}, None, choice["logprobs"])


def _chunk(
    chunk: Answer, delta: Answer, finish_reason: str | None, logprobs: Mapping[str, Any] | None = None
) -> Answer:
    choice = {"index": 0, "delta": delta, "logprobs": _chat_logprobs(logprobs), "finish_reason": finish_reason}
    return {
        "id": "chat" + chunk["id"],
        "model": chunk["model"],
        "created": chunk["created"],
        "object": "chat.completion.chunk",
        "choices": [choice],
    }


def _call_id(completion: Answer, name: str) -> str:
    return f"call__0_{name}_{completion['id']}"


def _chat_logprobs(logprobs: Mapping[str, Any] | None) -> Answer | None:
    """A completion's log-probabilities in the chat's form."""
    if logprobs is None:
        return None
    content = []
    for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]):
        others = [{"token": other, "logprob": each, "bytes": None} for other, each in top.items()]
        content.append({"token": token, "bytes": None, "logprob": value, "top_logprobs": others})
    return {"content": content, "refusal": None}
