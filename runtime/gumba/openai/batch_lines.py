"""The lines of ``gumba batch``: a request per input line, a response per output line.

Two kinds of input line are read. OpenAI's batch format, with the URL ``/v1/chat/completions`` or ``/v1/completions``::

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], "max_tokens": 20}}

and plain lines, with the fields of ``SamplingParams`` beside the prompt or the messages, and optionally an ``id`` or a
``custom_id``::

    {"id": "a", "prompt": "Once upon", "temperature": 0}

An output line has ``line`` (the number of the input line, from 1), ``custom_id`` or ``id``, and either ``response`` (``body``
is OpenAI's completion object) or ``error`` (``code`` and ``message``); the other one is null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gumba.errors import GumbaError, RequestError
from gumba.openai.requests import ChatRequest, CompletionRequest, JsonObject, parse_chat, parse_completion
from gumba.openai.responses import (
    Head,
    TokenBytes,
    chat_choice_of,
    chat_completion,
    text_choice_of,
    text_completion,
    usage,
)
from gumba.sampling_params import SamplingParams
from gumba.validation import show

if TYPE_CHECKING:
    from gumba.openai import types
    from gumba.outputs import RequestOutput

#: OpenAI's endpoints, and the parser of their bodies.
_ENDPOINTS = {"/v1/chat/completions": parse_chat, "/v1/completions": parse_completion}
_LINE_FIELDS = ("custom_id", "method", "url", "body")
#: Fields that name a line; a plain line has at most one of them.
_NAMES = ("custom_id", "id")


class Line:
    """Line ``number`` (from 1) of a batch; ``data`` are its bytes, None for a line that is too long to be read."""

    def __init__(self, number: int, data: bytes | None) -> None:
        self.number = number
        self._data = data
        self._has_custom_id = False
        self._name: str | int | None = None
        self._model: str | None = None

    def parse(self) -> ChatRequest | CompletionRequest:
        """The line's request. Raises RequestError naming the field at fault."""
        value = self._object()
        openai = any(name in value for name in _LINE_FIELDS if name != "custom_id")
        self._has_custom_id = openai or "custom_id" in value
        self._read_name(value, openai)
        request: ChatRequest | CompletionRequest
        if openai:
            body, parse = self._body(value)
            request = parse(body)
        else:
            body = {key: item for key, item in value.items() if key not in _NAMES}
            chat = "messages" in body
            if body.get("messages" if chat else "prompt") is None:
                raise RequestError("there is no 'prompt' and no 'messages'")
            request = parse_chat(body) if chat else parse_completion(body)
        self._model = request.model
        return request

    def sampling_params(
        self, request: ChatRequest | CompletionRequest, defaults: Mapping[str, object], seed: int
    ) -> list[SamplingParams]:
        """The parameters of each prompt of the line's request, or of its conversation; ``defaults`` fill in missing fields.

        If neither sets a seed, each prompt gets one of its own, derived from ``seed`` and the line's number. Raises
        RequestError naming the field at fault.
        """
        n_prompts = len(request.prompts) if isinstance(request, CompletionRequest) else 1
        params = {**defaults, **request.params}
        if params.get("seed") is not None:
            return [SamplingParams(**params) for _ in range(n_prompts)]
        return [SamplingParams(**{**params, "seed": _seed(seed, self.number, i)}) for i in range(n_prompts)]

    @property
    def name(self) -> str | int | None:
        """The line's ``custom_id`` or ``id``, after ``parse``."""
        return self._name

    def response(
        self, outputs: Sequence[RequestOutput], *, chat: bool, model: str, created: int, token_bytes: TokenBytes
    ) -> bytes:
        """The output line of the line's answers. ``model``: the name in the response unless the line gives one."""
        answers = [answer for output in outputs for answer in output.outputs]
        head = Head(
            f"{'chatcmpl' if chat else 'cmpl'}-{self.number}", created, model if self._model is None else self._model
        )
        tokens = usage(
            sum(output.prompt_tokens for output in outputs), sum(len(answer.token_ids) for answer in answers)
        )
        body: types.CreateChatCompletionResponse | types.CreateCompletionResponse
        if chat:
            body = chat_completion(
                head, [chat_choice_of(answer, token_bytes, i) for i, answer in enumerate(answers)], tokens
            )
        else:
            body = text_completion(
                head, [text_choice_of(answer, token_bytes, i) for i, answer in enumerate(answers)], tokens
            )
        return self._line({"status_code": 200, "request_id": f"line-{self.number}", "body": body}, None)

    def error(self, error: GumbaError) -> bytes:
        """The output line of an error."""
        return self._line(None, {"code": type(error).__name__, "message": str(error)})

    def _line(self, response: object, error: object) -> bytes:
        name: dict[str, object] = {"id": self._name}
        if self._has_custom_id:
            name = {"id": f"batch_req_{self.number}", "custom_id": self._name}
        line = {"line": self.number, **name, "response": response, "error": error}
        try:
            return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except UnicodeEncodeError:  # half a surrogate pair, in a name
            return json.dumps(line, allow_nan=False).encode() + b"\n"

    def _read_name(self, value: JsonObject, openai: bool) -> None:
        if not openai and "custom_id" in value and "id" in value:
            raise RequestError("expected either a custom_id or an id, found both")
        name = value.get("custom_id" if self._has_custom_id else "id")
        if isinstance(name, str) or (type(name) is int and not openai):
            self._name = name
        elif name is not None or openai:
            kind = "a string" if openai else "a string or an integer"
            raise RequestError(f"{'custom_id' if self._has_custom_id else 'id'}: expected {kind}, found {show(name)}")

    def _object(self) -> JsonObject:
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
    def _body(value: JsonObject) -> tuple[JsonObject, Any]:
        """The body of a line in OpenAI's format, and its parser."""
        for key in value:
            if key not in _LINE_FIELDS:
                raise RequestError(f"{key!s:.40}: not a field of a batch line ({', '.join(_LINE_FIELDS)})")
        if value.get("method", "POST") != "POST":
            raise RequestError(f"method: expected 'POST', found {show(value['method'])}")
        url = value.get("url")
        if not isinstance(url, str) or url not in _ENDPOINTS:
            raise RequestError(f"url: expected {' or '.join(_ENDPOINTS)}, found {show(url)}")
        body = value.get("body")
        if not isinstance(body, dict):
            raise RequestError(f"body: expected an object, found {show(body)}")
        return body, _ENDPOINTS[url]


def _seed(seed: int, line: int, prompt: int) -> int:
    """The seed of one prompt of a line, unrelated to those of the others."""
    return int.from_bytes(hashlib.sha256(f"{seed} {line} {prompt}".encode()).digest()[:8], "little")
