"""Options that several commands share, and how their values are checked."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gumba.errors import RequestError

if TYPE_CHECKING:
    from gumba.params import SamplingParams

MODEL_HELP = "a GGUF file, a Hugging Face folder or hub id (converted once and kept), or a known name"

#: ``gumba.models.MAX_THREADS``, which takes long to import.
MOST_THREADS = 512
#: The names of ``gumba.kernels.pages.page_formats``, which take as long.
KV_TYPES = ("bf16", "f16", "f32", "q8_0")

#: What the options of the library's functions are called here, and what is said about them.
_OPTIONS = {
    "load the model with a larger n_ctx": "ask for more context with -c N",
    "n_ctx": "-c/--ctx",
    "n_threads": "-t/--threads",
    "max_tokens": "-n",
    "max_batch_tokens": "--prompt",
    "messages:": "conversation:",
}
_NAMES = re.compile("|".join(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])" for name in _OPTIONS))

#: As ``add_subparsers`` returns it; argparse keeps the class to itself.
Commands = Any


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help whose examples keep their lines, with room for the names of options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], int], help: str, examples: str
) -> Any:
    """Add the command ``name``, carried out by ``function``, and return its parser."""
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=function, parser=parser)
    return parser


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number of at least ``low``, at most ``high``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text} is out of range: {_range(low, high)}")
        return value

    return parse


def real(low: float, high: float | None = None) -> Callable[[str], float]:
    """A finite number of at least ``low``, at most ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= (1e30 if high is None else high):  # NaN fails too
            raise argparse.ArgumentTypeError(f"{text} is out of range: {_range(low, high)}")
        return value

    return parse


def _range(low: float, high: float | None) -> str:
    return f"it must be at least {low}" if high is None else f"it must be from {low} to {high}"


def in_options(error: Exception) -> str:
    """The message of ``error``, with the names that options have at the command line."""
    message = str(error)
    return _NAMES.sub(lambda found: _OPTIONS[found[0]], message) if isinstance(error, RequestError) else message


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The positional MODEL."""
    if optional:
        parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP + " (default: SmolLM2-135M-Instruct)")
    else:
        parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_length(parser: argparse.ArgumentParser, help: str) -> None:
    """``-n``, and without a word in the help what llama.cpp calls it."""
    kind = whole(1, 2**31 - 1)
    parser.add_argument("-n", metavar="N", type=kind, help=help)
    parser.add_argument(
        "--n-predict", dest="n", metavar="N", type=kind, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=whole(1, MOST_THREADS),
        help="threads that compute (default: the physical cores that this process may use)",
    )


def add_context(parser: argparse.ArgumentParser) -> None:
    """``--ctx``, and without a word in the help what llama.cpp calls it."""
    kind = whole(1, 1 << 24)
    parser.add_argument(
        "--ctx-size", dest="ctx", metavar="N", type=kind, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument(
        "-c",
        "--ctx",
        metavar="N",
        type=kind,
        help="tokens of context (default: what the model was made for, but at most 4096)",
    )
    add_kv_type(parser)


def add_kv_type(parser: argparse.ArgumentParser) -> None:
    """``--kv-type``: None for the processor's best."""
    parser.add_argument(
        "--kv-type",
        choices=KV_TYPES,
        help="how the KV cache holds numbers; q8_0 takes half the memory (default: bf16 on processors that multiply it, "
        "else f16)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen; options that are not given keep the defaults of ``SamplingParams``."""
    group = parser.add_argument_group("choosing the next token")
    group.add_argument(
        "--temp", metavar="T", type=real(0, 100), help="temperature; 0 takes the likeliest (default 0.8)"
    )
    group.add_argument(
        "--top-k", metavar="K", type=whole(0, 2**31 - 1), help="of the K likeliest only; 0: of all (default 40)"
    )
    group.add_argument("--top-p", metavar="P", type=real(0, 1), help="of the likeliest that sum to P (default 0.95)")
    group.add_argument(
        "--min-p", metavar="P", type=real(0, 1), help="none below P times the likeliest's probability (default 0.05)"
    )
    group.add_argument(
        "--repeat-penalty",
        metavar="R",
        type=real(0.01, 100),
        help="weigh down recent tokens; 1: not at all (default 1)",
    )
    group.add_argument("--seed", metavar="S", type=whole(0, 2**64 - 1), help="same seed, same text (default: random)")
    group.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before TEXT (may be given several times)"
    )


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The ``SamplingParams`` that the options say."""
    from gumba.params import SamplingParams

    given = {
        "max_tokens": args.n,
        "temperature": args.temp,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repeat_penalty,
        "seed": args.seed,
        "stop": args.stop or None,
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})
