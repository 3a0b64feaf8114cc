"""``gumba run``: answer one message, or continue a text."""

from __future__ import annotations

import argparse
import secrets
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gumba.cli.open_model import compile_seconds, open_llm
from gumba.cli.options import Commands, add_generation, add_model, add_template, command, sampling_params, template_args
from gumba.cli.reasoning import AnswerWriter, add_reasoning, parser_mode
from gumba.cli.terminal import argument_text, count, note, print_json, read_text, show
from gumba.errors import RequestError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gumba.llm.llm import LLM
    from gumba.outputs import StreamOutput, Timings

_EXAMPLES = """
gumba run -p "The capital of France is" -n 16
gumba run model.gguf "Why is the sky blue?"
gumba run model.gguf "Once upon a time" --no-chat --temp 0
git diff | gumba run model.gguf "Write a commit message for this change:"
"""


def add_parser(commands: Commands) -> None:
    """Add ``run`` to the command line."""
    parser = command(commands, "run", run, "answer a message, or continue a text", _EXAMPLES)
    add_model(parser, optional=True)
    parser.add_argument(
        "texts",
        metavar="PROMPT",
        nargs="*",
        default=[],
        help="the message to answer (the text to continue if the model has no chat template); text from stdin is appended on a "
        "new line, or continued if there is no PROMPT",
    )
    parser.add_argument(
        "-p", "--prompt", metavar="TEXT", help="a text to continue, without reading stdin; - reads it from stdin"
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="read the text to continue from a file; - is stdin")
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="answer the prompt as a chat message, or continue it (default: answer PROMPT if the model has a chat template, "
        "continue other texts)",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message, for prompts that are answered")
    add_generation(parser, "maximum number of tokens to generate (default: until the end of text or context)")
    add_template(parser)
    add_reasoning(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object with text, token ids and timings")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print timings and notices on stderr")


@dataclass
class Answer:
    """The answer as it is generated."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    timings: Timings | None = None

    def watch(self, stream: Iterator[StreamOutput]) -> Iterator[StreamOutput]:
        """Yield each step of ``stream`` and collect it; timings exclude the compilation of kernels meanwhile."""
        began = first = compile_seconds()
        for step in stream:
            if not self.token_ids:
                first = compile_seconds()
            if step.token_id is not None:
                self.token_ids.append(step.token_id)
            self.text += step.text
            self.reasoning += step.reasoning
            self.finish_reason = step.finish_reason
            if step.timings is not None:
                self.timings = replace(
                    step.timings,
                    prompt_s=max(0.0, step.timings.prompt_s - (first - began)),
                    decode_s=max(0.0, step.timings.decode_s - (compile_seconds() - first)),
                )
            yield step

    def summary(self) -> str:
        """Tokens and speed on one line; empty for a generation that did not end."""
        t = self.timings
        if t is None:
            return ""
        return (
            f"prompt {count(t.prompt_tokens, 'token')}, {t.prompt_tokens_per_s:.1f}/s | "
            f"decode {count(t.generated_tokens, 'token')}"
            + (f", {t.decode_tokens_per_s:.1f}/s" if t.generated_tokens > 1 else "")
        )

    def as_json(self, prompt: str, seed: int | None, load_s: float) -> dict[str, object]:
        """The object that ``--json`` prints."""
        t = self.timings
        timings = {"compile_s": round(compile_seconds(), 4), "load_s": round(load_s, 4)}
        if t is not None:
            timings |= {
                "prompt_s": round(t.prompt_s, 4),
                "decode_s": round(t.decode_s, 4),
                "prompt_tokens_per_s": round(t.prompt_tokens_per_s, 2),
                "decode_tokens_per_s": round(t.decode_tokens_per_s, 2),
            }
        return {
            "prompt": prompt,
            "seed": seed,
            "text": self.text,
            **({"reasoning": self.reasoning} if self.reasoning else {}),
            "finish_reason": self.finish_reason,
            "prompt_tokens": 0 if t is None else t.prompt_tokens,
            "completion_tokens": len(self.token_ids),
            "token_ids": self.token_ids,
            "timings": timings,
        }


def run(args: argparse.Namespace) -> int:
    """Run ``gumba run``."""
    prompt = _prompt(args)
    params, variables = sampling_params(args), template_args(args)
    if (
        params.seed is None and params.temperature > 0
    ):  # chosen here, so that --json can report the seed that reproduces the text
        params = replace(params, seed=secrets.randbits(32))
    llm, load_s = open_llm(args)
    answer, writer = Answer(), AnswerWriter(args.reasoning)
    with llm:
        is_message = _is_message(args, llm)
        if is_message:
            stream = llm.chat_stream(
                _messages(args, prompt), params, template_args=variables, reasoning=parser_mode(args.reasoning)
            )
        else:
            stream = llm.stream(prompt, params)
        for step in answer.watch(stream):
            if not args.json:
                writer.write(step)
    if args.json:
        print_json(answer.as_json(prompt, params.seed, load_s))
    elif not answer.text.endswith("\n"):
        show("\n")
    if not args.quiet:
        if not answer.text and not is_message and _has_template(llm):
            note("gumba: the model ended the text at once; --chat answers the prompt as a message")
        compiled = f"compile {compile_seconds():.2f} s | " if compile_seconds() else ""
        note(f"gumba: {compiled}load {load_s:.2f} s | {answer.summary()}")
    return 0


def _is_message(args: argparse.Namespace, llm: LLM) -> bool:
    """Whether to answer the prompt as a message: by ``--chat``, else if it is a PROMPT and the model has a chat template."""
    if args.chat is not None:
        return bool(args.chat)
    if not args.texts:
        return False
    return _has_chat_options(args) or _has_template(llm)


def _has_template(llm: LLM) -> bool:
    """Whether the model's file has a chat template, or implies one."""
    if any(key.startswith("tokenizer.chat_template") for key in llm.metadata):
        return True
    try:
        return llm.chat_template is not None
    except TemplateError:  # neither the file's vocabulary nor its architecture implies one
        return False


def _has_chat_options(args: argparse.Namespace) -> bool:
    return args.system is not None or args.chat_template is not None or bool(template_args(args))


def _messages(args: argparse.Namespace, prompt: str) -> list[dict[str, str]]:
    system = [] if args.system is None else [{"role": "system", "content": argument_text(args.system)}]
    return [*system, {"role": "user", "content": prompt}]


def _prompt(args: argparse.Namespace) -> str:
    """The prompt: PROMPT, ``-p``, ``-f`` or stdin."""
    if (args.prompt is not None) + (args.file is not None) + bool(args.texts) > 1:
        raise RequestError("several prompts: give one, as PROMPT after MODEL, with -p or with -f")
    if not args.chat and _has_chat_options(args) and (args.chat is not None or not args.texts):
        needs = "--system needs" if args.system is not None else "--chat-template and --template-arg need"
        raise RequestError(f"{needs} --chat, or a PROMPT after MODEL (without --no-chat)")
    if args.file is not None:
        text = _without_newline(read_text(args.file))
    elif args.prompt == "-":
        text = _without_newline(read_text("-"))
    elif args.prompt is None:
        piped = "" if sys.stdin.isatty() else _without_newline(read_text("-"))
        written = " ".join(argument_text(text) for text in args.texts)
        if not piped and not args.texts:
            missing = "" if args.model is None or " " not in args.model else f" ({args.model!r:.80} was read as MODEL)"
            raise RequestError(
                f"no prompt{missing}: expected PROMPT after MODEL, -p TEXT, -f FILE or text on stdin (to chat: gumba chat)"
            )
        text = f"{written}\n{piped}" if written and piped else written or piped
    else:
        text = argument_text(args.prompt)
    if not text:
        raise RequestError("the prompt is empty")
    return text


def _without_newline(text: str) -> str:
    """``text`` without one line break at its end, which editors and shells add (llama.cpp removes it, too)."""
    return text[:-1].removesuffix("\r") if text.endswith("\n") else text
