"""OpenAI's request bodies, parsed once: fields to ``SamplingParams``, and every unknown or unsupported field refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from gumba.errors import RequestError
from gumba.sampling_params import SamplingParams, StructuredOutputsParams
from gumba.validation import show, template_variables

#: Variables of the chat template: gumba's name for the field, and llama.cpp's.
_TEMPLATE_VARIABLES = ("template_args", "chat_template_kwargs")
#: Fields of hosted services, without effect on the answer.
_WITHOUT_EFFECT = frozenset({
    "model", "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options",
})  # fmt: skip
#: Fields that ask for something that a batch does not support, and the values that do not.
_ONLY: dict[str, tuple[object, ...]] = {
    "stream": (False,),
    "echo": (False,),
    "suffix": ("",),
    "detokenize": (True,),
    "parallel_tool_calls": (True,),
}
#: Other names of fields of ``SamplingParams``: OpenAI's and llama.cpp's.
_ALIASES = {
    "max_completion_tokens": "max_tokens", "repeat_penalty": "repetition_penalty", "repeat_last_n": "repetition_window",
}  # fmt: skip
#: The fields of ``SamplingParams`` that JSON can express.
_PARAMS = frozenset(field.name for field in fields(SamplingParams)) - {"logits_processors"}

#: A JSON object, whose values ``SamplingParams`` checks.
JsonObject: TypeAlias = "dict[str, Any]"
#: A prompt as text or as token ids.
Prompt: TypeAlias = "str | list[int]"


@dataclass(frozen=True)
class CompletionRequest:
    """The body of ``/v1/completions``. ``params``: the fields of ``SamplingParams`` that it sets."""

    prompts: list[Prompt]
    params: JsonObject
    model: str | None = None


@dataclass(frozen=True)
class ChatRequest:
    """The body of ``/v1/chat/completions``.

    ``params``: the fields of ``SamplingParams`` that it sets. ``tools``, ``reasoning`` and ``template_args`` are arguments of
    ``LLM.chat``.
    """

    messages: list[Mapping[str, Any]]
    params: JsonObject
    tools: list[Mapping[str, Any]] | None
    reasoning: Literal["auto", "off"]
    template_args: JsonObject
    model: str | None = None


def parse_completion(body: Mapping[str, object]) -> CompletionRequest:
    """Parse the body of ``/v1/completions``; None counts as not given. Raises RequestError naming the field at fault."""
    rest = _given(body)
    model = _model(rest)
    if "prompt" not in rest:
        raise RequestError("there is no 'prompt'")
    if "messages" in rest:
        raise RequestError("expected either a prompt or messages, found both")
    prompt = rest.pop("prompt")
    tools, _ = _take_tools(rest), _take_reasoning(rest)
    params = dict(_params(rest))
    if tools:
        raise RequestError("tools: only conversations have any")
    return CompletionRequest(_prompts(prompt), params, model)


def parse_chat(body: Mapping[str, object]) -> ChatRequest:
    """Parse the body of ``/v1/chat/completions``; None counts as not given. Raises RequestError naming the field at fault."""
    rest = _given(body)
    model = _model(rest)
    if "messages" not in rest:
        raise RequestError("there is no 'messages'")
    if "prompt" in rest:
        raise RequestError("expected either a prompt or messages, found both")
    messages = rest.pop("messages")
    variables = {name: rest.pop(name, None) for name in _TEMPLATE_VARIABLES}
    tools, reasoning = _take_tools(rest), _take_reasoning(rest)
    params = dict(_params(rest))
    if not isinstance(messages, list):
        raise RequestError(f"messages: expected a list of messages, found {show(messages)}")
    return ChatRequest(messages, params, tools, reasoning, template_variables(variables), model)


def response_schema(response_format: object, default: object = None) -> tuple[str, Any]:
    """The type of a ``response_format``, and its JSON schema, or ``default`` if it has none.

    Raises RequestError for a type other than "text", "json_object" and "json_schema".
    """
    value: Mapping[str, object] = response_format if isinstance(response_format, Mapping) else {}
    kind, inner = value.get("type"), value.get("json_schema")
    if kind == "json_object":
        return kind, value.get("schema", default)
    if kind == "json_schema":
        return kind, inner.get("schema", default) if isinstance(inner, Mapping) else default
    if kind == "text":
        return kind, None
    raise RequestError(
        f"response_format: expected an object of type 'text', 'json_object' or 'json_schema', found {show(response_format)}"
    )


def _given(body: Mapping[str, object]) -> JsonObject:
    return {key: value for key, value in body.items() if value is not None}


def _model(body: JsonObject) -> str | None:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise RequestError(f"model: expected a string, found {show(model)}")
    return model


def _prompts(value: object) -> list[Prompt]:
    """The prompts of a text, texts, token ids or lists of token ids; ``LLM`` checks the ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise RequestError(f"prompt: expected a text, token ids, or a list of such prompts, found {show(value)}")
    if all(isinstance(item, str | list) for item in value):
        return value
    return [value]


def _take_tools(body: JsonObject) -> list[Mapping[str, object]] | None:
    """Remove the tools from a body; None if the model cannot call any."""
    tools, choice = body.pop("tools", None), body.pop("tool_choice", "auto")
    if tools is not None and not isinstance(tools, list):
        raise RequestError(f"tools: expected a list of tools, found {show(tools)}")
    if choice not in ("auto", "none"):
        raise RequestError(f"tool_choice: a batch supports 'auto' and 'none', found {show(choice)}")
    return tools if choice == "auto" else None


def _take_reasoning(body: JsonObject) -> Literal["auto", "off"]:
    """Remove llama.cpp's ``reasoning_format`` from a body; returns the ``reasoning`` of ``LLM.chat``."""
    form = body.pop("reasoning_format", "auto")
    if form not in ("auto", "deepseek", "none"):
        raise RequestError(f"reasoning_format: expected 'auto', 'deepseek' or 'none', found {show(form)}")
    return "off" if form == "none" else "auto"


def _params(body: JsonObject) -> JsonObject:
    """The fields of ``SamplingParams`` that a body sets, under any of their names. Raises RequestError for unknown fields."""
    params: JsonObject = {}
    for key, value in body.items():
        for name, setting in _settings(key, value, body):
            if name in params:
                raise RequestError(f"{key}: {name} is said twice")
            params[name] = setting
    return params


def _settings(key: str, value: object, body: JsonObject) -> Iterator[tuple[str, object]]:
    """The fields of ``SamplingParams`` that the field ``key`` of a body sets: one or none."""
    name = _ALIASES.get(key, key)
    if key in _ONLY:
        if value not in _ONLY[key]:
            raise RequestError(f"{key}: a batch does not support it, found {show(value)}")
    elif key == "response_format":
        outputs = _structured_outputs(value)
        if outputs is not None:
            yield "structured_outputs", outputs
    elif key in ("json_schema", "grammar"):
        yield "structured_outputs", {"json" if key == "json_schema" else key: value}
    elif key == "logprobs" and isinstance(value, bool):
        if value:
            yield key, body.get("top_logprobs", 0)
    elif key == "top_logprobs":
        if body.get("logprobs") is not True:
            raise RequestError("top_logprobs: expected logprobs to be true")
    elif name in _PARAMS:
        yield name, value
    elif key not in _WITHOUT_EFFECT:
        raise RequestError(f"{key!s:.40}: there is no such parameter")


def _structured_outputs(response_format: object) -> StructuredOutputsParams | None:
    """The constraint of a ``response_format``; None for plain text."""
    kind, schema = response_schema(response_format)
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if schema is None:
        raise RequestError(f"response_format: expected json_schema.schema, found {show(response_format)}")
    return StructuredOutputsParams(json=schema)
