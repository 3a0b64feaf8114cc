"""``gumba models``: list the architectures, and the implementations with equal logits on tiny random models."""

from __future__ import annotations

import argparse

from gumba.cli.options import Commands, command
from gumba.cli.terminal import print_json, table

_EXAMPLES = """
gumba models
gumba models --json
"""


def add_parser(commands: Commands) -> None:
    """Add ``models`` to the command line."""
    parser = command(commands, "models", models, "list the supported architectures and their models", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def models(args: argparse.Namespace) -> int:
    """Run ``gumba models``."""
    from gumba.models.registry import ARCHITECTURES

    if args.json:
        listed = {name: {"families": m.FAMILIES, "verified": list(m.VERIFIED)} for name, m in ARCHITECTURES.items()}
        print_json(listed)
    else:
        rows = [[name, module.FAMILIES, ", ".join(module.VERIFIED)] for name, module in ARCHITECTURES.items()]
        print(table([["ARCHITECTURE", "FAMILIES", "SAME LOGITS AS"], *rows]))
    return 0
