"""``gumba perplexity``: measure how well a model predicts a text."""

from __future__ import annotations

import argparse

from gumba.cli.open_model import find_model, needed_for, watch_compilation
from gumba.cli.options import Commands, add_model, add_numerics, add_threads, command, integer
from gumba.cli.terminal import print_json, read_text
from gumba.errors import RequestError
from gumba.progress import Progress

_EXAMPLES = """
gumba perplexity model.gguf book.txt
gumba perplexity model.gguf book.txt --ctx 512 --json
"""


def add_parser(commands: Commands) -> None:
    """Add ``perplexity`` to the command line."""
    parser = command(commands, "perplexity", perplexity, "measure how well a model predicts a text", _EXAMPLES)
    add_model(parser)
    parser.add_argument("textfile", metavar="TEXTFILE", help="a UTF-8 text file; - is stdin")
    parser.add_argument(
        "-c",
        "--ctx",
        metavar="N",
        type=integer(4),
        default=512,
        help="tokens per window; the second half of each is scored (default: 512)",
    )
    add_threads(parser)
    add_numerics(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def perplexity(args: argparse.Namespace) -> int:
    """Run ``gumba perplexity``."""
    path = find_model(args.model, args.revision)
    text = read_text(args.textfile)
    from gumba.bench.perplexity import perplexity as evaluate
    from gumba.gguf import GGUFFile
    from gumba.tokenizer.tokenizer import Tokenizer

    with GGUFFile(path) as file, Progress("windows") as progress:
        watch_compilation(progress, needed_for(path, args))
        from gumba.runner.load import LoadConfig, load_model

        tokenizer = Tokenizer.from_gguf(file)
        tokens = tokenizer.encode(text)
        if len(tokens) < 2 * args.ctx:
            raise RequestError(
                f"{args.textfile} has {len(tokens)} tokens; --ctx {args.ctx} needs at least {2 * args.ctx}"
            )
        settings = LoadConfig(
            n_ctx=args.ctx,
            kv_tokens=args.ctx,
            kv_type=args.kv_type,
            portable=args.portable,
            n_threads=args.threads,
        )
        model = load_model(file, settings, progress=progress.fraction("load"))
        try:
            bos = tokenizer.bos_id if tokenizer.add_bos else None
            for result in evaluate(model, tokens, args.ctx, bos):
                figure = f"perplexity {result.perplexity:.4f}"
                progress("windows", result.windows, result.n_windows, figure=figure)
        finally:
            model.close()
    if args.json:
        print_json(
            {
                "model": path.name,
                "perplexity": result.perplexity,
                "error": result.error,
                "nll": result.nll,
                "ctx": args.ctx,
                "windows": result.n_windows,
                "tokens": len(tokens),
                "scored": result.n_scored,
            }
        )
    else:
        print(f"perplexity {result.perplexity:.4f} +/- {result.error:.4f} ({result.n_scored} tokens scored)")
    return 0
