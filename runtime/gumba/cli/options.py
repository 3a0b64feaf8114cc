"""Options that several commands share, and how their values are checked."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumba.errors import RequestError, ResourceError

if TYPE_CHECKING:
    from gumba.params import SamplingParams

MODEL_HELP = (
    "a GGUF file, a Hugging Face folder, a model on the hub (owner/name, owner/name:Q8_0; checkpoints are converted once), "
    "or a known name"
)

#: ``gumba.models.MAX_THREADS``, which takes long to import.
MOST_THREADS = 512
#: The names of ``gumba.kernels.pages.page_formats``, which take as long.
KV_TYPES = ("bf16", "f16", "f32", "q8_0")

#: What the options of the library's functions are called here, and what is said about them.
_OPTIONS = {
    "load the model with a larger n_ctx": "ask for more context with -c N",
    "use rerank": "use rerank of LLM, from Python",
    "use classify": "use classify of LLM, from Python",
    "n_ctx": "-c/--ctx",
    "n_threads": "-t/--threads",
    "kv_memory": "--kv-memory",
    "max_batch_tokens": "--prompt",
    "messages:": "conversation:",
    "chat_template": "--chat-template",
    "template_args": "--template-arg",
    "truncate=True": "--truncate",
}
_NAMES = re.compile("|".join(rf"(?<![\w./\"-]){re.escape(name)}(?![\w./-])" for name in _OPTIONS))

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


def size(text: str) -> int:
    """A number of bytes: digits, and perhaps K, M or G (of 1024) behind them."""
    found = re.fullmatch(r"([0-9]{1,15})([KMG]?)i?B?", text, re.IGNORECASE | re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: 512M and 2G are")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


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


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """The end of a message about ``given``: which of ``names`` it may be a misspelling of; empty if it looks like none."""
    by_key = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.partition("=")[0].lower(), by_key, 1, 0.6)
    return f"; did you mean {by_key[close[0]]}?" if close else ""


def in_options(error: Exception) -> str:
    """The message of ``error``, with the names that options have at the command line."""
    message = str(error)
    named = isinstance(error, RequestError | ResourceError)
    return _NAMES.sub(lambda found: _OPTIONS[found[0]], message) if named else message


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The positional MODEL, and ``--revision``."""
    add_revision(parser)
    if optional:
        parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP + " (default: SmolLM2-135M-Instruct)")
    else:
        parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_revision(parser: argparse.ArgumentParser) -> None:
    """``--revision``, of a model on a hub."""
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a model on a hub")


def add_length(parser: argparse.ArgumentParser, help: str) -> None:
    """``-n``."""
    parser.add_argument("-n", metavar="N", type=whole(1, 2**31 - 1), help=help)


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
    """``--ctx`` and the memory of the KV cache."""
    parser.add_argument(
        "-c",
        "--ctx",
        metavar="N",
        type=whole(1, 1 << 24),
        help="tokens of context (default: what the model was made for, but at most 4096)",
    )
    parser.add_argument(
        "--kv-memory",
        metavar="SIZE",
        type=size,
        help="memory of the KV cache, 512M or 2G say (default: four contexts, or an eighth of what is free)",
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


#: Options for those who know what they want: name, field of ``SamplingParams``, and what argparse is told.
FURTHER = (
    (
        "--repeat-last-n",
        "repetition_window",
        "N",
        whole(-1, 2**31 - 1),
        "penalties look at the last N tokens (default 64)",
    ),
    (
        "--presence-penalty",
        "presence_penalty",
        "A",
        real(-100, 100),
        "subtracted from tokens that occurred (default 0)",
    ),
    ("--frequency-penalty", "frequency_penalty", "A", real(-100, 100), "the same for each time (default 0)"),
    ("--typical", "typical_p", "P", real(0, 1), "locally typical sampling (default 1: off)"),
    (
        "--top-n-sigma",
        "top_n_sigma",
        "N",
        real(-1, 100),
        "none N standard deviations below the likeliest (default -1: off)",
    ),
    ("--xtc-probability", "xtc_probability", "P", real(0, 1), "how often the likeliest are left out (default 0)"),
    ("--xtc-threshold", "xtc_threshold", "P", real(0, 1), "which those are (default 0.1)"),
    ("--dry-multiplier", "dry_multiplier", "M", real(0, 100), "against repetitions of several tokens (default 0: off)"),
    ("--dry-base", "dry_base", "B", real(1, 100), "see there (default 1.75)"),
    ("--dry-allowed-length", "dry_allowed_length", "N", whole(0, 2**31 - 1), "see there (default 2)"),
    ("--mirostat", "mirostat", "1|2", whole(0, 2), "keep the surprise at a target (default 0: off)"),
    ("--mirostat-ent", "mirostat_tau", "T", real(0, 100), "the target (default 5)"),
    ("--mirostat-lr", "mirostat_eta", "E", real(0, 10), "how fast it is met (default 0.1)"),
    ("--keep", "n_keep", "N", whole(-1, 2**31 - 1), "first tokens that --context-shift never forgets (default 4)"),
    ("--lookup", "prompt_lookup_tokens", "N", whole(0, 1024), "guess up to N tokens from earlier text (default 0)"),
)


def add_generation(parser: argparse.ArgumentParser, length: str) -> None:
    """How long an answer may be (``length`` is the help), what computes it, and how its tokens are chosen."""
    add_length(parser, length)
    add_context(parser)
    add_threads(parser)
    add_sampling(parser)


def add_template(parser: argparse.ArgumentParser) -> None:
    """How conversations are written for the model; ``template_args`` reads what is given for the template."""
    group = parser.add_argument_group("conversations")
    group.add_argument(
        "--chat-template",
        metavar="NAME",
        help="write conversations as chatml, llama3, mistral-v3, gemma ... (or as a FILE in Jinja) instead of as the model's "
        "file says",
    )
    group.add_argument(
        "--chat-template-file", dest="chat_template", metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    group.add_argument(
        "--template-arg",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the template: enable_thinking=false, say (may be given several times)",
    )
    group.add_argument("--chat-template-kwargs", metavar="JSON", help=argparse.SUPPRESS)


def template_args(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--template-arg`` and llama.cpp's ``--chat-template-kwargs`` say. Raises RequestError."""
    found: dict[str, Any] = {}
    if args.chat_template_kwargs is not None:
        try:
            given = json.loads(args.chat_template_kwargs)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"--chat-template-kwargs: not JSON ({error!s:.200})") from None
        if not isinstance(given, dict):
            raise RequestError(f"--chat-template-kwargs: expected an object, found {args.chat_template_kwargs:.60}")
        found |= given
    for text in args.template_arg:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(f"--template-arg: expected NAME=VALUE, found {text:.60}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


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
    for name, field, metavar, kind, text in FURTHER:
        group.add_argument(name, dest=field, metavar=metavar, type=kind, help=text)
    group.add_argument(
        "--context-shift",
        action="store_true",
        default=None,
        help="where the context is full, forget old tokens and go on",
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json-schema", metavar="SCHEMA", help="answer in JSON of this schema (text, or @FILE)")
    form.add_argument("--grammar", metavar="GBNF", help="answer in this grammar (text, or @FILE)")
    group.add_argument("--seed", metavar="S", type=whole(0, 2**64 - 1), help="same seed, same text (default: random)")
    group.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before TEXT (may be given several times)"
    )


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The ``SamplingParams`` that the options say."""
    from gumba.cli.text import argument_text
    from gumba.params import SamplingParams, StructuredOutputsParams

    form = None
    if args.json_schema is not None:
        form = StructuredOutputsParams(json=_text_or_file(argument_text(args.json_schema)))
    elif args.grammar is not None:
        form = StructuredOutputsParams(grammar=_text_or_file(argument_text(args.grammar)))

    given = {
        "max_tokens": args.n,
        "temperature": args.temp,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repeat_penalty,
        "seed": args.seed,
        "stop": args.stop or None,
        "context_shift": args.context_shift,
        "structured_outputs": form,
        **{field: getattr(args, field) for _, field, *_ in FURTHER},
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _text_or_file(text: str) -> str:
    """``text``, or with an @ in front the contents of a file. Raises RequestError when that cannot be read."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"{text[1:]} cannot be read: {getattr(error, 'strerror', None) or error}") from None
