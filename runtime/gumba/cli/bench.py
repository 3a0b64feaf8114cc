"""``gumba bench``: measure the speed of a model on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from gumba.cli.open_model import find_model, needed_for, watch_compilation
from gumba.cli.options import Commands, add_model, add_numerics, add_threads, command, integer
from gumba.cli.profile import as_json, as_text, check_plot, write_plot
from gumba.cli.terminal import print_json, table
from gumba.errors import RequestError
from gumba.progress import Progress

_EXAMPLES = """
gumba bench model.gguf
gumba bench model.gguf --prompt 512 --gen 64 --depth 2048 --threads 2 --json
gumba bench model.gguf --prompt 0 --gen 64 --sequences 8
gumba bench model.gguf --profile --plot where-the-time-goes.svg
"""


def add_parser(commands: Commands) -> None:
    """Add ``bench`` to the command line."""
    parser = command(commands, "bench", bench, "measure how fast a model runs here", _EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--prompt",
        metavar="N",
        type=integer(0, 1 << 24),
        help="tokens of the prompt (default: 512, or as many as fit into the model's context)",
    )
    parser.add_argument(
        "--gen",
        metavar="N",
        type=integer(0, 1 << 24),
        help="decode steps (default: 64, or as many as fit; 0 for models that do not generate text)",
    )
    parser.add_argument(
        "--depth",
        metavar="N",
        type=integer(0, 1 << 24),
        default=0,
        help="tokens in the KV cache before the prompt, and before the decode steps (default: 0)",
    )
    parser.add_argument(
        "--sequences", metavar="N", type=integer(1, 4096), default=1, help="sequences decoded at once (default: 1)"
    )
    parser.add_argument(
        "--repeat", metavar="N", type=integer(1, 1000), default=5, help="number of measured runs (default: 5)"
    )
    add_threads(parser)
    add_numerics(parser)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="time every operation and compare it with this machine's measured limits",
    )
    parser.add_argument("--plot", metavar="FILE.svg", type=Path, help="with --profile: plot where a step's time goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def bench(args: argparse.Namespace) -> int:
    """Run ``gumba bench``."""
    if args.prompt == 0 and args.gen == 0:
        raise RequestError("nothing to measure: --prompt and --gen are both 0")
    if args.plot is not None:
        if not args.profile:
            raise RequestError("--plot draws a profile: give --profile as well")
        check_plot(args.plot)
    path = find_model(args.model, args.revision)
    with Progress() as progress:
        watch_compilation(progress, needed_for(path, args, text=False))
        from gumba.bench.benchmark import Workload, default_sizes, measure
        from gumba.bench.profiler import profile

        prompt, gen = default_sizes(path, args.prompt, args.gen, args.depth)
        if not prompt and not gen:
            raise RequestError("nothing to measure: --prompt is 0, and the model generates no text")
        sizes = {"prompt": prompt, "gen": gen, "depth": args.depth, "sequences": args.sequences}
        settings = {"model": path.name, **sizes, "repeat": args.repeat}
        work = Workload(**sizes, n_threads=args.threads, kv_type=args.kv_type, portable=args.portable)
        if not args.profile:
            speed = measure(path, work, repeat=args.repeat, progress=progress.fraction("bench"))
        else:
            timings = profile(path, work, repeat=args.repeat, progress=progress.fraction("profile"))
    if not args.profile:
        rounded = {k: round(value, 3) if isinstance(value, float) else value for k, value in asdict(speed).items()}
        rows = [[name, "-" if value is None else str(value)] for name, value in {**settings, **rounded}.items()]
        print_json({**settings, **rounded}) if args.json else print(table(rows))
        return 0
    if args.plot is not None:
        write_plot(args.plot, timings, path.name)
    print_json({**settings, **as_json(timings)}) if args.json else print(as_text(timings))
    return 0
