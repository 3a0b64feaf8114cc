"""``gumba chat``: talk with a model."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from gumba.cli.engine import open_llm
from gumba.cli.options import (
    Commands,
    add_context,
    add_length,
    add_model,
    add_sampling,
    add_threads,
    command,
    in_options,
    sampling_params,
)
from gumba.cli.run import Answer
from gumba.cli.text import argument_text, count, note, printable, show
from gumba.errors import GumbaError, RequestError

if TYPE_CHECKING:
    from gumba.llm import LLM
    from gumba.outputs import StreamOutput
    from gumba.params import SamplingParams

_EXAMPLES = """
gumba chat
gumba chat model.gguf --system "You answer in one sentence." --temp 0.3
echo "Name three rivers." | gumba chat
"""

_HELP = """\
/help          this list
/system TEXT   set the system message (without TEXT: show it) and start afresh
/regen         answer the last message once more
/undo          take the last message and its answer back
/clear         forget the conversation (the system message stays)
/stats         tokens and speed of the last answer
/exit          leave (so does Ctrl-D); Ctrl-C stops an answer
A line that ends in \\ goes on in the next one; one that begins with // is sent, beginning with /."""


def add_parser(commands: Commands) -> None:
    """Add ``chat`` to the command line."""
    parser = command(commands, "chat", chat, "talk with a model", _EXAMPLES)
    add_model(parser, optional=True)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_length(parser, "tokens of an answer at most (default: as it comes)")
    add_context(parser)
    add_threads(parser)
    add_sampling(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr before the first message")


def chat(args: argparse.Namespace) -> int:
    """Carry out ``gumba chat``. With piped stdin each line is a message, and stdout holds the answers alone."""
    params = sampling_params(args)
    system = None if args.system is None else argument_text(args.system)
    llm, _ = open_llm(args)
    with llm:
        interactive = sys.stdin.isatty()
        conversation = Conversation(llm, params, system, forgetful=not interactive)
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (line editing in input())
            if not args.quiet:
                note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.")
        for line in _lines(interactive):
            try:
                if not conversation.take(line):
                    break
            except GumbaError as error:
                if not interactive:
                    raise
                note(f"gumba: {printable(in_options(error))}")
    return 0


def _lines(interactive: bool) -> Iterator[str]:
    """The user's messages; a backslash at the end of a line joins the next one to it."""
    held = ""
    while True:
        try:
            line = input("... " if held else "> ") if interactive else sys.stdin.readline()
        except EOFError:
            note()
            line = ""
            interactive = False
        except KeyboardInterrupt:
            if not interactive:
                raise
            note()
            held = ""
            continue
        if not interactive and not line:
            if held.strip():
                yield held
            return
        line = line.rstrip("\r\n")
        if line.endswith("\\"):
            held += line[:-1] + "\n"
            continue
        text, held = held + line, ""
        if text.strip():
            yield text


class Conversation:
    """The messages so far, and what a line from the user does to them.

    ``forgetful``: where the context is full, forget the oldest messages instead of refusing a new one.
    """

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None = None, *, forgetful: bool = False) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._forgetful = forgetful
        self._last: Answer | None = None
        self._attempt = 0
        self.messages: list[dict[str, str]] = []
        self.clear()
        self._commands: dict[str, Callable[[str], bool | None]] = {
            "/help": lambda _: note(_HELP),
            "/?": lambda _: note(_HELP),
            "/system": self._set_system,
            "/regen": lambda _: self._regenerate(),
            "/undo": lambda _: self._undo(),
            "/clear": lambda _: self.clear(),
            "/stats": lambda _: self._stats(),
            "/exit": lambda _: False,
            "/quit": lambda _: False,
            "/bye": lambda _: False,
        }

    def take(self, line: str) -> bool:
        """Answer ``line``, or obey it if it is a command; False when the user wants to leave."""
        name, _, rest = line.strip().partition(" ")
        if name.startswith("//"):
            line = line.lstrip()[1:]
        elif name.startswith("/"):
            obey = self._commands.get(name.lower())
            if obey is None:
                note(f"no command {printable(name)}; /help lists them")
                return True
            return obey(rest.strip()) is not False
        self.messages.append({"role": "user", "content": line})
        self._answer()
        return True

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def _answer(self, attempt: int = 0) -> None:
        """Stream an answer to the last message and keep it, all of it or what had come when Ctrl-C was pressed.

        A message that cannot be answered at all (too long for the context, say) is taken back. ``attempt`` counts the
        answers to the same message: each has a seed of its own.
        """
        params = self._params
        if params.seed is not None:
            params = replace(params, seed=(params.seed + attempt) % 2**64)
        answer = Answer()
        stream: Iterator[StreamOutput] = iter(())
        try:
            if self._forgetful:
                self._make_room()
            stream = self._llm.chat_stream(self.messages, params)
            for text in answer.watch(stream):
                show(text)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            if isinstance(stream, Generator):
                stream.close()
            note(" [stopped]")
        except GumbaError:
            self.messages.pop()
            raise
        show("\n")
        if answer.finish_reason == "length":
            if params.max_tokens is not None and len(answer.token_ids) >= params.max_tokens:
                note(f"[cut off after {count(params.max_tokens, 'token')}, as -n says]")
            else:
                note(
                    f"[cut off: the context of {self._llm.model.n_ctx} tokens is full; "
                    "/clear forgets the conversation, -c N asks for more]"
                )
        self.messages.append({"role": "assistant", "content": answer.text})
        self._last, self._attempt = answer, attempt

    def _make_room(self) -> None:
        """Forget the oldest messages and their answers, until a quarter of the context (or ``-n``) is free."""
        n_ctx, most = self._llm.model.n_ctx, self._params.max_tokens
        room = max(1, n_ctx // 4 if most is None else min(most, n_ctx // 4))
        first, forgotten = int(self._system is not None), 0
        while len(self.messages) > first + 1 and self._tokens() + room > n_ctx:
            del self.messages[first]
            while self.messages[first]["role"] != "user":
                del self.messages[first]
            forgotten += 1
        if forgotten:
            note(f"gumba: the context is full: {count(forgotten, 'old message')} forgotten")

    def _tokens(self) -> int:
        from gumba.text import encode_chat

        return len(encode_chat(self._llm.tokenizer, self._llm.chat_template, self.messages, add_generation_prompt=True))

    def _set_system(self, text: str) -> None:
        if not text:
            note(printable(self._system) if self._system else "no system message")
            return
        self._system = text
        self.clear()

    def _undo(self) -> None:
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            raise RequestError("there is no message yet")
        self.messages.pop()

    def _regenerate(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise RequestError("there is no answer yet")
        self.messages.pop()
        if self._params.temperature == 0:
            note("[at temperature 0 the answer will be the same]")
        self._answer(self._attempt + 1)

    def _stats(self) -> None:
        note("no answer yet" if self._last is None else self._last.summary() or "the last answer was stopped")
