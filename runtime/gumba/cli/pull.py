"""``gumba pull``: fetch a known model."""

from __future__ import annotations

import argparse

from gumba import sources
from gumba.cli.options import Commands, command
from gumba.cli.text import note, table
from gumba.progress import Progress, size

_EXAMPLES = """
gumba pull smollm2-135m-instruct
gumba pull --list
"""


def add_parser(commands: Commands) -> None:
    """Add ``pull`` to the command line."""
    parser = command(commands, "pull", pull, "fetch a known model, check it and keep it", _EXAMPLES)
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default=sources.DEFAULT_MODEL, help=f"default: {sources.DEFAULT_MODEL}"
    )
    parser.add_argument("--list", action="store_true", help="list the known models and which of them are here")


def pull(args: argparse.Namespace) -> int:
    """Carry out ``gumba pull``: the path of the model goes to stdout."""
    if args.list:
        rows = [["NAME", "SIZE", "LICENCE", "WHAT", "HERE"]]
        for name, model in sources.KNOWN.items():
            here = sources.pulled(name)
            rows.append([name, size(model.n_bytes), model.licence, model.title, "yes" if here else "no"])
        print(table(rows, right="1"))
        return 0
    with Progress() as progress:
        path = sources.pull(args.name, progress=progress)
    model = sources.KNOWN[args.name.lower()]
    note(f"gumba: {model.title} ({model.licence}), checksum verified")
    print(path)
    return 0
