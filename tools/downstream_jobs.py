"""A small job with one package that was written for llama-cpp-python, on gumba's look-alike; run by check_downstream.py.

    python tools/downstream_jobs.py PACKAGE MODEL.gguf

Prints one JSON object: the versions of what took part, and for each job "ok: ...", "refused: ..." or "failed: ...".
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gumba
import gumba.compat.llama_cpp

Job = Callable[[str], str]
JOBS: dict[str, dict[str, Job]] = {}
QUESTION = "What is the capital of France? Answer with one word."
PERSON = "Anna is 31 years old. Who is it?"


def job(package: str, title: str) -> Callable[[Job], Job]:
    def register(function: Job) -> Job:
        JOBS.setdefault(package, {})[title] = function
        return function

    return register


def expect(condition: bool, what: object) -> str:
    """``what`` as text, to be shown. Raises AssertionError where ``condition`` is not met."""
    text = " ".join(str(what).split())[:60].replace("|", "/")
    if not condition:
        raise AssertionError(f"unexpected: {text}")
    return text


# ------------------------------------------------------------------------------------------------ langchain-community


@job("langchain-community", "`LlamaCpp` with its defaults: `invoke`, `stream`")
def langchain_text(model: str) -> str:
    from langchain_community.llms import LlamaCpp

    llm = LlamaCpp(model_path=model, temperature=0, max_tokens=12)
    text = llm.invoke("The capital of France is")
    return expect("Paris" in text and "".join(llm.stream("The capital of France is")) == text, text)


@job("langchain-community", "`ChatLlamaCpp`: `invoke`, `stream`")
def langchain_chat(model: str) -> str:
    from langchain_community.chat_models import ChatLlamaCpp

    llm = ChatLlamaCpp(model_path=model, temperature=0, max_tokens=12)
    text = llm.invoke(QUESTION).content
    return expect("Paris" in text and "".join(each.content for each in llm.stream(QUESTION)) == text, text)


@job("langchain-community", "`ChatLlamaCpp.with_structured_output(pydantic model)`")
def langchain_tools(model: str) -> str:
    from langchain_community.chat_models import ChatLlamaCpp
    from pydantic import BaseModel

    class Person(BaseModel):
        """A person."""

        name: str
        age: int

    llm = ChatLlamaCpp(model_path=model, temperature=0, max_tokens=64)
    found = llm.with_structured_output(Person).invoke(PERSON)
    return expect(isinstance(found, Person) and found.name == "Anna", found)


@job("langchain-community", "`LlamaCppEmbeddings`: `embed_documents`")
def langchain_embeddings(model: str) -> str:
    from langchain_community.embeddings import LlamaCppEmbeddings

    llm = LlamaCppEmbeddings(model_path=model)
    found = llm.embed_documents(["hello", "good night"])  # of a model that generates: one for each token, as there
    return expect(len(found) == 3 and {len(each) for each in found} == {llm.client.n_embd()}, f"{len(found)} vectors")


# ---------------------------------------------------------------------------------------- llama-index-llms-llama-cpp


@job("llama-index-llms-llama-cpp", "`LlamaCPP`: `complete`, `stream_complete`, `chat`")
def llama_index(model: str) -> str:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.llama_cpp import LlamaCPP

    llm = LlamaCPP(model_path=model, temperature=0, max_new_tokens=12, context_window=512)
    text = llm.complete("The capital of France is").text
    streamed = [each.delta for each in llm.stream_complete("The capital of France is")]
    llm.chat([ChatMessage(role="user", content=QUESTION)])
    return expect("Paris" in text and "".join(streamed) == text, text)


# ------------------------------------------------------------------------------------------------ llama-cpp-haystack


@job("llama-cpp-haystack", "`LlamaCppChatGenerator`: `run`")
def haystack(model: str) -> str:
    from haystack.dataclasses import ChatMessage
    from haystack_integrations.components.generators.llama_cpp import LlamaCppChatGenerator

    generator = LlamaCppChatGenerator(model, n_ctx=512, generation_kwargs={"max_tokens": 12, "temperature": 0})
    generator.warm_up()
    text = generator.run([ChatMessage.from_user(QUESTION)])["replies"][0].text
    return expect("Paris" in text, text)


@job("llama-cpp-haystack", "`LlamaCppChatGenerator` with a tool, `tool_choice` the function")
def haystack_tools(model: str) -> str:
    from haystack.dataclasses import ChatMessage
    from haystack.tools import Tool
    from haystack_integrations.components.generators.llama_cpp import LlamaCppChatGenerator

    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = Tool(name="weather", description="The weather.", parameters=parameters, function=lambda city: city)
    choice = {"type": "function", "function": {"name": "weather"}}
    options = {"max_tokens": 64, "temperature": 0, "tool_choice": choice}
    generator = LlamaCppChatGenerator(model, n_ctx=1024, tools=[tool], generation_kwargs=options)
    generator.warm_up()
    [call] = generator.run([ChatMessage.from_user("What is the weather in Paris?")])["replies"][0].tool_calls
    return expect(call.tool_name == "weather" and list(call.arguments) == ["city"], call.arguments)


# --------------------------------------------------------------------------------------------------------- instructor


@job("instructor", "`patch(llama.create_chat_completion_openai_v1)`: JSON_SCHEMA and TOOLS")
def instructor_patch(model: str) -> str:
    import instructor
    from llama_cpp import Llama
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    llama = Llama(model, n_ctx=1024, verbose=False)
    messages = [{"role": "user", "content": PERSON}]
    found = []
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        create = instructor.patch(create=llama.create_chat_completion_openai_v1, mode=mode)
        found.append(create(messages=messages, response_model=Person, max_tokens=64, temperature=0))
    return expect(all(isinstance(each, Person) for each in found), found)


# ----------------------------------------------------------------------------------------------------------- outlines


@job("outlines", "`from_llamacpp`: text, a pydantic model, a regular expression")
def outlines_all(model: str) -> str:
    import outlines
    from llama_cpp import Llama
    from outlines.types import Regex
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    llm = outlines.from_llamacpp(Llama(model, n_ctx=512, verbose=False))
    text = llm("The capital of France is", max_tokens=12, temperature=0)
    person = Person.model_validate_json(llm(PERSON, Person, max_tokens=64, temperature=0))
    number = llm("7 and 8 make", Regex("[0-9]{2}"), max_tokens=8, temperature=0)
    return expect(len(text) > 0 and len(number) == 2, f"{text!r}, {person!r}, {number}")


# ----------------------------------------------------------------------------------------------------------- guidance


@job("guidance", "`models.LlamaCpp`, which works on llama.cpp's context itself")
def guidance_model(model: str) -> str:
    from guidance import gen, models
    from llama_cpp import Llama

    return expect(False, models.LlamaCpp(Llama(model, n_ctx=512, verbose=False)) + "The capital" + gen(max_tokens=4))


def main() -> int:
    package, model = sys.argv[1:3]
    warnings.simplefilter("ignore")
    try:
        importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise SystemExit("llama-cpp-python is installed here: nothing would be shown by this")
    gumba.compat.llama_cpp.install()
    import llama_cpp
    import llama_cpp.llama_types

    assert llama_cpp is gumba.compat.llama_cpp and llama_cpp.Llama.__module__ == "gumba.compat.llama_cpp.llama"
    results = {}
    for title, function in JOBS[package].items():
        try:
            results[title] = f"ok: {function(model)}"
        except gumba.UnsupportedError as error:
            results[title] = f"refused: {error}"
        except Exception as error:
            results[title] = f"failed: {type(error).__name__}: {str(error)[:300]}"
    versions: dict[str, Any] = {package: importlib.metadata.version(package), "gumba": gumba.__version__}
    print(json.dumps({"versions": versions, "module": llama_cpp.__file__, "jobs": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
