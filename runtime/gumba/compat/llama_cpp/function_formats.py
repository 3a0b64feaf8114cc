"""Chat formats in which an answer begins with a message or a function call: functionary's and chatml-function-calling.

The answer begins with an opening, held to by a grammar: the one of a message, or the one of a function. Arguments are held to the
function's schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar

Answer = dict[str, Any]
#: Completes a prompt that goes on with a text, held to a grammar: (text, grammar, stream) -> completion.
Complete = Callable[..., Any]

#: Maximum number of calls in one answer.
MAX_CALLS = 8


@dataclass(frozen=True)
class FunctionFormat:
    """A format. ``begin`` (where ROLE is the role) and ``end`` stand around each message; ``message`` and ``call`` (where NAME
    is the function's) begin its text or its arguments; ``tools`` begins the list of functions; ``stop`` ends an answer.
    ``always``: contents begin with ``message`` even where no functions are offered."""

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
        told = "true" if self.always else "tools and message['role'] == 'assistant'"
        return (
            "{% if tools %}" + system + self.tools + "{% for tool in tools %}{{ tool['function'] | tojson }}\n{% endfor %}"
            + self.end + "{% endif %}{% for message in messages %}"
            + self.begin.replace("ROLE", "{{ message['role'] }}")
            + "{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}" + call
            + "{{ call['function']['arguments'] | tojson }}\n{% endfor %}{% else %}"
            + f"{{% if {told} %}}{opening}{{% endif %}}" + "{{ message['content'] or '' }}{% endif %}" + self.end
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


def schema_grammar(schema: Any) -> LlamaGrammar:
    """The grammar of a JSON schema, as a value or as text."""
    return LlamaGrammar.from_json_schema(schema if isinstance(schema, str) else json.dumps(schema))


def choice_grammar(choices: Sequence[str]) -> LlamaGrammar:
    """The grammar of one of several texts."""
    return LlamaGrammar.from_string("root ::= " + " | ".join(json.dumps(each) for each in choices))


def pick(complete: Complete, text: str, choices: Sequence[str]) -> str:
    """The most likely of ``choices`` after the prompt and ``text``."""
    found: str = complete(text, choice_grammar(choices), stream=False, temperature=0.0, max_tokens=None, stop=[])[
        "choices"
    ][0]["text"]
    return found


def functions_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The parameters of each function, by its name."""
    functions = [tool.get("function") or {} for tool in tools]
    return {function["name"]: function.get("parameters") or {"type": "object"} for function in functions}


def calls(
    complete: Complete, form: FunctionFormat, functions: Mapping[str, Any], first: str, limit: int
) -> Iterator[Answer]:
    """Up to ``limit`` calls, each its name and the completion of its arguments; the first one's opening is ``first``."""
    openings = {form.call.replace("NAME", name): name for name in functions}
    text, opening = "", first
    for i in range(limit):
        name = openings.get(opening)
        if name is None:
            return
        text += opening
        completion = complete(text, schema_grammar(functions[name]), stream=False)
        yield {"name": name, "completion": completion}
        text += completion["choices"][0]["text"] + "\n"
        if completion["choices"][0]["finish_reason"] == "length" or i + 1 == limit:
            return
        opening = pick(complete, text, [*openings, form.stop])
