"""``gumba bench``: how fast a model runs here."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from gumba.cli.engine import announce_compilation, find_model
from gumba.cli.options import Commands, add_model, add_threads, command, whole
from gumba.cli.progress import Progress
from gumba.cli.text import print_json, table
from gumba.errors import RequestError

_EXAMPLES = """
gumba bench model.gguf
gumba bench model.gguf --prompt 512 --gen 64 --depth 2048 --threads 2 --json
gumba bench model.gguf --prompt 0 --gen 64 --sequences 8
"""


def add_parser(commands: Commands) -> None:
    """Add ``bench`` to the command line."""
    parser = command(commands, "bench", bench, "measure how fast a model runs here", _EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--prompt", metavar="N", type=whole(0, 1 << 24), default=512, help="tokens of the prompt (default 512)"
    )
    parser.add_argument("--gen", metavar="N", type=whole(0, 1 << 24), default=64, help="decode steps (default 64)")
    parser.add_argument(
        "--depth", metavar="N", type=whole(0, 1 << 24), default=0, help="tokens of context before both (default 0)"
    )
    parser.add_argument(
        "--sequences", metavar="N", type=whole(1, 4096), default=1, help="sequences decoded at once (default 1)"
    )
    parser.add_argument(
        "--repeat", metavar="N", type=whole(1, 1000), default=5, help="measured runs; medians are shown (default 5)"
    )
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def bench(args: argparse.Namespace) -> int:
    """Carry out ``gumba bench``."""
    if not args.prompt and not args.gen:
        raise RequestError("nothing to measure: --prompt and --gen are both 0")
    path = find_model(args.model)
    with Progress() as progress:
        announce_compilation(progress)
        from gumba.benchmark import measure

        speed = measure(
            path,
            prompt=args.prompt,
            gen=args.gen,
            depth=args.depth,
            sequences=args.sequences,
            n_threads=args.threads,
            repeat=args.repeat,
            progress=progress.fraction("bench"),
        )
    asked = {
        "model": path.name,
        "prompt": args.prompt,
        "gen": args.gen,
        "depth": args.depth,
        "sequences": args.sequences,
        "repeat": args.repeat,
    }
    found = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(speed).items()}
    if args.json:
        print_json({**asked, **found})
    else:
        print(table([[name, "-" if value is None else str(value)] for name, value in {**asked, **found}.items()]))
    return 0
