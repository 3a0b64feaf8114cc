"""The lines of a batch: what a line asks for, and the line that answers it.

Two kinds of line are read. OpenAI's batch format::

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], "max_tokens": 20}}

with ``/v1/completions`` and a ``prompt`` as the other address; and plain lines, with ``SamplingParams``' fields beside the
prompt or the messages, and perhaps an ``id`` or a ``custom_id``::

    {"id": "a", "prompt": "Once upon", "temperature": 0}

Each is answered by one line: ``line`` (the number of the line in the input, from 1), ``custom_id`` or ``id``, and either
``response`` (``body`` is OpenAI's completion) or ``error`` (``code`` and ``message``), the other being null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from gumba.errors import GumbaError, RequestError
from gumba.sampling_params import SamplingParams, StructuredOutputsParams, show
from gumba.validation import template_variables

if TYPE_CHECKING:
    from gumba.outputs import CompletionOutput, RequestOutput

#: Of OpenAI's addresses, whether a conversation is answered there.
_ADDRESSES = {"/v1/chat/completions": True, "/v1/completions": False}
_LINE_FIELDS = ("custom_id", "method", "url", "body")
#: What variables of the chat template may be called, of a conversation.
_TEMPLATE_VARIABLES = ("template_args", "chat_template_kwargs")
#: What a line is called by, in either kind; a plain one may have one of them.
_NAMES = ("custom_id", "id")
#: Said for the sake of a service; of no effect on an answer here.
_WITHOUT_EFFECT = frozenset({
    "model", "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options",
})  # fmt: skip
#: Fields that must have one of these values, since they ask for what a batch does not do.
_ONLY: dict[str, tuple[object, ...]] = {
    "stream": (False,),
    "echo": (False,),
    "suffix": ("",),
    "detokenize": (True,),
    "parallel_tool_calls": (True,),
}
_OTHER_NAMES = {
    "max_completion_tokens": "max_tokens", "repeat_penalty": "repetition_penalty", "repeat_last_n": "repetition_window",
}  # fmt: skip
#: What a JSON document can say of SamplingParams.
_PARAMS = frozenset(field.name for field in fields(SamplingParams)) - {"logits_processors"}


@dataclass(frozen=True)
class Request:
    """What a line asks for: answers to ``prompts``, or to the conversation ``messages``.

    ``params``: one for each prompt, or the conversation's.
    """

    params: list[SamplingParams]
    prompts: list[str | list[int]] | None
    messages: list[Mapping[str, Any]] | None
    #: Of a conversation, further arguments of ``LLM.chat``.
    template_args: dict[str, Any]
    tools: list[Any] | None = None
    reasoning: str = "auto"


class Line:
    """Line ``number`` (from 1) of a batch; ``data`` are its bytes, None for a line that is too long to be read."""

    def __init__(self, number: int, data: bytes | None) -> None:
        self.number = number
        self._data = data
        self._custom = False  # called by a custom_id
        self._name: str | int | None = None
        self._model: str | None = None

    def parse(self, defaults: Mapping[str, Any], seed: int) -> Request:
        """What the line asks for; ``defaults`` are SamplingParams' fields for what it does not say.

        Where neither says a seed, each prompt has one of its own, which ``seed`` and the line's number decide. Raises
        RequestError (and other GumbaErrors) naming the field at fault.
        """
        value = self._object()
        openai = any(name in value for name in _LINE_FIELDS if name != "custom_id")
        self._custom = openai or "custom_id" in value
        self._take_name(value, openai)
        body, chat = self._body(value) if openai else (value, "messages" in value)
        body = {key: each for key, each in body.items() if each is not None and (openai or key not in _NAMES)}
        if "model" in body:
            self._model = _text("model", body["model"])
        asked = "messages" if chat else "prompt"
        if asked not in body:
            raise RequestError(f"there is no {asked!r}" if openai else "there is no 'prompt' and no 'messages'")
        if (not chat and "messages" in body) or (chat and "prompt" in body):
            raise RequestError("expected either a prompt or messages, found both")
        given = body.pop(asked)
        variables = {name: body.pop(name, None) for name in _TEMPLATE_VARIABLES} if chat else {}
        tools, reasoning = _take_tools(body), _take_reasoning(body)
        said = {**defaults, **_params(body)}
        if chat:
            if not isinstance(given, list):
                raise RequestError(f"messages: expected a list of messages, found {show(given)}")
            found = template_variables(variables)
            return Request([self._sampling(said, seed, 0)], None, given, found, tools, reasoning)
        if tools:
            raise RequestError("tools: only conversations have any")
        prompts = _prompts(given)
        return Request([self._sampling(said, seed, i) for i in range(len(prompts))], prompts, None, {})

    @property
    def name(self) -> str | int | None:
        """The line's ``custom_id`` or ``id``, after ``parse``."""
        return self._name

    def answered(
        self,
        outputs: Sequence[RequestOutput],
        *,
        chat: bool,
        model: str,
        created: int,
        piece: Callable[[int], bytes],
    ) -> bytes:
        """The answer to the line. ``model`` is the name that it gets unless the line says one; ``piece`` gives the bytes of a
        token."""
        shape = _chat_choice if chat else _text_choice
        choices = [each for output in outputs for each in output.outputs]
        prompt_tokens = sum(output.prompt_tokens for output in outputs)
        completion_tokens = sum(len(each.token_ids) for each in choices)
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.number}",
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": model if self._model is None else self._model,
            "choices": [{"index": i, **shape(each, piece)} for i, each in enumerate(choices)],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        response = {"status_code": 200, "request_id": f"line-{self.number}", "body": body}
        return self._written(response, None)

    def failed(self, error: GumbaError) -> bytes:
        """The line that says what is wrong with this one."""
        return self._written(None, {"code": type(error).__name__, "message": str(error)})

    def _written(self, response: object, error: object) -> bytes:
        name: dict[str, object] = {"id": self._name}
        if self._custom:
            name = {"id": f"batch_req_{self.number}", "custom_id": self._name}
        whole = {"line": self.number, **name, "response": response, "error": error}
        try:
            return json.dumps(whole, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except UnicodeEncodeError:  # half a surrogate pair, in a name
            return json.dumps(whole, allow_nan=False).encode() + b"\n"

    def _take_name(self, value: dict[str, Any], openai: bool) -> None:
        if not openai and "custom_id" in value and "id" in value:
            raise RequestError("expected either a custom_id or an id, found both")
        name = value.get("custom_id" if self._custom else "id")
        if isinstance(name, str) or (type(name) is int and not openai):
            self._name = name
        elif name is not None or openai:
            kind = "a string" if openai else "a string or an integer"
            raise RequestError(f"{'custom_id' if self._custom else 'id'}: expected {kind}, found {show(name)}")

    def _object(self) -> dict[str, Any]:
        if self._data is None:
            raise RequestError("the line is too long")
        data = self._data.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else self._data
        try:
            value = json.loads(data.decode())
        except UnicodeDecodeError as error:
            raise RequestError(f"the line is not UTF-8 text (byte {error.start})") from None
        except RecursionError:
            raise RequestError("the line is no JSON that can be read: it is nested too deeply") from None
        except ValueError as error:
            raise RequestError(f"the line is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise RequestError(f"the line is no JSON object, but {show(value)}")
        return value

    @staticmethod
    def _body(value: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The body of a line in OpenAI's format, and whether it is a conversation."""
        for key in value:
            if key not in _LINE_FIELDS:
                raise RequestError(f"{key!s:.40}: not a field of a batch line ({', '.join(_LINE_FIELDS)})")
        if value.get("method", "POST") != "POST":
            raise RequestError(f"method: expected 'POST', found {show(value['method'])}")
        url = value.get("url")
        if not isinstance(url, str) or url not in _ADDRESSES:
            raise RequestError(f"url: expected {' or '.join(_ADDRESSES)}, found {show(url)}")
        body = value.get("body")
        if not isinstance(body, dict):
            raise RequestError(f"body: expected an object, found {show(body)}")
        return body, _ADDRESSES[url]

    def _sampling(self, said: dict[str, Any], seed: int, prompt: int) -> SamplingParams:
        own = {} if said.get("seed") is not None else {"seed": _seed(seed, self.number, prompt)}
        return SamplingParams(**{**said, **own})


def _seed(seed: int, line: int, prompt: int) -> int:
    """The seed of a prompt of a line: far from those of all others."""
    return int.from_bytes(hashlib.sha256(f"{seed} {line} {prompt}".encode()).digest()[:8], "little")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name}: expected a string, found {show(value)}")
    return value


def _prompts(value: Any) -> list[str | list[int]]:
    """A text, texts, token ids or lists of token ids, as prompts. What is in a list of ids is checked by the LLM."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise RequestError(f"prompt: expected a text, token ids, or a list of such prompts, found {show(value)}")
    if all(isinstance(each, str | list) for each in value):
        return value
    return [value]


def _take_tools(body: dict[str, Any]) -> list[Any] | None:
    """The tools of a body, of which they are taken out; None where there are none to be called."""
    tools, choice = body.pop("tools", None), body.pop("tool_choice", "auto")
    if tools is not None and not isinstance(tools, list):
        raise RequestError(f"tools: expected a list of tools, found {show(tools)}")
    if choice not in ("auto", "none"):
        raise RequestError(f"tool_choice: a batch supports 'auto' and 'none', found {show(choice)}")
    return tools if choice == "auto" else None


def _take_reasoning(body: dict[str, Any]) -> str:
    """What llama.cpp's ``reasoning_format`` says, in our words."""
    form = body.pop("reasoning_format", "auto")
    if form not in ("auto", "deepseek", "none"):
        raise RequestError(f"reasoning_format: expected 'auto', 'deepseek' or 'none', found {show(form)}")
    return "off" if form == "none" else "auto"


def _params(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``SamplingParams`` that a body says, by whichever names."""
    found: dict[str, Any] = {}

    def put(name: str, value: object, source: str) -> None:
        if name in found:
            raise RequestError(f"{source}: {name} is said twice")
        found[name] = value

    for key, value in body.items():
        name = _OTHER_NAMES.get(key, key)
        if key in _ONLY:
            if value not in _ONLY[key]:
                raise RequestError(f"{key}: a batch does not support it, found {show(value)}")
        elif key == "response_format":
            spec = _response_format(value)
            if spec is not None:
                put("structured_outputs", spec, key)
        elif key in ("json_schema", "grammar"):
            put("structured_outputs", {"json" if key == "json_schema" else key: value}, key)
        elif key == "logprobs" and isinstance(value, bool):
            if value:
                put(key, body.get("top_logprobs", 0), key)
        elif key == "top_logprobs":
            if body.get("logprobs") is not True:
                raise RequestError("top_logprobs: expected logprobs to be true")
        elif name in _PARAMS:
            put(name, value, key)
        elif key not in _WITHOUT_EFFECT:
            raise RequestError(f"{key!s:.40}: there is no such parameter")
    return found


def _response_format(value: Any) -> StructuredOutputsParams | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind == "json_schema":
        inner = value.get("json_schema")
        if isinstance(inner, dict) and "schema" in inner:
            return StructuredOutputsParams(json=inner["schema"])
    raise RequestError(
        "response_format: expected an object of type 'text', 'json_object' or 'json_schema' (with json_schema.schema), "
        f"found {show(value)}"
    )


def _chat_choice(output: CompletionOutput, piece: Callable[[int], bytes]) -> dict[str, object]:
    logprobs = _logprobs(output)
    content = None
    if logprobs is not None:
        content = [
            {
                **_likelihood(token, each.logprob, piece),
                "top_logprobs": [_likelihood(i, value, piece) for i, value in each.top],
            }
            for token, each in zip(output.token_ids, logprobs)
        ]
    calls = [call.as_dict() for call in output.tool_calls]
    message: dict[str, object] = {"role": "assistant", "content": output.text or None if calls else output.text}
    if output.reasoning is not None:
        message["reasoning_content"] = output.reasoning
    if calls:
        message["tool_calls"] = calls
    return {
        "message": message,
        "logprobs": None if content is None else {"content": content},
        "finish_reason": "tool_calls" if calls and output.finish_reason == "stop" else output.finish_reason,
    }


def _text_choice(output: CompletionOutput, piece: Callable[[int], bytes]) -> dict[str, object]:
    logprobs = _logprobs(output)
    found = None
    if logprobs is not None:

        def text(token: int) -> str:
            return piece(token).decode(errors="replace")

        found = {
            "tokens": [text(token) for token in output.token_ids],
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [{text(token): value for token, value in each.top} for each in logprobs],
        }
    return {"text": output.text, "logprobs": found, "finish_reason": output.finish_reason}


def _logprobs(output: CompletionOutput) -> Sequence[Any] | None:
    """For each token its ``logprob`` and the ``top`` ones, pairs of id and log-probability; None unless they were asked for."""
    return getattr(output, "logprobs", None)


def _likelihood(token: int, logprob: float, piece: Callable[[int], bytes]) -> dict[str, object]:
    data = piece(token)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}
