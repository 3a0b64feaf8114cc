"""More calls for tools/compat_check.py: what packages import, pass and expect."""

from __future__ import annotations

import importlib
import json
from typing import Any

from compat_cases import CHAT, case, llama

#: What pydantic writes of a model: there is no "additionalProperties".
PERSON = {
    "properties": {"name": {"title": "Name", "type": "string"}, "age": {"title": "Age", "type": "integer"}},
    "required": ["name", "age"],
    "title": "Person",
    "type": "object",
}
ANNA = [{"role": "user", "content": "Anna is 31 years old"}]


def module(lib: Any, name: str) -> Any:
    return importlib.import_module(f"{lib.__name__}.{name}")


@case
def keywords_of_langchain(lib: Any, path: str) -> Any:
    options = {"rope_freq_scale": 1.0, "rope_freq_base": 10000.0, "device": None, "f16_kv": True, "logits_all": False}
    return lib.Llama(path, vocab_only=True, verbose=False, lora_base=None, lora_path=None, **options).n_ctx()


@case
def unknown_keywords(lib: Any, path: str) -> Any:
    return lib.Llama(path, vocab_only=True, verbose=False, temperature=0.7, n_gqa=8, stream=True, seed=None).n_ctx()


@case
def completion_of_bytes(lib: Any, path: str) -> Any:
    return llama(lib, path)(b"Hello", max_tokens=2)


@case
def embeddings_of_bytes(lib: Any, path: str) -> Any:
    return lib.Llama(path, n_ctx=64, embedding=True, verbose=False).embed([b"hello"])


@case
def schema_without_additional_properties(lib: Any, path: str) -> Any:
    options = {"response_format": {"type": "json_object", "schema": PERSON}, "temperature": 0, "max_tokens": 64}
    choice = llama(lib, path).create_chat_completion(ANNA, **options)["choices"][0]
    return [choice["finish_reason"], list(json.loads(choice["message"]["content"]))]


@case
def forced_call_without_additional_properties(lib: Any, path: str) -> Any:
    tools = [{"type": "function", "function": {"name": "person", "description": "", "parameters": PERSON}}]
    choice = {"type": "function", "function": {"name": "person"}}
    answer = llama(lib, path).create_chat_completion(
        ANNA, tools=tools, tool_choice=choice, temperature=0, max_tokens=64
    )
    [call] = answer["choices"][0]["message"]["tool_calls"]
    return [call["function"]["name"], list(json.loads(call["function"]["arguments"]))]


@case
def stop_inside_a_form(lib: Any, path: str) -> Any:
    grammar = lib.LlamaGrammar.from_string('root ::= "{ab}"', verbose=False)
    return llama(lib, path)("x", grammar=grammar, stop=["b"], temperature=0, max_tokens=9)["choices"][0]


@case
def registered_formats(lib: Any, path: str) -> Any:
    return sorted(module(lib, "llama_chat_format").LlamaChatCompletionHandlerRegistry()._chat_handlers)


@case
def formatters(lib: Any, path: str) -> Any:
    """Those that are written the same way; the others are named in chat_formats.py."""
    found = module(lib, "llama_chat_format")
    names = (
        "baichuan",
        "baichuan2",
        "chatglm3",
        "chatml",
        "llama3",
        "oasst_llama",
        "qwen",
        "redpajama_incite",
        "snoozy",
    )
    messages = [{"role": "system", "content": "Be brief."}, *CHAT, {"role": "assistant", "content": "Red."}, *CHAT]
    return {name: getattr(found, f"format_{name}")(messages=messages).prompt for name in names}


@case
def formatter_of_a_template(lib: Any, path: str) -> Any:
    source = "{{ bos_token }}{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    made = module(lib, "llama_chat_format").Jinja2ChatFormatter(source, eos_token="</s>", bos_token="<s>")(
        messages=CHAT
    )
    return [made.prompt, made.stop, made.added_special, made.stopping_criteria]


@case
def names_of_types(lib: Any, path: str) -> Any:
    return sorted(name for name in vars(module(lib, "llama_types")) if name[0] == "C" or name.startswith("Embedding"))


@case
def numbers_of_llama_cpp(lib: Any, path: str) -> Any:
    found = module(lib, "llama_cpp")
    prefixes = ("GGML_TYPE", "LLAMA_FTYPE", "LLAMA_ROPE_SCALING", "LLAMA_POOLING", "LLAMA_TOKEN_ATTR", "LLAMA_VOCAB")
    names = [name for name in vars(found) if name.startswith(prefixes) and name != "GGML_TYPE_BF16"]  # not there
    return {name: getattr(found, name) for name in names}
