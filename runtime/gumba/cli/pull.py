"""``gumba pull``: download a model and print its path."""

from __future__ import annotations

import argparse

from gumba import store
from gumba.cli.open_model import find_model
from gumba.cli.options import MODEL_HELP, Commands, add_revision, command
from gumba.cli.terminal import table
from gumba.errors import RequestError

_EXAMPLES = """
gumba pull qwen2.5:0.5b
gumba pull Qwen/Qwen3-0.6B-GGUF:Q8_0
gumba pull https://huggingface.co/Qwen/Qwen3-0.6B-GGUF/blob/main/Qwen3-0.6B-Q8_0.gguf
gumba pull --list
"""


def add_parser(commands: Commands) -> None:
    """Add ``pull`` to the command line."""
    parser = command(commands, "pull", pull, "download a model, check it and print its path", _EXAMPLES)
    parser.add_argument(
        "name",
        metavar="MODEL",
        nargs="?",
        help=f"{MODEL_HELP} (default: {store.DEFAULT_MODEL})",
    )
    add_revision(parser)
    parser.add_argument("--list", action="store_true", help="list the known names and their models")


def pull(args: argparse.Namespace) -> int:
    """Run ``gumba pull``: the path of the model goes to stdout."""
    if args.list:
        if args.name is not None or args.revision is not None:
            raise RequestError("--list lists all known names: omit MODEL and --revision")
        rows = [["NAME", "FROM", "TYPE"]]
        for name, model in store.KNOWN.items():
            here = ", pulled" if store.pulled(name) else ""
            rows.append([name, f"{model.requirement} (Python wheel{here})", model.title.rpartition(" ")[2]])
        for name, source in store.ON_HUB.items():
            repository, _, type = source.partition(":")
            rows.append([name, repository, type or "converted"])
        print(table(rows))
        return 0
    path = find_model(args.name, args.revision, check=True)
    if not path.is_file():
        raise RequestError(f"{path}: expected a regular file or a folder")
    print(path)
    return 0
