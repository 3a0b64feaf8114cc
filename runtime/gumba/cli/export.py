"""``gumba export``: make a Hugging Face folder out of a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path

from gumba.cli.engine import find_model
from gumba.cli.options import Commands, add_model, command
from gumba.cli.progress import Progress
from gumba.cli.text import note

_EXAMPLES = """
gumba export model.gguf -o ./model
"""


def add_parser(commands: Commands) -> None:
    """Add ``export`` to the command line."""
    parser = command(commands, "export", export, "make a Hugging Face folder out of a GGUF file", _EXAMPLES)
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="the folder to write")


def export(args: argparse.Namespace) -> int:
    """Carry out ``gumba export``."""
    path, out = find_model(args.model), Path(args.output)
    with Progress() as progress:
        from gumba_convert import export

        export(path, out, progress=progress)
    note(f"gumba: {out}")
    return 0
