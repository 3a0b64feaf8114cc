"""OpenAI's response objects, built once: text completions, chat completions and their chunks, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from gumba.openai import types
    from gumba.outputs import CompletionOutput, Logprobs, ToolCall

#: Returns the bytes of a token.
TokenBytes: TypeAlias = Callable[[int], bytes]


@dataclass(frozen=True)
class Head:
    """The fields that a response shares with its chunks."""

    id: str
    created: int  # seconds since 1970
    model: str


def usage(prompt_tokens: int, completion_tokens: int) -> types.CompletionUsage:
    """The ``usage`` object of a completion."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


# ------------------------------------------------------------------------------------------------- text completions


def text_completion(
    head: Head, choices: list[types.CompletionChoice], token_usage: types.CompletionUsage | None = None
) -> types.CreateCompletionResponse:
    """A text completion; a chunk of a streamed one has the same shape, without ``usage``."""
    response: types.CreateCompletionResponse = {
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }
    if token_usage is not None:
        response["usage"] = token_usage
    return response


def text_choice(
    text: str, logprobs: types.CompletionLogprobs | None, finish_reason: str | None, index: int = 0
) -> types.CompletionChoice:
    """A choice of a text completion."""
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}


def text_choice_of(output: CompletionOutput, token_bytes: TokenBytes, index: int) -> types.CompletionChoice:
    """The choice of an answer of ``LLM.generate``; ``index`` is its first key, as in every result file of ``gumba batch``."""
    choice = text_choice(output.text, _text_logprobs(output, token_bytes), output.finish_reason, index)
    return {"index": index, **choice}


def _text_logprobs(output: CompletionOutput, token_bytes: TokenBytes) -> types.CompletionLogprobs | None:
    if output.logprobs is None:
        return None

    def text(token: int) -> str:
        return token_bytes(token).decode(errors="replace")

    return {
        "tokens": [text(token) for token in output.token_ids],
        "token_logprobs": [entry.logprob for entry in output.logprobs],
        "top_logprobs": [{text(token): value for token, value in entry.top} for entry in output.logprobs],
    }


# ------------------------------------------------------------------------------------------------- chat completions


def chat_completion(
    head: Head, choices: list[types.ChatCompletionResponseChoice], token_usage: types.CompletionUsage
) -> types.CreateChatCompletionResponse:
    """A chat completion."""
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": token_usage,
    }


def chat_choice(
    message: types.ChatCompletionResponseMessage,
    logprobs: types.ChatCompletionLogprobs | None,
    finish_reason: str | None,
    index: int = 0,
) -> types.ChatCompletionResponseChoice:
    """A choice of a chat completion."""
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_choice_of(output: CompletionOutput, token_bytes: TokenBytes, index: int) -> types.ChatCompletionResponseChoice:
    """The choice of an answer of ``LLM.chat``."""
    calls = output.tool_calls
    message: types.ChatCompletionResponseMessage = {
        "role": "assistant",
        "content": output.text or None if calls else output.text,
    }
    if output.reasoning is not None:
        message["reasoning_content"] = output.reasoning
    if calls:
        message["tool_calls"] = tool_calls(calls)
    reason = "tool_calls" if calls and output.finish_reason == "stop" else output.finish_reason
    return chat_choice(message, _chat_logprobs(output, token_bytes), reason, index)


def _chat_logprobs(output: CompletionOutput, token_bytes: TokenBytes) -> types.ChatCompletionLogprobs | None:
    if output.logprobs is None:
        return None
    return {
        "content": [_chat_logprob(token, entry, token_bytes) for token, entry in zip(output.token_ids, output.logprobs)]
    }


def _chat_logprob(token: int, entry: Logprobs, token_bytes: TokenBytes) -> types.ChatCompletionLogprobToken:
    top = [_token_logprob(other, value, token_bytes) for other, value in entry.top]
    return {**_token_logprob(token, entry.logprob, token_bytes), "top_logprobs": top}


def _token_logprob(token: int, logprob: float, token_bytes: TokenBytes) -> types.ChatCompletionTopLogprobToken:
    data = token_bytes(token)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def chat_chunk(
    head: Head,
    delta: types.ChatCompletionStreamResponseDelta,
    finish_reason: str | None = None,
    logprobs: types.ChatCompletionLogprobs | None = None,
) -> types.CreateChatCompletionStreamResponse:
    """A chunk of a streamed chat completion."""
    return {
        "id": head.id,
        "model": head.model,
        "created": head.created,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
    }


# -------------------------------------------------------------------------------------------------------- tool calls


def tool_call(call_id: str, name: str, arguments: str) -> types.ChatCompletionMessageToolCall:
    """A call of a function; ``arguments`` is JSON text."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_calls(calls: Iterable[ToolCall]) -> list[types.ChatCompletionMessageToolCall]:
    """The ``tool_calls`` of a message."""
    return [tool_call(call.id, call.function.name, call.function.arguments) for call in calls]


def tool_call_deltas(
    calls: Iterable[types.ChatCompletionMessageToolCall],
) -> list[types.ChatCompletionMessageToolCallChunk]:
    """Complete calls as the ``tool_calls`` of a chunk."""
    return [
        {"index": i, "id": call["id"], "type": call["type"], "function": {**call["function"]}}
        for i, call in enumerate(calls)
    ]


# -------------------------------------------------------------------------------------------------------- embeddings


def embedding_list(
    embeddings: Sequence[list[float] | list[list[float]]], model: str, prompt_tokens: int
) -> types.CreateEmbeddingResponse:
    """The response of ``/v1/embeddings``."""
    return {
        "object": "list",
        "data": [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(embeddings)],
        "model": model,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
