"""``gumba chat``: chat with a model."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gumba.cli.chat_input import Lines, open_history
from gumba.cli.interrupts import Interruptible
from gumba.cli.open_model import open_llm
from gumba.cli.options import (
    ADVANCED_SAMPLING,
    Commands,
    add_generation,
    add_model,
    add_template,
    command,
    sampling_params,
    template_args,
    with_option_names,
)
from gumba.cli.probabilities import DEFAULT_ALTERNATIVES, MAX_ALTERNATIVES, View
from gumba.cli.reasoning import MODES, AnswerWriter, add_reasoning, parser_mode
from gumba.cli.run import Answer
from gumba.cli.terminal import argument_text, count, note, printable, show, without_controls
from gumba.errors import GumbaError, RequestError
from gumba.progress import size
from gumba.sampling_params import SamplingParams
from gumba.store import state_folder

if TYPE_CHECKING:
    from gumba.llm.conversation import Conversation
    from gumba.llm.llm import LLM
    from gumba.outputs import StreamOutput

_EXAMPLES = """
gumba chat
gumba chat model.gguf --system "You answer in one sentence." --temp 0.3
gumba chat qwen3.gguf --template-arg enable_thinking=false
echo "Name three rivers." | gumba chat
"""

_HELP = """\
/help              show this list
/system TEXT       set the system message (without TEXT: show it) and start over
/regen             answer the last message again
/undo              remove the last message and its answer
/clear             forget the conversation (the system message stays)
/history           show the messages
/save FILE         write the conversation to a file; /load FILE continues it
/fork [NAME]       continue in a copy; /forks lists the copies, /switch NAME selects one ("main" is the first)
/set NAME VALUE    change a setting (temperature, top_k, seed, max_tokens ...; without VALUE: show it). VALUE is a number,
                   true, false, none, default, a text, a list (top_k,temperature or ["a", "b"]) or an object ({"5": -2})
/reasoning MODE    show or hide the model's reasoning, or raw: leave it in the answer
/probs [N]         show the probability of each token and of N alternatives (default: 3); /probs off: stop
/show              show the settings and the model
/stats             show tokens and speed of the last answer
/exit              leave (also Ctrl-D); Ctrl-C stops an answer
A line that ends in \\ continues on the next one, as do lines between \"\"\" and \"\"\". A line that begins with // is a
message that begins with /."""

#: Settings that a chat does not support, or sets in another way.
_REFUSED = ("n", "best_of", "logits_processors", "logprobs", "prompt_logprobs")
#: Names of settings as command-line options, and in other programs.
_ALIASES = {
    "temp": "temperature",
    "n": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    **{option.lstrip("-").replace("-", "_"): field for option, field, *_ in ADVANCED_SAMPLING},
}
#: Settings that are lists of names or numbers, which the user may separate by commas.
_LISTS = ("samplers", "allowed_token_ids", "stop_token_ids")
_MAIN = "main"


def add_parser(commands: Commands) -> None:
    """Add ``chat`` to the command line."""
    parser = command(commands, "chat", chat, "chat with a model", _EXAMPLES)
    add_model(parser, optional=True)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_generation(parser, "maximum number of tokens per answer (default: no limit)")
    add_template(parser)
    add_reasoning(parser)
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="do not keep the input history (arrow keys) between runs",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print no notices on stderr before the first message"
    )


def chat(args: argparse.Namespace) -> int:
    """Run ``gumba chat``. With piped stdin each line is a message, and stdout contains only the answers."""
    params, variables = sampling_params(args), template_args(args)
    system = None if args.system is None else argument_text(args.system)
    llm, _ = open_llm(args)
    with llm:
        interactive = sys.stdin.isatty()
        talk = Talk(
            llm,
            params,
            system,
            variables=variables,
            reasoning=args.reasoning,
            forgetful=not interactive,
            confirming=interactive,
        )
        history = None
        if interactive:
            # Import now what the first message needs: Ctrl-C during an import leaves a partial module.
            with contextlib.suppress(GumbaError):
                llm.chat_template.render([{"role": "user", "content": ""}])
            history = open_history(None if args.no_history else _history_file())
            if not args.quiet:
                note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.")
        lines = Lines(interactive, None if history is None else history.keep)
        with Interruptible():
            while True:
                try:
                    line = lines.read()
                    if line is None or not talk.take(line[0], is_message=line[1]):
                        break
                except GumbaError as error:
                    if not interactive:
                        raise
                    note(f"gumba: {printable(with_option_names(error))}")
                except KeyboardInterrupt:
                    if not interactive:
                        raise
                    lines.forget()
                    note(" [stopped]")
    return 0


def _history_file() -> Path | None:
    """The file of the input history; None for a user without a home folder."""
    with contextlib.suppress(GumbaError):
        return state_folder() / "chat_history"
    return None


class Talk:
    """The conversations of a chat, one of which is current; executes the user's commands and answers messages.

    Args:
        variables: Of the chat template.
        reasoning: A mode of ``--reasoning``; None: the default.
        forgetful: If the context is full, forget the oldest messages instead of refusing a new one.
        confirming: Print a line after commands that print nothing otherwise.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        system: str | None = None,
        *,
        variables: dict[str, object] | None = None,
        reasoning: str | None = None,
        forgetful: bool = False,
        confirming: bool = False,
    ) -> None:
        self._llm = llm
        self._confirming = confirming
        self._forgetful = forgetful
        self._last: Answer | None = None
        self._top: int | None = None
        self._name = _MAIN
        self._reasoning = reasoning
        first = llm.conversation(system=system, params=params, template_args=variables, forgetful=forgetful)
        self._forks = {_MAIN: first}
        self._commands: dict[str, Callable[[str], bool | None]] = {
            "/help": lambda _: note(_HELP),
            "/?": lambda _: note(_HELP),
            "/system": self._set_system,
            "/regen": lambda _: self._regenerate(),
            "/undo": lambda _: self._undo(),
            "/clear": lambda _: self._clear(),
            "/history": lambda _: self._history(),
            "/save": self._save,
            "/load": self._load,
            "/fork": self._fork,
            "/forks": lambda _: self._list_forks(),
            "/switch": self._switch,
            "/set": self._set,
            "/temp": lambda text: self._set(f"temperature {text}"),
            "/seed": lambda text: self._set(f"seed {text}"),
            "/reasoning": self._set_reasoning,
            "/probs": self._set_probabilities,
            "/show": lambda _: self._show(),
            "/stats": lambda _: self._stats(),
            "/exit": lambda _: False,
            "/quit": lambda _: False,
            "/bye": lambda _: False,
        }

    @property
    def conversation(self) -> Conversation:
        """The current conversation."""
        return self._forks[self._name]

    def take(self, line: str, *, is_message: bool = False) -> bool:
        """Answer ``line``, or execute it if it is a command; False if the user leaves."""
        name, *rest = line.strip().split(maxsplit=1)
        if name.startswith("//") and not is_message:
            line = line.lstrip()[1:]
        elif name.startswith("/") and not is_message:
            execute = self._commands.get(name.lower())
            if execute is None:
                note(f"no command {printable(name)}; /help lists the commands")
                return True
            return execute("".join(rest).strip()) is not False
        self._show_answer(lambda: self.conversation.stream(line))
        return True

    def _show_answer(self, start: Callable[[], Iterator[StreamOutput]]) -> None:
        """Show an answer as it is generated. Ctrl-C stops it; the text so far is kept."""
        conversation, answer = self.conversation, Answer()
        forgotten = conversation.forgotten
        conversation.params = replace(conversation.params, logprobs=self._top)
        conversation.reasoning = parser_mode(self._reasoning)
        view, writer = View(self._llm.tokenizer), AnswerWriter(self._reasoning)
        stream: Iterator[StreamOutput] = iter(())
        try:
            stream = start()
            for step in answer.watch(view.tap(stream)):
                writer.write(step, view.style)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            if isinstance(stream, Generator):
                stream.close()
            note(" [stopped]")
        show("\n")
        view.table()
        self._last = answer
        if conversation.forgotten > forgotten:
            note(f"gumba: the context is full: {count(conversation.forgotten - forgotten, 'old message')} forgotten")
        max_tokens = conversation.params.max_tokens
        if answer.finish_reason == "length":
            if max_tokens is not None and len(answer.token_ids) >= max_tokens:
                note(f"[cut off after {count(max_tokens, 'token')}: max_tokens (-n)]")
            else:
                model = self._llm.model
                more = ", -c N sets a larger one" if model.n_ctx < model.config.max_ctx else ""
                note(f"[cut off: the context of {model.n_ctx} tokens is full; /clear forgets the conversation{more}]")

    def _set_system(self, text: str) -> None:
        if not text:
            system = self.conversation.system
            note(without_controls(system) if system else "no system message")
            return
        self.conversation.system = text
        self._clear("the system message is set; ")

    def _clear(self, before: str = "") -> None:
        forgotten = len(self.conversation.messages) - (self.conversation.system is not None)
        self.conversation.clear()
        self._confirm(f"{before}{count(forgotten, 'message')} forgotten")

    def _undo(self) -> None:
        self._confirm(f"removed: {_quoted(self.conversation.undo()['content'])}")

    def _confirm(self, text: str) -> None:
        if self._confirming:
            note(text)

    def _regenerate(self) -> None:
        messages, params = self.conversation.messages, self.conversation.params
        if params.temperature == 0 and messages and messages[-1]["role"] == "assistant":
            note("[at temperature 0 the answer will be the same]")
        self._show_answer(self.conversation.regenerate_stream)

    def _history(self) -> None:
        for message in self.conversation.messages:
            note(f"{message['role']}: {without_controls(message['content'])}")
        if not self.conversation.messages:
            note("no message yet")

    def _save(self, name: str) -> None:
        from gumba.llm.session_file import MAGIC

        path = _path("/save", name)
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise RequestError(f"{path} exists and is not a saved conversation: it is not overwritten")
        self.conversation.save(path)
        note(f"saved: {count(len(self.conversation.messages), 'message')}, {size(path.stat().st_size)}")

    def _load(self, name: str) -> None:
        from gumba.llm.conversation import Conversation

        conversation = Conversation.load(self._llm, _path("/load", name))
        conversation.forgetful = self._forgetful
        self._forks[self._name] = conversation
        self._last = None
        note(f"loaded: {count(len(conversation.messages), 'message')}; /history shows them")

    def _fork(self, name: str) -> None:
        if not name:
            name = next(f"fork{i}" for i in itertools.count(1) if f"fork{i}" not in self._forks)
        if name in self._forks:
            raise RequestError(f"a conversation {_quoted(name)} exists already")
        self._forks[name] = self.conversation.fork()
        note(f"now in {_quoted(name)}; /switch {printable(self._name)} goes back")
        self._name = name

    def _list_forks(self) -> None:
        for name, conversation in self._forks.items():
            mark = "*" if name == self._name else " "
            note(f"{mark} {printable(name)}: {count(len(conversation.messages), 'message')}")

    def _switch(self, name: str) -> None:
        if name not in self._forks:
            raise RequestError(f"no conversation {_quoted(name)}; /forks lists them")
        self._name, self._last = name, None
        note(f"now in {_quoted(name)}: {count(len(self.conversation.messages), 'message')}")

    def _set(self, text: str) -> None:
        from gumba.llm.conversation import params_of, settings_of

        name, _, value = text.partition(" ")
        if name == "parameter":  # ollama's form
            name, _, value = value.strip().partition(" ")
        if name == "system":
            self._set_system(value.strip())
            return
        typed = name
        name = name.lstrip("-").replace("-", "_")
        name = _ALIASES.get(name, name)
        settings = settings_of(self.conversation.params)
        if name not in settings or name in _REFUSED:
            raise RequestError(
                f"no setting {_quoted(typed)}: expected one of {', '.join(sorted({*settings} - {*_REFUSED}))}"
            )
        value = value.strip()
        if not value:
            note(f"{name} {_json(settings[name])}")
            return
        settings[name] = settings_of(SamplingParams())[name] if value == "default" else _value(name, value)
        self.conversation.params = params_of(settings)
        self._confirm(f"{name} {_json(settings_of(self.conversation.params)[name])}")

    def _set_probabilities(self, text: str) -> None:
        top = None if text.lower() == "off" else DEFAULT_ALTERNATIVES
        if text.lower() not in ("", "on", "off"):
            if not text.isascii() or not text.isdigit() or int(text[:9]) > MAX_ALTERNATIVES:
                raise RequestError(
                    f"/probs: expected a number from 0 to {MAX_ALTERNATIVES}, on or off, found {_quoted(text)}"
                )
            top = int(text)
        self._top = None if not text and self._top is not None else top
        note(
            "token probabilities: off"
            if self._top is None
            else f"token probabilities: on, with the {self._top} likeliest"
        )

    def _set_reasoning(self, text: str) -> None:
        if text not in MODES:
            raise RequestError(f"/reasoning: expected {', '.join(MODES)}, found {_quoted(text)}")
        self._reasoning = text
        self._confirm(f"reasoning: {text}")

    def _show(self) -> None:
        from gumba.llm.conversation import settings_of

        defaults, settings = settings_of(SamplingParams()), settings_of(self.conversation.params)
        note(
            f"model {printable(str(self._llm.metadata.get('general.name', '')))}, context {self._llm.model.n_ctx} tokens"
        )
        for name, value in settings.items():
            if name in _REFUSED:  # those of /probs
                continue
            if value != defaults[name] or name in ("temperature", "top_k", "top_p", "min_p", "seed", "max_tokens"):
                note(f"{name} {_json(value)}")

    def _stats(self) -> None:
        note("no answer yet" if self._last is None else self._last.summary() or "the last answer was stopped")


def _path(command: str, name: str) -> Path:
    """The file named in a command."""
    if not name:
        raise RequestError(f"{command}: expected a file name")
    try:
        return Path(name).expanduser()
    except RuntimeError:  # a ~ without a home
        return Path(name)


def _value(name: str, text: str) -> object:
    """Parse the value of a setting: JSON, a plain text, or items separated by commas."""
    if text.lower() in ("none", "off"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if name in _LISTS and isinstance(value, str | int):
        parts = [part.strip() for part in text.split(",")]
        return [int(part) if part.isascii() and part.isdigit() and len(part) < 20 else part for part in parts]
    return value


def _json(value: object) -> str:
    return "none" if value is None else printable(json.dumps(value, ensure_ascii=False))


def _quoted(name: str) -> str:
    """A name that the user typed, for a message."""
    return f'"{printable(name[:60])}"'
