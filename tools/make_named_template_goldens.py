"""Makes tests/data/named_template_goldens.json: what llama.cpp and transformers render for the templates we know by name.

    python tools/make_named_template_goldens.py llama   (with llama-cpp-python: its built-in templates)
    python tools/make_named_template_goldens.py published DIR   (with transformers: templates that their authors publish)

Each replaces its own part of the file. DIR holds the published templates as ``.jinja`` files, as the repositories of
llama.cpp and its kin have them in models/templates.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "tests" / "data" / "named_template_goldens.json"
CONVERSATIONS = {
    "user": [{"role": "user", "content": "Hello"}],
    "spaces": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": " Bonjour, ça va ? "},
        {"role": "assistant", "content": "\n Oui. "},
        {"role": "user", "content": "And\nyou? "},
    ],
    "answered": [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Wetter für <Ort>", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
]  # fmt: skip
CALLED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}},
        {"id": "bcdefghij", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "rain"},
    {"role": "tool", "tool_call_id": "bcdefghij", "content": "sun"},
    {"role": "assistant", "content": "Rain and sun."},
    {"role": "user", "content": "Thanks"},
]  # fmt: skip
#: Our name -> the published template, and the conversations that it renders without additions of its own (a date, say).
PUBLISHED: dict[str, tuple[str, list[str]]] = {
    "chatml": ("Qwen-Qwen2.5-7B-Instruct.jinja", ["spaces"]),
    "hermes": ("Qwen-Qwen2.5-7B-Instruct.jinja", ["spaces", "tools", "called"]),
    "gemma": ("google-gemma-2-2b-it.jinja", ["user", "answered"]),
    "phi3": ("microsoft-Phi-3.5-mini-instruct.jinja", ["user", "spaces"]),
    "deepseek3": ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", ["answered"]),
    "rwkv-world": ("llama-cpp-rwkv-world.jinja", ["user", "answered"]),
    "mistral-v3-tekken": ("mistralai-Mistral-Nemo-Instruct-2407.jinja", ["user", "answered"]),
    "mistral-v7-tekken": ("Mistral-Small-3.2-24B-Instruct-2506.jinja", ["spaces"]),
    "granite": ("ibm-granite-granite-3.3-2B-Instruct.jinja", ["spaces"]),
    "kimi-k2": ("moonshotai-Kimi-K2.jinja", ["spaces"]),
    "seed_oss": ("ByteDance-Seed-OSS.jinja", ["user", "answered"]),
}


def llama() -> list[dict[str, Any]]:
    """What llama.cpp renders for its names."""
    from llama_cpp import llama_cpp as api

    count = api.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * count)()
    api.llama_chat_builtin_templates(names, count)
    found = []
    for name in sorted(name.decode() for name in names if name):
        for title, messages in CONVERSATIONS.items():
            for prompt in (False, True):
                # llama.cpp begins RWKV's answer whether a generation prompt is requested or not.
                if (prompt and title == "answered") or (name == "rwkv-world" and not prompt):
                    continue
                pairs = [api.llama_chat_message(m["role"].encode(), m["content"].encode()) for m in messages]
                given = (api.llama_chat_message * len(pairs))(*pairs)
                buffer = ctypes.create_string_buffer(1 << 16)
                size = api.llama_chat_apply_template(name.encode(), given, len(pairs), prompt, buffer, len(buffer))
                text = buffer.raw[:size].decode()
                found.append({"name": name, "conversation": title, "prompt": prompt, "rendered": text})
    return found


def published(folder: Path) -> list[dict[str, Any]]:
    """What transformers renders of the templates that the models' authors publish."""
    from transformers.utils.chat_template_utils import render_jinja_template

    found = []
    for name, (file, titles) in PUBLISHED.items():
        source = (folder / file).read_text(encoding="utf-8")
        for title in titles:
            messages = CALLED if title == "called" else CONVERSATIONS["user" if title == "tools" else title]
            if title == "tools":
                messages = [{"role": "system", "content": "Be brief."}, *messages]
            tools = TOOLS if title in ("tools", "called") else None
            rendered, _ = render_jinja_template(
                [messages], tools=tools, chat_template=source, add_generation_prompt=title != "answered",
                bos_token="", eos_token="</s>" if "mistral" in name else "",
            )  # fmt: skip
            found.append({"name": name, "conversation": title, "messages": messages, "tools": tools is not None,
                          "prompt": title != "answered", "rendered": rendered[0]})  # fmt: skip
    return found


def main() -> None:
    data = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    data |= {"conversations": CONVERSATIONS, "tools": TOOLS}
    if sys.argv[1:] == ["llama"]:
        data["llama.cpp"] = llama()
    else:
        data["published"] = published(Path(sys.argv[2]))
    OUT.write_text(json.dumps(data, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
