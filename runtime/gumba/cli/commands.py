"""The commands of ``gumba``, and their exit codes.

=================================== ==================================== =========
outcome                             stderr                               exit code
=================================== ==================================== =========
success                                                                  0
some of many failed (``batch``)     a summary                            1
bad input, any ``GumbaError``       one line, ``gumba: error: …``        2
Ctrl-C (see ``gumba.cli.main``)                                          130
stdout was closed by its reader                                          141
=================================== ==================================== =========
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from gumba._version import __version__
from gumba.cli import (
    batch,
    bench,
    chat,
    compile,
    convert,
    embed,
    export,
    inspect,
    models,
    perplexity,
    pull,
    run,
    tokenize,
)
from gumba.cli.aliases import hint_for_command, names_of, translate
from gumba.cli.options import Formatter, did_you_mean, with_option_names
from gumba.cli.terminal import printable
from gumba.errors import GumbaError, ResourceError
from gumba.memory import address_space_left, lacks_memory, no_memory, shortage

COMMANDS = (run, chat, batch, embed, pull, models, inspect, tokenize, convert, export, bench, perplexity, compile)

_EXAMPLES = """\
examples:
  gumba run -p "The capital of France is" -n 16
  gumba chat
  gumba convert ./Llama-3.2-1B -o llama.gguf --type q4_0
  gumba run llama.gguf -p "Once upon a time"

MODEL is a GGUF file, a Hugging Face folder, a model on a hub (owner/name; checkpoints are converted once, then cached),
or a known name (see gumba pull --list). Without MODEL, run and chat use SmolLM2-135M-Instruct.
"""


#: Address space that importing NumPy takes, with a margin. (Measured: OpenBLAS aborts the process below 100 MB.)
_LIBRARIES_BYTES = 160 << 20


#: argparse's message for a value that is not one of the choices.
_CHOICE = re.compile(r"invalid choice: '(?P<given>.*)' \(choose from (?P<choices>.*)\)", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        wrong = _CHOICE.search(message)
        if wrong is not None:
            here = hint_for_command(wrong["given"]) if message.startswith("argument COMMAND") else ""
            message += here or did_you_mean(wrong["given"], re.split(r"', '|, ", wrong["choices"].strip("'")))
        _complain(f"{message} (see {self.prog} --help)")
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="gumba",
        description="Convert Hugging Face language models to GGUF files and run them on this machine's CPU.",
        epilog=_EXAMPLES,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gumba {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def execute(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own when None) and return the exit code."""
    writable = sys.stdout is not None
    _open_streams()
    logging.basicConfig(format="gumba: %(message)s", level=logging.WARNING)
    if not writable:
        _complain("stdout is closed; to discard the output, use > /dev/null")
        return 2
    try:
        args = _parse(argv)
        _check_memory()
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except GumbaError as error:
        lacking = not isinstance(error, ResourceError) and lacks_memory(error)
        _complain(no_memory() if lacking else with_option_names(error))
    except BrokenPipeError:
        # stdout is closed: let the interpreter flush to the null device at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ImportError, MemoryError, RuntimeError, SystemError) as error:
        if lacks_memory(error):
            _complain(no_memory())
            return 2
        if not isinstance(error, OSError):
            raise
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        _complain(f"{name}{error.strerror or error}")
    return 2


def _check_memory() -> None:
    """Raise ResourceError if too little memory is left to load the libraries: some of them abort the process in that case."""
    left = address_space_left()
    if left is not None and left < _LIBRARIES_BYTES:
        raise ResourceError(shortage("the libraries of gumba need", _LIBRARIES_BYTES))


def _open_streams() -> None:
    """Make stdin, stdout and stderr UTF-8. Closed ones (``<&-``) are opened on the null device, in the order of their
    descriptors, so that no other file gets one of these descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``argv``. Unknown options are reported first, with a reference to the help of their command."""
    parser = build_parser()
    argv = translate(sys.argv[1:] if argv is None else argv, _commands(parser))
    args, unknown = parser.parse_known_args(argv)
    command = getattr(args, "parser", parser)
    if unknown and hasattr(args, "texts"):
        args.texts, unknown = _texts_after_options(args.texts, unknown)
    if unknown:
        hint = did_you_mean(next((word for word in unknown if word.startswith("-")), ""), names_of(command))
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if command is parser:
        parser.error("expected a COMMAND")
    return args


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    [commands] = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(commands)


def _texts_after_options(texts: list[str], unknown: list[str]) -> tuple[list[str], list[str]]:
    """Move the arguments of ``unknown`` that follow an option to ``texts``; return both.

    argparse accepts TEXTs directly after MODEL only. An argument that begins with a dash is an option unless it contains a
    space (argparse's rule) or follows ``--``.
    """
    if "--" in unknown:
        end = unknown.index("--")
        unknown, rest = unknown[:end], unknown[end + 1 :]
    else:
        rest = []
    if any(word.startswith("-") and word != "-" and " " not in word for word in unknown):
        return texts, unknown
    return [*texts, *unknown, *rest], []


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"gumba: error: {printable(message)}", file=sys.stderr)
