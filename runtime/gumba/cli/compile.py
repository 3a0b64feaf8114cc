"""``gumba compile``: compile ahead of time."""

from __future__ import annotations

import argparse
import time

from gumba.cli.engine import find_model
from gumba.cli.options import Commands, add_model, command
from gumba.cli.progress import Progress
from gumba.errors import ResourceError

_EXAMPLES = """
gumba compile
gumba compile model.gguf
GUMBA_ISA=avx2 gumba compile
"""


def add_parser(commands: Commands) -> None:
    """Add ``compile`` to the command line."""
    parser = command(commands, "compile", compile_, "compile everything for this processor ahead of time", _EXAMPLES)
    add_model(parser, optional=True)


def compile_(args: argparse.Namespace) -> int:
    """Carry out ``gumba compile``: of a MODEL only what its file needs."""
    began = time.perf_counter()
    path = None if args.model is None else find_model(args.model)
    from gumba.ahead import compile_all
    from gumba.kernels import jit

    folder = jit.cache_folder()
    if folder is None:
        raise ResourceError("there is no kernel cache to compile into: GUMBA_CACHE_DIR names a private folder for it")
    jit.on_first_compile = lambda: None
    with Progress("functions") as progress:
        total = compile_all(path, lambda done, jobs: progress("compile", done, jobs))
    seconds = time.perf_counter() - began
    print(f"{jit.stats.compiled} of {total} functions compiled in {seconds:.1f} s, the others were there: {folder}")
    return 0
