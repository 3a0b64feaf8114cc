"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from gumba.errors import RequestError, ResourceError

if TYPE_CHECKING:
    from gumba.sampling_params import SamplingParams

MODEL_HELP = (
    "a GGUF file, a Hugging Face folder, a model on a hub (owner/name, owner/name:Q8_0; checkpoints are converted once), "
    "or a known name"
)

#: ``gumba.runner.load.MAX_THREADS``, which takes long to import.
MAX_THREADS = 512
#: The names of ``gumba.backends.cpu.kv_pages.PAGE_FORMATS``, which take as long.
KV_TYPES = ("bf16", "f16", "f32", "q8_0")

#: Keywords and phrases of the library's error messages, and what they become at the command line.
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

#: The result of ``add_subparsers``.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help formatter that keeps the line breaks of examples and leaves room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], int], help: str, examples: str
) -> argparse.ArgumentParser:
    """Add the command ``name``, which calls ``function``, and return its parser."""
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


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Parser of an integer from ``low`` to ``high``."""

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
    """Parse a number of bytes: digits, optionally followed by K, M or G (powers of 1024)."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)i?B?", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected e.g. 512M or 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


def number(low: float, high: float | None = None) -> Callable[[str], float]:
    """Parser of a finite number from ``low`` to ``high``."""

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


def did_you_mean(given: str, names: Iterable[str], key: Callable[[str], str] = str) -> str:
    """A hint to append to an error message: the one of ``names`` closest to ``given``, or "" if none is close.

    ``key`` returns the part of a name that is compared.
    """
    by_key = {key(name).lower(): name for name in names}
    close = difflib.get_close_matches(key(given.partition("=")[0]).lower(), by_key, 1, 0.6)
    return f"; did you mean {by_key[close[0]]}?" if close else ""


def with_option_names(error: Exception) -> str:
    """The message of ``error``, with the library's keywords replaced by the options of the command line."""
    message = str(error)
    named = isinstance(error, RequestError | ResourceError)
    return _NAMES.sub(lambda match: _OPTIONS[match[0]], message) if named else message


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the positional MODEL, and ``--revision``."""
    add_revision(parser)
    if optional:
        parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP + " (default: SmolLM2-135M-Instruct)")
    else:
        parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_revision(parser: argparse.ArgumentParser) -> None:
    """Add ``--revision``, of a model on a hub."""
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a model on a hub")


def add_length(parser: argparse.ArgumentParser, help: str) -> None:
    """Add ``-n``."""
    parser.add_argument("-n", metavar="N", type=integer(1, 2**31 - 1), help=help)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    parser.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=integer(1, MAX_THREADS),
        help="compute threads (default: the physical cores that this process may use)",
    )


def add_context(parser: argparse.ArgumentParser) -> None:
    """Add ``--ctx``, ``--kv-memory``, ``--kv-type`` and ``--portable``."""
    parser.add_argument(
        "-c",
        "--ctx",
        metavar="N",
        type=integer(1, 1 << 24),
        help="context length in tokens (default: the model's training context, at most 4096)",
    )
    parser.add_argument(
        "--kv-memory",
        metavar="SIZE",
        type=size,
        help="memory for the KV cache in bytes, or e.g. 512M or 2G (default: four sequences of --ctx tokens, at most an eighth "
        "of the available memory)",
    )
    add_numerics(parser)


def add_numerics(parser: argparse.ArgumentParser) -> None:
    """Add ``--kv-type``, where None selects the best type for the processor, and ``--portable``."""
    parser.add_argument(
        "--kv-type",
        type=str.lower,
        choices=KV_TYPES,
        help="data type of the KV cache; q8_0 takes half the memory of f16 (default: bf16 with the "
        "instruction set avx512_bf16, else f16)",
    )
    add_portable(parser)


def add_portable(parser: argparse.ArgumentParser) -> None:
    """Add ``--portable``."""
    parser.add_argument(
        "--portable",
        action="store_true",
        help="give logits, embeddings and greedy answers the same bits on every processor (KV cache: f16 by default)",
    )


#: Advanced sampling options: name, field of ``SamplingParams``, metavar, type, help.
ADVANCED_SAMPLING = (
    (
        "--repeat-last-n",
        "repetition_window",
        "N",
        integer(-1, 2**31 - 1),
        "number of last tokens that penalties consider; -1: all, 0: none (default: 64)",
    ),
    (
        "--presence-penalty",
        "presence_penalty",
        "A",
        number(-100, 100),
        "subtract A from the logit of each token that occurred (default: 0, off)",
    ),
    (
        "--frequency-penalty",
        "frequency_penalty",
        "A",
        number(-100, 100),
        "subtract A from a token's logit for each occurrence (default: 0, off)",
    ),
    ("--typical", "typical_p", "P", number(0, 1), "locally typical sampling (default: 1, off)"),
    (
        "--top-n-sigma",
        "top_n_sigma",
        "N",
        number(-1, 100),
        "drop tokens whose logits are more than N standard deviations below the highest (default: -1, off)",
    ),
    (
        "--xtc-probability",
        "xtc_probability",
        "P",
        number(0, 1),
        "XTC: probability of dropping the most likely tokens (default: 0, off)",
    ),
    (
        "--xtc-threshold",
        "xtc_threshold",
        "P",
        number(0, 1),
        "XTC: minimum probability of the tokens that it drops (default: 0.1)",
    ),
    (
        "--dry-multiplier",
        "dry_multiplier",
        "M",
        number(0, 100),
        "DRY: multiplier of the penalty on repeated sequences (default: 0, off)",
    ),
    ("--dry-base", "dry_base", "B", number(1, 100), "DRY: base of the penalty (default: 1.75)"),
    (
        "--dry-allowed-length",
        "dry_allowed_length",
        "N",
        integer(0, 2**31 - 1),
        "DRY: longest repetition without penalty, in tokens (default: 2)",
    ),
    (
        "--mirostat",
        "mirostat",
        "0|1|2",
        integer(0, 2),
        "sample with Mirostat, version 1 or 2, which holds the surprise of tokens at a target (default: 0, off)",
    ),
    ("--mirostat-ent", "mirostat_tau", "T", number(0, 100), "Mirostat: target surprise tau, in bits (default: 5)"),
    ("--mirostat-lr", "mirostat_eta", "E", number(0, 10), "Mirostat: learning rate eta (default: 0.1)"),
    (
        "--keep",
        "n_keep",
        "N",
        integer(-1, 2**31 - 1),
        "number of first tokens that --context-shift keeps; -1: the whole prompt (default: 4)",
    ),
    (
        "--lookup",
        "prompt_lookup_tokens",
        "N",
        integer(0, 1024),
        "prompt lookup: draft up to N tokens from earlier text (default: 0, off)",
    ),
)


def add_generation(parser: argparse.ArgumentParser, length: str) -> None:
    """Add options of length (``length`` is the help of ``-n``), context, threads and sampling."""
    add_length(parser, length)
    add_context(parser)
    add_threads(parser)
    add_sampling(parser)


def add_template(parser: argparse.ArgumentParser) -> None:
    """Add options of the chat template; ``template_args`` reads its variables."""
    group = parser.add_argument_group("chat template")
    group.add_argument(
        "--chat-template",
        metavar="NAME",
        help="use this chat template (chatml, llama3, mistral-v3, gemma ..., or a FILE in Jinja) instead of the model file's",
    )
    group.add_argument(
        "--chat-template-file", dest="chat_template", metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    group.add_argument(
        "--template-arg",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a variable of the chat template, e.g. enable_thinking=false (repeatable)",
    )
    group.add_argument("--chat-template-kwargs", metavar="JSON", help=argparse.SUPPRESS)


def template_args(args: argparse.Namespace) -> dict[str, object]:
    """The template variables of ``--template-arg`` and llama.cpp's ``--chat-template-kwargs``. Raises RequestError."""
    variables: dict[str, object] = {}
    if args.chat_template_kwargs is not None:
        try:
            given = json.loads(args.chat_template_kwargs)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"--chat-template-kwargs: not JSON ({error!s:.200})") from None
        if not isinstance(given, dict):
            raise RequestError(f"--chat-template-kwargs: expected an object, found {args.chat_template_kwargs:.60}")
        variables |= given
    for text in args.template_arg:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(f"--template-arg: expected NAME=VALUE, found {text:.60}")
        try:
            variables[name] = json.loads(value)
        except (ValueError, RecursionError):
            variables[name] = value
    return variables


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add sampling options; those not given keep the defaults of ``SamplingParams``."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--temp", metavar="T", type=number(0, 100), help="temperature; 0: greedy (default: 0.8)")
    group.add_argument(
        "--top-k",
        metavar="K",
        type=integer(0, 2**31 - 1),
        help="sample from the K most likely tokens; 0: from all (default: 40)",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=number(0, 1),
        help="sample from the most likely tokens whose probabilities sum to P; 1: off (default: 0.95)",
    )
    group.add_argument(
        "--min-p",
        metavar="P",
        type=number(0, 1),
        help="drop tokens below P times the highest probability; 0: off (default: 0.05)",
    )
    group.add_argument(
        "--repeat-penalty",
        metavar="R",
        type=number(0.01, 100),
        help="divide positive logits of recent tokens by R, multiply negative ones (default: 1, off)",
    )
    for name, field, metavar, kind, text in ADVANCED_SAMPLING:
        group.add_argument(name, dest=field, metavar=metavar, type=kind, help=text)
    group.add_argument(
        "--context-shift",
        action="store_true",
        default=None,
        help="when the context is full, drop the older half of the tokens after the first --keep and continue",
    )
    group.add_argument(
        "--samplers",
        metavar="NAMES",
        type=lambda text: re.split("[;,]", text),
        help="samplers to apply, in this order, separated by ; or , (default: penalties;dry;top_n_sigma;top_k;typical_p;top_p;"
        "min_p;epsilon_cutoff;eta_cutoff;xtc;temperature)",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", default=None, help="continue after the end-of-text token, up to -n tokens"
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json-schema", metavar="SCHEMA", help="constrain the answer to a JSON schema (text, or @FILE)")
    form.add_argument("--grammar", metavar="GBNF", help="constrain the answer to a GBNF grammar (text, or @FILE)")
    group.add_argument(
        "--seed",
        metavar="S",
        type=integer(0, 2**64 - 1),
        help="random seed; the same seed gives the same text (default: random)",
    )
    group.add_argument("--stop", metavar="TEXT", action="append", default=[], help="stop before TEXT (repeatable)")


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The ``SamplingParams`` of the options."""
    from gumba.cli.terminal import argument_text
    from gumba.sampling_params import SamplingParams, StructuredOutputsParams

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
        "ignore_eos": args.ignore_eos,
        "samplers": args.samplers,
        "structured_outputs": form,
        **{field: getattr(args, field) for _, field, *_ in ADVANCED_SAMPLING},
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _text_or_file(text: str) -> str:
    """``text``, or the contents of a file if it is @FILE. Raises RequestError if the file cannot be read."""
    from gumba.cli.terminal import read_text

    return read_text(text[1:]) if text.startswith("@") else text
