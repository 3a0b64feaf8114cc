"""``gumba chat``: talk with a model."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from gumba.cli.engine import open_llm
from gumba.cli.options import (
    Commands,
    add_context,
    add_model,
    add_sampling,
    add_threads,
    command,
    sampling_params,
    whole,
)
from gumba.cli.run import Answer
from gumba.cli.text import argument_text, note, printable, show
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
A line that ends in \\ goes on in the next one."""


def add_parser(commands: Commands) -> None:
    """Add ``chat`` to the command line."""
    parser = command(commands, "chat", chat, "talk with a model", _EXAMPLES)
    add_model(parser, optional=True)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "-n", metavar="N", type=whole(1, 2**31 - 1), help="tokens of an answer at most (default: as it comes)"
    )
    add_context(parser)
    add_threads(parser)
    add_sampling(parser)


def chat(args: argparse.Namespace) -> int:
    """Carry out ``gumba chat``. With piped stdin each line is a message, and stdout holds the answers alone."""
    params = sampling_params(args)
    system = None if args.system is None else argument_text(args.system)
    llm, _ = open_llm(args)
    with llm:
        conversation = Conversation(llm, params, system)
        interactive = sys.stdin.isatty()
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (line editing in input())
            note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.")
        for line in _lines(interactive):
            try:
                if not conversation.take(line):
                    break
            except GumbaError as error:
                if not interactive:
                    raise
                note(f"gumba: {printable(str(error))}")
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
    """The messages so far, and what a line from the user does to them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None = None) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._last: Answer | None = None
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
        if name.startswith("/"):
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

    def _answer(self) -> None:
        """Stream an answer to the last message and keep it, all of it or what had come when Ctrl-C was pressed.

        A message that cannot be answered at all (too long for the context, say) is taken back.
        """
        answer = Answer()
        stream: Iterator[StreamOutput] = iter(())
        try:
            stream = self._llm.chat_stream(self.messages, self._params)
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
            note("[cut off: no tokens left for this answer; /clear makes room in the context]")
        self.messages.append({"role": "assistant", "content": answer.text})
        self._last = answer

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
        self._answer()

    def _stats(self) -> None:
        note("no answer yet" if self._last is None else self._last.summary() or "the last answer was stopped")
