"""Chat formats under llama-cpp-python's names: templates, and the strings that end an answer.

The formats are those that the models were trained on. llama-cpp-python's own differ in places (omitted messages,
doubled line breaks, a missing start of the answer, long system prompts of its own); those differences are not reproduced.
"""

from __future__ import annotations

#: A message's text; messages that only call functions have none.
_TEXT = "(message['content'] or '')"


def _turns(before: str, after: str, answer: str) -> str:
    """A template of one turn per message: ``before`` (where ROLE is its role), its text, ``after``; then ``answer``."""
    role = before.replace("ROLE", "{{ message['role'] }}")
    return f"{{% for message in messages %}}{role}{{{{ {_TEXT} }}}}{after}{{% endfor %}}{{{{ {answer!r} }}}}"


def _roles(
    system: tuple[str, str], user: tuple[str, str], assistant: tuple[str, str], answer: str | None = None
) -> str:
    """A template with the text before and after each role's messages, then the start of the assistant's turn."""

    def turn(around: tuple[str, str]) -> str:
        return f"{{{{ {around[0]!r} ~ {_TEXT} ~ {around[1]!r} }}}}"

    opening = assistant[0].rstrip(" ") if answer is None else answer
    return (
        "{% for message in messages %}{% if message['role'] in ('system', 'developer') %}" + turn(system)
        + "{% elif message['role'] == 'assistant' %}" + turn(assistant) + "{% else %}" + turn(user)
        + f"{{% endif %}}{{% endfor %}}{{{{ {opening!r} }}}}"
    )  # fmt: skip


def _inst(system: str, start: str, end: str) -> str:
    """A Mistral-like template: the system message is prepended to the next user turn."""
    return (
        "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
        f"{{% set ns.system = {system} %}}{{% elif message['role'] == 'user' %}}"
        f"{start}[INST] {{{{ ns.system ~ message['content'] }}}} [/INST]{{% set ns.system = '' %}}"
        f"{{% else %}}{{{{ ' ' ~ {_TEXT} }}}}{end}{{% endif %}}{{% endfor %}}"
    )


CHATML = _turns("<|im_start|>ROLE\n", "<|im_end|>\n", "<|im_start|>assistant\n")

#: Name -> template, and the string that ends an answer if the file does not define one.
CHAT_FORMATS: dict[str, tuple[str, str]] = {
    "chatml": (CHATML, "<|im_end|>"),
    "qwen": (CHATML, "<|im_end|>"),
    "gemma": (
        "{% for message in messages %}<start_of_turn>"
        f"{{{{ 'model' if message['role'] == 'assistant' else 'user' }}}}\n{{{{ {_TEXT} }}}}<end_of_turn>\n"
        "{% endfor %}{{ '<start_of_turn>model\n' }}",
        "<end_of_turn>",
    ),
    "llama-2": (_inst("'<<SYS>>\\n' ~ message['content'] ~ '\\n<</SYS>>\\n\\n'", "<s>", " </s>"), "</s>"),
    "llama-3": (
        _turns(
            "<|start_header_id|>ROLE<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        "<|eot_id|>",
    ),
    "mistral-instruct": (_inst("message['content'] ~ '\\n\\n'", "", "</s>"), "</s>"),
    "zephyr": (_turns("<|ROLE|>\n", "</s>\n", "<|assistant|>\n"), "</s>"),
    "alpaca": (
        _roles(("", "\n\n"), ("### Instruction:\n", "\n\n"), ("### Response:\n", "</s>")),
        "### Instruction:",
    ),
    "vicuna": (_roles(("", " "), ("USER: ", " "), ("ASSISTANT: ", "</s>")), "</s>"),
    "oasst_llama": (
        _roles(("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"), ("<|prompter|>", "</s>"), ("<|assistant|>", "</s>")),
        "</s>",
    ),
    "baichuan": (_roles(("", ""), ("<reserved_102>", ""), ("<reserved_103>", "")), "<reserved_102>"),
    "baichuan-2": (_roles(("", ""), ("<reserved_106>", ""), ("<reserved_107>", "")), "<reserved_106>"),
    "openbuddy": (_roles(("", "\n\n"), ("User: ", "\n"), ("Assistant: ", "\n")), "User:"),
    "redpajama-incite": (_roles(("", "\n"), ("<human>: ", "\n"), ("<bot>: ", "\n")), "<human>"),
    "snoozy": (_roles(("", "\n"), ("### Prompt: ", "\n"), ("### Response: ", "\n")), "###"),
    "phind": (
        _roles(("### System Prompt\n", "\n\n"), ("### User Message\n", "\n\n"), ("### Assistant\n", "\n\n")),
        "### User Message",
    ),
    "intel": (
        _roles(("### System:\n", "\n"), ("### User:\n", "\n"), ("### Assistant:\n", "\n")),
        "### User:",
    ),
    "open-orca": (
        _roles(("", "<|end_of_turn|>\n"), ("User: ", "<|end_of_turn|>\n"), ("Assistant: ", "<|end_of_turn|>\n")),
        "<|end_of_turn|>",
    ),
    "mistrallite": (_roles(("<|system|>", "</s>"), ("<|prompter|>", "</s>"), ("<|assistant|>", "</s>")), "</s>"),
    "pygmalion": (_roles(("<|system|>", ""), ("<|user|>", ""), ("<|model|>", "")), "<|user|>"),
    "chatglm3": (
        _roles(("<|system|>\n", ""), ("<|user|>\n ", ""), ("<|assistant|>\n ", ""), "<|assistant|>"),
        "<|user|>",
    ),
    "openchat": (
        _roles(
            ("", "<|end_of_turn|>"),
            ("GPT4 Correct User: ", "<|end_of_turn|>"),
            ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        ),
        "<|end_of_turn|>",
    ),
    "saiga": (_roles(("<s>system\n", "</s>"), ("<s>user\n", "</s>"), ("<s>bot\n", "</s>")), "</s>"),
}
