"""Chat formats in which an answer begins with a message or a function call: functionary's and chatml-function-calling.

A grammar constrains the start of the answer to the opening of a message or of a function. The function's schema constrains the
arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from gumba.compat.llama_cpp.chat_answers import FunctionCompletion
from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar
from gumba.compat.llama_cpp.state import JsonObject

#: Completes a prompt that continues with a text, constrained by a grammar: (text, grammar, stream) -> completion.
Complete: TypeAlias = Callable[..., Any]

#: Maximum number of calls in one answer.
MAX_CALLS = 8


@dataclass(frozen=True)
class FunctionFormat:
    """The texts of a format.

    Args:
        begin: Opens a message; ROLE stands for its role.
        end: Closes a message.
        message: Opens a message's text.
        call: Opens a call's arguments; NAME stands for the function.
        stop: Ends an answer.
        tools: Opens the list of functions.
        always: Texts begin with ``message`` even without functions.
    """

    begin: str
    end: str
    message: str
    call: str
    stop: str
    tools: str = "Functions, as JSON:\n"
    always: bool = False

    @property
    def template(self) -> str:
        """The Jinja template of the prompt, up to the assistant's ``begin``."""
        opening = f"{{{{ {self.message!r} }}}}"
        system = self.begin.replace("ROLE", "system") + (opening if self.always else "")
        call = self.call.replace("NAME", "{{ call['function']['name'] }}")
        opened = "true" if self.always else "tools and message['role'] == 'assistant'"
        return (
            "{% if tools %}" + system + self.tools + "{% for tool in tools %}{{ tool['function'] | tojson }}\n{% endfor %}"
            + self.end + "{% endif %}{% for message in messages %}"
            + self.begin.replace("ROLE", "{{ message['role'] }}")
            + "{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}" + call
            + "{{ call['function']['arguments'] | tojson }}\n{% endfor %}{% else %}"
            + f"{{% if {opened} %}}{opening}{{% endif %}}" + "{{ message['content'] or '' }}{% endif %}" + self.end
            + "{% endfor %}" + self.begin.replace("ROLE", "assistant")
        )  # fmt: skip


FUNCTION_FORMATS: dict[str, FunctionFormat] = {
    "chatml-function-calling": FunctionFormat(
        begin="<|im_start|>ROLE\n",
        end="<|im_end|>\n",
        message="message:\n",
        call="functions.NAME:\n",
        stop="<|im_end|>",
        tools="Begin with 'message:' or 'functions.NAME:'. Functions, as JSON:\n",
    ),
    "functionary-v2": FunctionFormat(
        begin="<|from|>ROLE\n",
        end="\n",
        message="<|recipient|>all\n<|content|>",
        call="<|recipient|>NAME\n<|content|>",
        stop="<|from|>",
        always=True,
    ),
    "functionary-v1": FunctionFormat(
        begin="ROLE", end="</s>\n", message=":\n", call=" to=functions.NAME:\n", stop="</s>", always=True
    ),
}
FUNCTION_FORMATS["functionary"] = FUNCTION_FORMATS["functionary-v1"]


def schema_grammar(schema: object) -> LlamaGrammar:
    """The grammar of a JSON schema, given as a value or as text."""
    return LlamaGrammar.from_json_schema(schema if isinstance(schema, str) else json.dumps(schema))


def choice_grammar(choices: Sequence[str]) -> LlamaGrammar:
    """The grammar that matches one of ``choices``."""
    return LlamaGrammar.from_string("root ::= " + " | ".join(json.dumps(choice) for choice in choices))


def pick(complete: Complete, text: str, choices: Sequence[str]) -> str:
    """The most likely of ``choices`` after the prompt and ``text``."""
    completion = complete(text, choice_grammar(choices), stream=False, temperature=0.0, max_tokens=None, stop=[])
    choice: str = completion["choices"][0]["text"]
    return choice


def functions_of(tools: Sequence[JsonObject]) -> dict[str, JsonObject]:
    """The parameters of the functions, by name."""
    functions = [tool.get("function") or {} for tool in tools]
    return {function["name"]: function.get("parameters") or {"type": "object"} for function in functions}


def complete_calls(
    complete: Complete, form: FunctionFormat, functions: Mapping[str, JsonObject], first: str, limit: int
) -> Iterator[FunctionCompletion]:
    """Generate up to ``limit`` calls; ``first`` is the opening of the first one."""
    openings = {form.call.replace("NAME", name): name for name in functions}
    text, opening = "", first
    for i in range(limit):
        name = openings.get(opening)
        if name is None:
            return
        text += opening
        completion = complete(text, schema_grammar(functions[name]), stream=False)
        yield FunctionCompletion(name, completion)
        text += completion["choices"][0]["text"] + "\n"
        if completion["choices"][0]["finish_reason"] == "length" or i + 1 == limit:
            return
        opening = pick(complete, text, [*openings, form.stop])
