"""Converts completions to OpenAI's chat completions, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gumba.chat.output_parser import AnswerParser

Answer = dict[str, Any]


def chat_answer(completion: Answer) -> Answer:
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


def call_answer(completion: Answer, name: str) -> Answer:
    """An answer that calls the function ``name``; the text is its arguments."""
    answer = chat_answer(completion)
    function = {"name": name, "arguments": completion["choices"][0]["text"]}
    tool_call = {"id": _call_id(completion, name), "type": "function", "function": dict(function)}
    answer["choices"][0]["message"] |= {"content": None, "function_call": function, "tool_calls": [tool_call]}
    answer["choices"][0]["finish_reason"] = "tool_calls"
    return answer


def calls_answer(made: Sequence[Answer]) -> Answer:
    """An answer with several calls."""
    answer = call_answer(made[0]["completion"], made[0]["name"])
    choice = answer["choices"][0]
    for i, each in enumerate(made[1:], 1):
        function = {"name": each["name"], "arguments": each["completion"]["choices"][0]["text"]}
        call_id = f"call_{i}_{each['name']}_{each['completion']['id']}"
        choice["message"]["tool_calls"].append({"id": call_id, "type": "function", "function": function})
    n_prompt = answer["usage"]["prompt_tokens"]
    n_tokens = sum(each["completion"]["usage"]["completion_tokens"] for each in made)
    answer["usage"] = {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}
    return answer


def whole_chunks(answer: Answer) -> Iterator[Answer]:
    """The chunks of a complete answer with calls."""
    head = {"id": answer["id"].removeprefix("chat"), "model": answer["model"], "created": answer["created"]}
    yield _chunk(head, {"role": "assistant"}, None)
    found = [{"index": i, **call} for i, call in enumerate(answer["choices"][0]["message"]["tool_calls"])]
    yield _chunk(head, {"tool_calls": found}, None)
    yield _chunk(head, {}, "tool_calls")


def parsed_answer(completion: Answer, parser: AnswerParser) -> Answer:
    """The answer, with the tool calls parsed from its text."""
    answer = chat_answer(completion)
    first = parser.push(completion["choices"][0]["text"])
    last = parser.finish(cut=completion["choices"][0]["finish_reason"] == "length")
    if last.calls:
        choice = answer["choices"][0]
        calls = [call.as_dict() for call in parser.named(last.calls)]
        choice["message"] |= {"content": first.content + last.content or None, "tool_calls": calls}
        choice["finish_reason"] = "tool_calls"
    return answer


def parsed_chunks(chunks: Iterator[Answer], parser: AnswerParser) -> Iterator[Answer]:
    """The chunks of an answer; tool calls come complete, before the last chunk."""
    for i, chunk in enumerate(chunks):
        if i == 0:
            yield _chunk(chunk, {"role": "assistant"}, None)
        choice = chunk["choices"][0]
        content, reason = parser.push(choice["text"]).content, choice["finish_reason"]
        calls: list[Answer] = []
        if reason is not None:
            last = parser.finish(cut=reason == "length")
            content += last.content
            calls = [{"index": j, **call.as_dict()} for j, call in enumerate(parser.named(last.calls))]
        if content or choice["logprobs"]:
            yield _chunk(chunk, {"content": content}, None, choice["logprobs"])
        if calls:
            yield _chunk(chunk, {"tool_calls": calls}, None)
        if reason is not None:
            yield _chunk(chunk, {}, "tool_calls" if calls else reason)


def answer_chunks(chunks: Iterator[Answer]) -> Iterator[Answer]:
    """The chunks of an answer: the first has the role, the last one the finish reason."""
    for i, chunk in enumerate(chunks):
        if i == 0:
            yield _chunk(chunk, {"role": "assistant"}, None)
        choice = chunk["choices"][0]
        done = choice["finish_reason"] is not None
        yield _chunk(chunk, {} if done else {"content": choice["text"]}, choice["finish_reason"], choice["logprobs"])


def call_chunks(chunks: Iterator[Answer], name: str) -> Iterator[Answer]:
    """The chunks of a call's arguments."""
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
    """A completion's log-probabilities in the form of chat completions."""
    if logprobs is None:
        return None
    content = []
    for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]):
        others = [{"token": other, "logprob": each, "bytes": None} for other, each in top.items()]
        content.append({"token": token, "bytes": None, "logprob": value, "top_logprobs": others})
    return {"content": content, "refusal": None}
