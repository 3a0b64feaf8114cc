"""``gumba export``: convert a GGUF file to a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from gumba.cli.open_model import find_model
from gumba.cli.options import Commands, add_model, add_threads, command
from gumba.cli.terminal import note, printable
from gumba.progress import Progress, size

_EXAMPLES = """
gumba export model.gguf -o ./model
"""


def add_parser(commands: Commands) -> None:
    """Add ``export`` to the command line."""
    parser = command(
        commands, "export", export, "convert a GGUF file of a Llama model to a Hugging Face folder", _EXAMPLES
    )
    scope = "Only files of the architecture llama (Llama, Mistral and similar models) can be exported."
    parser.description = f"{parser.description}\n{scope}"
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="bfloat16",
        help="data type of the weights (default: bfloat16)",
    )
    add_threads(parser)


def export(args: argparse.Namespace) -> int:
    """Run ``gumba export``."""
    path, out = find_model(args.model, args.revision), Path(args.output)
    with Progress() as progress:
        from gumba_convert import export as export_folder

        report = export_folder(path, out, dtype=args.dtype, progress=progress, n_threads=args.threads)
    note(
        f"gumba: {printable(str(out))}: {report.n_tensors} tensors in {report.dtype}, {size(report.n_bytes)} "
        f"in {report.seconds:.1f} s"
    )
    return 0
