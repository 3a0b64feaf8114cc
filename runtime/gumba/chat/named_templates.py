"""Built-in chat templates by name, for files without a template.

Names and output are those of llama.cpp's ``--chat-template`` (``alpaca``, ``hermes`` and the aliases are additions). They are
written from the formats that the models' authors publish. None of them writes BOS, which ``encode_chat`` adds if the file
requires it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gumba.tokenizer.tokenizer import Tokenizer

#: The text before and after a message.
_Turn = tuple[str, str]
_EOS = "<\uff5cend▁of▁sentence\uff5c>"  # DeepSeek's


def _content(trim: bool) -> str:
    return f"{{{{ (message.content or ''){'|trim' if trim else ''} }}}}"


def _text(text: str) -> str:
    return f"{{{{ {text!r} }}}}" if text else ""


def _answer(text: str) -> str:
    return f"{{% if add_generation_prompt %}}{_text(text)}{{% endif %}}"


def _same(before: str, after: str, answer: str, *, trim: bool = False) -> str:
    """Every turn alike but for its role, which stands for ROLE in ``before``."""
    head, tail = before.split("ROLE")
    turn = f"{_text(head)}{{{{ message.role }}}}{_text(tail)}{_content(trim)}{_text(after)}"
    return f"{{% for message in messages %}}{turn}{{% endfor %}}{_answer(answer)}"


def _roles(system: _Turn, user: _Turn, assistant: _Turn, answer: str, *, trim: str = "", first: str = "") -> str:
    """A form of turn for each role. ``trim``: the initials of roles whose texts are stripped; ``first`` opens it all."""

    def turn(around: _Turn, initial: str) -> str:
        return _text(around[0]) + _content(initial in trim) + _text(around[1])

    return (
        f"{_text(first)}{{% for message in messages %}}{{% if message.role in ('system', 'developer') %}}{turn(system, 's')}"
        f"{{% elif message.role == 'assistant' %}}{turn(assistant, 'a')}{{% else %}}{turn(user, 'u')}{{% endif %}}"
        f"{{% endfor %}}{_answer(answer)}"
    )


def _first_system(text: str) -> str:
    """``text`` where no system's message comes first."""
    return f"{{% if messages[0].role not in ('system', 'developer') %}}{_text(text)}{{% endif %}}"


def _merged(
    start: str, between: str, end: str, assistant: _Turn, answer: str = "", *, trim: str = "", first: str | None = None
) -> str:
    """The system's text goes into the next turn of the user, ``between`` behind it. ``first``: ``start`` of the first turn."""
    opening = (
        _text(start)
        if first is None
        else f"{{% if loop.first or ns.first %}}{_text(first)}{{% else %}}{_text(start)}{{% endif %}}"
    )
    system, text, reply = (_content(role in trim) for role in "sua")
    return (
        "{% set ns = namespace(system='', first=false) %}{% for message in messages %}"
        f"{{% if message.role in ('system', 'developer') %}}{{% set ns.system %}}{system}{{% endset %}}"
        "{% set ns.first = loop.first %}"
        f"{{% elif message.role == 'assistant' %}}{_text(assistant[0])}{reply}{_text(assistant[1])}"
        f"{{% else %}}{opening}{{% if ns.system %}}{{{{ ns.system }}}}{_text(between)}{{% endif %}}{text}{_text(end)}"
        "{% set ns.system = '' %}{% set ns.first = false %}{% endif %}{% endfor %}" + _answer(answer)
    )


def _llama2(system: _Turn, start: str, *, trim: str = "") -> str:
    """``[INST] <<SYS>>\\n...\\n<</SYS>>\\n\\n... [/INST] ...</s>``; ``start`` is how later turns begin."""
    system_text, text, reply = (_content(role in trim) for role in "sua")
    return (
        "{{ '[INST] ' }}{% set ns = namespace(open=true) %}{% for message in messages %}"
        f"{{% if not ns.open %}}{_text(start)}{{% set ns.open = true %}}{{% endif %}}"
        f"{{% if message.role in ('system', 'developer') %}}{_text(system[0])}{system_text}{_text(system[1])}"
        f"{{% elif message.role == 'assistant' %}}{reply}{{{{ '</s>' }}}}{{% set ns.open = false %}}"
        f"{{% else %}}{text}{{{{ ' [/INST]' }}}}{{% endif %}}{{% endfor %}}"
    )


#: Hermes 2 Pro's tools, as Qwen2.5 took them over: signatures in the system's turn, calls in <tool_call>.
_HERMES = """\
{%- set ns = namespace(system='', rest=messages) -%}
{%- if messages[0].role in ('system', 'developer') -%}
{%- set ns.system = messages[0].content -%}{%- set ns.rest = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n' -}}
{{- '</tool_call><|im_end|>\\n' -}}
{%- elif ns.system -%}
{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in ns.rest -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' -}}{{- message.content -}}{{- '\\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- elif message.tool_calls -%}
{{- '<|im_start|>assistant' -}}
{%- if message.content -%}{{- '\\n' + message.content -}}{%- endif -%}
{%- for call in message.tool_calls -%}
{%- set function = call.function or call -%}
{{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{{- function.arguments if function.arguments is string else function.arguments | tojson -}}{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_ALPACA = _first_system(
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
) + _roles(("", "\n\n"), ("### Instruction:\n", "\n\n"), ("### Response:\n", "\n\n"), "### Response:\n")

_MONARCH = (
    "{% for message in messages %}{% if not loop.first %}<s>{% endif %}{{ message.role ~ '\\n' }}"
    f"{_content(False)}{{{{ '</s>\\n' }}}}{{% endfor %}}{_answer('<s>assistant' + chr(10))}"
)

_ZEPHYR = (
    "{% for message in messages %}{{ '<|' ~ message.role ~ '|>\\n' }}"
    f"{_content(False)}{{{{ (eos_token or '<|endoftext|>') ~ '\\n' }}}}{{% endfor %}}{_answer('<|assistant|>' + chr(10))}"
)

_HEADERS = _same("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", "", trim=True)
_COHERE_END = "<|END_OF_TURN_TOKEN|>"
_GRANITE = _same(
    "<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n", "<|start_of_role|>assistant<|end_of_role|>"
)
_EXAONE = _roles(
    ("[|system|]", "[|endofturn|]\n"),
    ("[|user|]", "\n"),
    ("[|assistant|]", "[|endofturn|]\n"),
    "[|assistant|]",
    trim="sua",
)
_BAILING = (("<role>SYSTEM</role>", ""), ("<role>HUMAN</role>", ""), ("<role>ASSISTANT</role>", ""))
_GLM4 = _roles(
    ("<|system|>\n", ""), ("<|user|>\n", ""), ("<|assistant|>\n", ""), "<|assistant|>\n", first="[gMASK]<sop>"
)

CHATML = _same("<|im_start|>ROLE\n", "<|im_end|>\n", "<|im_start|>assistant\n")

#: Name -> template.
CHAT_TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "bailing": _roles(*_BAILING, "<role>ASSISTANT</role>"),
    "bailing-think": _roles(*_BAILING, "<role>ASSISTANT</role><think>"),
    "bailing2": _first_system("<role>SYSTEM</role>detailed thinking off<|role_end|>") + _roles(
        ("<role>SYSTEM</role>", "<|role_end|>"), ("<role>HUMAN</role>", "<|role_end|>"),
        ("<role>ASSISTANT</role>", "<|role_end|>"), "<role>ASSISTANT</role>",
    ),
    "chatglm3": _roles(
        ("<|system|>\n ", ""), ("<|user|>\n ", ""), ("<|assistant|>\n ", ""), "<|assistant|>", first="[gMASK]sop"
    ),
    "chatglm4": _GLM4,
    "chatml": CHATML,
    "command-r": _roles(
        ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", _COHERE_END), ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", _COHERE_END),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", _COHERE_END), "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", trim="sua",
    ),
    "deepseek": _roles(
        ("", ""), ("### Instruction:\n", "\n"), ("### Response:\n", "\n<|EOT|>\n"), "### Response:\n"
    ),
    "deepseek-ocr": _roles(("", ""), ("", ""), ("", ""), ""),
    "deepseek2": _roles(("", "\n\n"), ("User: ", "\n\n"), ("Assistant: ", _EOS), "Assistant:"),
    "deepseek3": _roles(
        ("", "\n\n"), ("<\uff5cUser\uff5c>", ""), ("<\uff5cAssistant\uff5c>", _EOS), "<\uff5cAssistant\uff5c>"
    ),
    "exaone-moe": _same("<|ROLE|>\n", "<|endofturn|>\n", "<|assistant|>\n", trim=True),
    "exaone3": _EXAONE,
    "exaone4": _EXAONE,
    "falcon3": _same("<|ROLE|>\n", "\n", "<|assistant|>\n"),
    "gemma": _merged(
        "<start_of_turn>user\n", "\n\n", "<end_of_turn>\n", ("<start_of_turn>model\n", "<end_of_turn>\n"),
        "<start_of_turn>model\n", trim="sua",
    ),
    "gigachat": _roles(
        ("", "<|message_sep|>"),
        ("user<|role_sep|>", "<|message_sep|>available functions<|role_sep|>[]<|message_sep|>"),
        ("assistant<|role_sep|>", "<|message_sep|>"), "assistant<|role_sep|>", first="<s>",
    ),
    "glm4": _GLM4,
    "glmedge": _same("<|ROLE|>\n", "", "<|assistant|>"),
    "gpt-oss": _roles(
        ("<|start|>system<|message|>", "<|end|>"), ("<|start|>user<|message|>", "<|end|>"),
        ("<|start|>assistant<|message|>", "<|return|>"), "<|start|>assistant",
    ),
    "granite": _GRANITE,
    "granite-4.0": _GRANITE,
    "granite-4.1": _GRANITE,
    "grok-2": _roles(
        ("System: ", "<|separator|>\n\n"), ("Human: ", "<|separator|>\n\n"), ("Assistant: ", "<|separator|>\n\n"),
        "Assistant:", trim="su",
    ),
    "hermes": _HERMES,
    "hunyuan-dense": _roles(
        ("", "<\uff5chy_place▁holder▁no▁3\uff5c>"), ("<\uff5chy_User\uff5c>", "<\uff5chy_Assistant\uff5c>"),
        ("<\uff5chy_Assistant\uff5c>", "<\uff5chy_place▁holder▁no▁2\uff5c>"), "",
    ),
    "hunyuan-vl": _roles(
        ("", "<\uff5chy_place▁holder▁no▁3\uff5c>"), ("", "<\uff5chy_User\uff5c>"), ("", "<\uff5chy_Assistant\uff5c>"), "",
        first="<\uff5chy_begin▁of▁sentence\uff5c>",
    ),
    "hunyuan-moe": _roles(
        ("<|startoftext|>", "<|extra_4|>"), ("<|startoftext|>", "<|extra_0|>"), ("", "<|eos|>"), ""
    ),
    "kimi-k2": _roles(
        ("<|im_system|>system<|im_middle|>", "<|im_end|>"), ("<|im_user|>user<|im_middle|>", "<|im_end|>"),
        ("<|im_assistant|>assistant<|im_middle|>", "<|im_end|>"), "<|im_assistant|>assistant<|im_middle|>",
    ),
    "llama2": _llama2(("", "\n"), "[INST] "),
    "llama2-sys": _llama2(("<<SYS>>\n", "\n<</SYS>>\n\n"), "[INST] "),
    "llama2-sys-bos": _llama2(("<<SYS>>\n", "\n<</SYS>>\n\n"), "<s>[INST] "),
    "llama2-sys-strip": _llama2(("<<SYS>>\n", "\n<</SYS>>\n\n"), "[INST] ", trim="sua"),
    "llama3": _HEADERS + _answer("<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "llama4": _same(
        "<|header_start|>ROLE<|header_end|>\n\n", "<|eot|>", "<|header_start|>assistant<|header_end|>\n\n", trim=True
    ),
    "megrez": _same("<|role_start|>ROLE<|role_end|>", "<|turn_end|>", "<|role_start|>assistant<|role_end|>"),
    "minicpm": _roles(("", ""), ("<用户>", "<AI>"), ("", ""), "", trim="sua"),
    "mistral-v1": _merged(" [INST] ", "\n\n", " [/INST]", (" ", "</s>")),
    "mistral-v3": _merged("[INST] ", "\n\n", "[/INST]", (" ", "</s>"), trim="a"),
    "mistral-v3-tekken": _merged("[INST]", "\n\n", "[/INST]", ("", "</s>")),
    "mistral-v7": _roles(("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"), ("[INST] ", "[/INST]"), (" ", "</s>"), ""),
    "mistral-v7-tekken": _roles(("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), ("[INST]", "[/INST]"), ("", "</s>"), ""),
    "monarch": _MONARCH,
    "openchat": _roles(
        ("", "<|end_of_turn|>"), ("GPT4 Correct User: ", "<|end_of_turn|>"),
        ("GPT4 Correct Assistant: ", "<|end_of_turn|>"), "GPT4 Correct Assistant:",
    ),
    "orion": _merged("Human: ", "\n\n", "\n\nAssistant: </s>", ("", "</s>")),
    "pangu-embedded": _first_system("[unused9]系统\uff1a[unused10]") + _roles(
        ("[unused9]系统\uff1a", "[unused10]"), ("[unused9]用户\uff1a", "[unused10]"), ("[unused9]助手\uff1a", "[unused10]"),
        "[unused9]助手\uff1a",
    ),
    "phi3": _same("<|ROLE|>\n", "<|end|>\n", "<|assistant|>\n"),
    "phi4": _same("<|im_start|>ROLE<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "qwen": CHATML,
    "rwkv-world": _roles(("System: ", "\n\n"), ("User: ", "\n\n"), ("Assistant: ", "\n\n"), "Assistant:", trim="sua"),
    "seed_oss": _roles(
        ("<seed:bos>system\n", "<seed:eos>"), ("<seed:bos>user\n", "<seed:eos>"),
        ("<seed:bos>assistant\n", "<seed:eos>"), "<seed:bos>assistant\n", trim="a",
    ),
    "smolvlm": _roles(
        ("", "\n\n"), ("User: ", "<end_of_utterance>\n"), ("Assistant: ", "<end_of_utterance>\n"), "Assistant:",
        first="<|im_start|>",
    ),
    "solar-open": _same("<|begin|>ROLE<|content|>", "<|end|>", "<|begin|>assistant"),
    "vicuna": _roles(("", "\n\n"), ("USER: ", "\n"), ("ASSISTANT: ", "</s>\n"), "ASSISTANT:"),
    "vicuna-orca": _roles(("SYSTEM: ", "\n"), ("USER: ", "\n"), ("ASSISTANT: ", "</s>\n"), "ASSISTANT:"),
    "yandex": (
        "{% for message in messages if message.role != 'system' %}{% if message.role == 'assistant' %}{{ ' Ассистент: ' }}"
        "{% else %}{{ ' Пользователь: ' }}{% endif %}" + _content(False) + "{{ '\\n\\n' }}{% endfor %}"
        + _answer(" Ассистент:[SEP]")
    ),
    "zephyr": _ZEPHYR,
}  # fmt: skip

#: (tokens that only vocabularies of one format have, its name); the first matching row counts.
_BY_TOKENS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|im_start|>", "<|im_sep|>"), "phi4"),
    (("<|im_start|>", "<end_of_utterance>"), "smolvlm"),
    (("<|im_start|>", "<tool_call>"), "hermes"),
    (("<|im_start|>",), "chatml"),
    (("<|im_middle|>", "<|im_user|>"), "kimi-k2"),
    (("<|start_header_id|>", "<|eot_id|>"), "llama3"),
    (("<|header_start|>", "<|eot|>"), "llama4"),
    (("<start_of_turn>", "<end_of_turn>"), "gemma"),
    (("<|start_of_role|>", "<|end_of_role|>"), "granite"),
    (("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"), "command-r"),
    (("[gMASK]", "<sop>", "<|user|>"), "chatglm4"),
    (("[gMASK]", "sop", "<|user|>"), "chatglm3"),
    (("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"), "deepseek3"),
    (("<|channel|>", "<|message|>", "<|start|>"), "gpt-oss"),
    (("[|user|]", "[|assistant|]"), "exaone3"),
    (("<|role_start|>", "<|turn_end|>"), "megrez"),
    (("<seed:bos>",), "seed_oss"),
    (("<|user|>", "<|assistant|>", "<|end|>"), "phi3"),
    (("[INST]", "[SYSTEM_PROMPT]"), "mistral-v7"),
    (("[INST]", "[/INST]"), "mistral-v3"),
)
#: Formats that have no spaces for vocabularies other than SentencePiece.
_TEKKEN = {"mistral-v3": "mistral-v3-tekken", "mistral-v7": "mistral-v7-tekken"}
#: Formats of architectures whose vocabularies do not show them.
_BY_ARCHITECTURE = {
    "orion": "orion",
    "minicpm": "minicpm",
    "rwkv6": "rwkv-world",
    "rwkv7": "rwkv-world",
    "exaone": "exaone3",
    "deepseek2": "deepseek2",
}  # fmt: skip


def guess_name(tokenizer: Tokenizer, metadata: Mapping[str, object]) -> str | None:
    """The built-in template for a file without one, by its vocabulary and architecture; None if no row matches."""
    for texts, name in _BY_TOKENS:
        if all(tokenizer.token_id(text) is not None for text in texts):
            tekken = metadata.get("tokenizer.ggml.model") != "llama"
            return _TEKKEN.get(name, name) if tekken else name
    return _BY_ARCHITECTURE.get(str(metadata.get("general.architecture")))
