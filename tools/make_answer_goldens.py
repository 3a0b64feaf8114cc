"""Makes tests/data/answer_goldens.json: how published templates write answers with reasoning and calls of tools.

    python tools/make_answer_goldens.py DIR   (with transformers)

DIR holds the published templates as ``.jinja`` files, as llama.cpp and its kin have them in models/templates. What a template
writes for a message of the assistant is what its model was trained to write, so a parser must find the message in it. Of
the templates themselves only those texts are kept by which gumba knows the form.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

OUT = Path(__file__).parent.parent / "tests" / "data" / "answer_goldens.json"
#: What rendering raises where a template refuses a message, or takes it for another shape.
TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
#: Texts of a template's that tell the form.
TEXTS = (
    "<|START_THINKING|>", "[THINK]", "<seed:think>", "<response>", "Here is my thought process:", "<|channel>thought",
    "<|inner_prefix|>", "<think>", "</think>", "[TOOL_CALLS]", "<\uff5ctool▁calls▁begin\uff5c>",
    "<|tool_calls_section_begin|>", "<|START_ACTION|>", "<arg_key>", "<function=", "<tool_call>", "<|tool_call|>",
    "<|python_tag|>", "ipython", "[gMASK]", "<|channel|>", "<|message|>", "<|tool_call_start|>", "<|tool_list_start|>",
    "<|tool_call>", "<|function_call|>", "<tool_calls>", "<seed:tool_call>",
)  # fmt: skip
#: What ends an answer.
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>",
    "<\uff5cend▁of▁sentence\uff5c>", "<|endoftext|>", "<|call|>", "<|return|>", "<|end|>", "<seed:eos>", "<|observation|>",
    "<|user|>", "<turn|>", "<end_of_turn>", "<sep>", "<|message_sep|>",
)  # fmt: skip
#: Templates whose forms are not read, or which write no answer of a model's.
LEFT_OUT = {"Apertus-8B-Instruct", "GigaChat3-10B-A1.8B", "deepseek-ai-DeepSeek-V4", "deepseek-ai-DeepSeek-V3.2",
            "meetkai-functionary-medium-v3.2", "llama-cpp-rwkv-world"}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {
        "type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "description": "How long."}}}}}  # fmt: skip
USER = {"role": "user", "content": "Weather in Köln?"}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": 3}},
}
ANSWERS = {
    "call": {"role": "assistant", "content": "", "tool_calls": [CALL]},
    "bare call": {"role": "assistant", "content": None, "tool_calls": [CALL]},
    "two calls": {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "bcdefghij"}]},
    "text and call": {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    "thought and call": {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [CALL]},
    "thought and text": {"role": "assistant", "content": "Rain.", "reasoning_content": "Hm, so."},
    "text": {"role": "assistant", "content": "Rain."},
}  # fmt: skip


def render(source: str, messages: list[dict[str, Any]], prompt: bool) -> str:
    rendered, _ = render_jinja_template(
        [messages], tools=[TOOL], chat_template=source, add_generation_prompt=prompt, bos_token="", eos_token="</s>"
    )
    return str(rendered[0])


def answer(source: str, message: dict[str, Any]) -> tuple[str, str] | None:
    """The end of the prompt and the answer; None where the template cannot write it, or not behind its own prompt."""
    try:
        prompt, whole = render(source, [USER], True), render(source, [USER, message], False)
    except TEMPLATE_ERRORS:
        return None
    if not whole.startswith(prompt):
        return None
    text = whole[len(prompt) :]
    cut = min(
        (at for end in ENDS if (at := text.find(end)) >= 0 and not text.startswith("<|channel|>")), default=len(text)
    )
    if text.startswith("<|channel|>"):
        cut = max((text.rfind(end) for end in ENDS), default=len(text))
    return prompt[-60:], text[:cut]


def complete(message: dict[str, Any], written: str) -> bool:
    """Whether all of the message is there, and nothing else: some templates drop parts, or print None."""
    parts = [message["content"], message.get("reasoning_content")]
    n_calls = len(message.get("tool_calls", ()))
    n_written = written.replace("\\u00f6", "ö").count("Köln")
    printed = message["content"] is None and ("None" in written or "null" in written)
    return all(part in written for part in parts if part) and n_written == n_calls and not printed


def main() -> None:
    found = []
    for file in sorted(Path(sys.argv[1]).glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        texts = [text for text in TEXTS if text in source]
        for title, message in ANSWERS.items():
            written = None if file.stem in LEFT_OUT else answer(source, message)
            if written is not None and complete(message, written[1]):
                prompt, text = written
                golden = {"template": file.stem, "source": texts, "message": title, "prompt": prompt, "answer": text}
                found.append(golden)
    data = {"messages": ANSWERS, "tool": TOOL, "goldens": found}
    OUT.write_text(json.dumps(data, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
