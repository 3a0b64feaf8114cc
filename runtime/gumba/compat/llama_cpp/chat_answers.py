"""Converts text completions to chat completions, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gumba.chat.output_parser import AnswerParser
from gumba.openai.responses import (
    Head,
    chat_choice,
    chat_chunk,
    chat_completion,
    tool_call,
    tool_call_deltas,
    tool_calls,
    usage,
)

if TYPE_CHECKING:
    from gumba.openai import types


class FunctionCompletion(NamedTuple):
    """A call of the function ``name``; the text of ``completion`` is its arguments."""

    name: str
    completion: types.CreateCompletionResponse


def chat_answer(completion: types.CreateCompletionResponse) -> types.CreateChatCompletionResponse:
    """The chat completion whose content is the completion's text."""
    choice = completion["choices"][0]
    message: types.ChatCompletionResponseMessage = {"role": "assistant", "content": choice["text"]}
    logprobs = _chat_logprobs(choice["logprobs"])
    return chat_completion(
        _head(completion), [chat_choice(message, logprobs, choice["finish_reason"])], completion["usage"]
    )


def call_answer(completion: types.CreateCompletionResponse, name: str) -> types.CreateChatCompletionResponse:
    """The chat completion that calls the function ``name``; the completion's text is its arguments."""
    answer = chat_answer(completion)
    choice, arguments = answer["choices"][0], completion["choices"][0]["text"]
    message = choice["message"]
    message["content"] = None
    message["function_call"] = {"name": name, "arguments": arguments}
    message["tool_calls"] = [tool_call(_call_id(completion, name), name, arguments)]
    choice["finish_reason"] = "tool_calls"
    return answer


def calls_answer(calls: Sequence[FunctionCompletion]) -> types.CreateChatCompletionResponse:
    """The chat completion with several calls (one or more)."""
    answer = call_answer(calls[0].completion, calls[0].name)
    message = answer["choices"][0]["message"]
    for i, (name, completion) in enumerate(calls[1:], 1):
        call_id = f"call_{i}_{name}_{completion['id']}"
        message["tool_calls"].append(tool_call(call_id, name, completion["choices"][0]["text"]))
    n_tokens = sum(completion["usage"]["completion_tokens"] for _, completion in calls)
    answer["usage"] = usage(answer["usage"]["prompt_tokens"], n_tokens)
    return answer


def whole_chunks(
    answer: types.CreateChatCompletionResponse,
) -> Iterator[types.CreateChatCompletionStreamResponse]:
    """The chunks of a complete chat completion with calls."""
    head = Head(answer["id"], answer["created"], answer["model"])
    yield chat_chunk(head, {"role": "assistant"})
    yield chat_chunk(head, {"tool_calls": tool_call_deltas(answer["choices"][0]["message"]["tool_calls"])})
    yield chat_chunk(head, {}, "tool_calls")


def parsed_answer(
    completion: types.CreateCompletionResponse, parser: AnswerParser
) -> types.CreateChatCompletionResponse:
    """The chat completion with the tool calls that are parsed from the completion's text."""
    answer = chat_answer(completion)
    first = parser.push(completion["choices"][0]["text"])
    last = parser.finish(cut=completion["choices"][0]["finish_reason"] == "length")
    if last.calls:
        choice = answer["choices"][0]
        choice["message"]["content"] = first.content + last.content or None
        choice["message"]["tool_calls"] = tool_calls(parser.named(last.calls))
        choice["finish_reason"] = "tool_calls"
    return answer


def parsed_chunks(
    chunks: Iterator[types.CreateCompletionStreamResponse], parser: AnswerParser
) -> Iterator[types.CreateChatCompletionStreamResponse]:
    """The chunks of a chat completion; tool calls come complete, before the last chunk."""
    for i, chunk in enumerate(chunks):
        head = _head(chunk)
        if i == 0:
            yield chat_chunk(head, {"role": "assistant"})
        choice = chunk["choices"][0]
        content, reason = parser.push(choice["text"]).content, choice["finish_reason"]
        deltas: list[types.ChatCompletionMessageToolCallChunk] = []
        if reason is not None:
            last = parser.finish(cut=reason == "length")
            content += last.content
            deltas = tool_call_deltas(tool_calls(parser.named(last.calls)))
        if content or choice["logprobs"]:
            yield chat_chunk(head, {"content": content}, None, _chat_logprobs(choice["logprobs"]))
        if deltas:
            yield chat_chunk(head, {"tool_calls": deltas})
        if reason is not None:
            yield chat_chunk(head, {}, "tool_calls" if deltas else reason)


def answer_chunks(
    chunks: Iterator[types.CreateCompletionStreamResponse],
) -> Iterator[types.CreateChatCompletionStreamResponse]:
    """The chunks of a chat completion: the first has the role, the last the finish reason."""
    for i, chunk in enumerate(chunks):
        head = _head(chunk)
        if i == 0:
            yield chat_chunk(head, {"role": "assistant"})
        choice = chunk["choices"][0]
        delta: types.ChatCompletionStreamResponseDelta = {}
        if choice["finish_reason"] is None:
            delta = {"content": choice["text"]}
        yield chat_chunk(head, delta, choice["finish_reason"], _chat_logprobs(choice["logprobs"]))


def call_chunks(
    chunks: Iterator[types.CreateCompletionStreamResponse], name: str
) -> Iterator[types.CreateChatCompletionStreamResponse]:
    """The chunks of a call of the function ``name``; the completion's text is its arguments."""
    empty: types.ChatCompletionStreamResponseDelta = {
        "role": None,
        "content": None,
        "function_call": None,
        "tool_calls": None,
    }
    for i, chunk in enumerate(chunks):
        head = _head(chunk)
        if i == 0:
            yield chat_chunk(head, {**empty, "role": "assistant"})
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            yield chat_chunk(head, empty, "tool_calls")
            continue
        arguments = choice["text"]
        delta: types.ChatCompletionStreamResponseDelta = {
            **empty,
            "function_call": {"name": name, "arguments": arguments},
            "tool_calls": tool_call_deltas([tool_call(_call_id(chunk, name), name, arguments)]),
        }
        yield chat_chunk(head, delta, None, _chat_logprobs(choice["logprobs"]))


def _head(completion: types.CreateCompletionResponse) -> Head:
    return Head("chat" + completion["id"], completion["created"], completion["model"])


def _call_id(completion: types.CreateCompletionResponse, name: str) -> str:
    return f"call__0_{name}_{completion['id']}"


def _chat_logprobs(logprobs: types.CompletionLogprobs | None) -> types.ChatCompletionLogprobs | None:
    """The log-probabilities of a text completion in the shape of a chat completion, without bytes, as in llama-cpp-python."""
    if logprobs is None:
        return None
    content: list[types.ChatCompletionLogprobToken] = []
    for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]):
        if value is None or top is None:
            continue  # only the first token of an echoed prompt, which no chat has
        others: list[types.ChatCompletionTopLogprobToken] = [
            {"token": other, "logprob": logprob, "bytes": None} for other, logprob in top.items()
        ]
        content.append({"token": token, "bytes": None, "logprob": value, "top_logprobs": others})
    return {"content": content, "refusal": None}
