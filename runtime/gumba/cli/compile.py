"""``gumba compile``: compile ahead of time."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gumba.cli.open_model import Compilation, find_model
from gumba.cli.options import MODEL_HELP, Commands, add_portable, add_revision, command
from gumba.cli.terminal import note, printable
from gumba.errors import ResourceError
from gumba.progress import Progress

_EXAMPLES = """
gumba compile
gumba compile model.gguf
GUMBA_ISA=avx2 gumba compile
gumba compile model.gguf --output gumba-kernels
"""


def add_parser(commands: Commands) -> None:
    """Add ``compile`` to the command line."""
    parser = command(
        commands, "compile", compile_, "compile the kernels of a model for this processor ahead of time", _EXAMPLES
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help=MODEL_HELP + " (default: the kernels of Llama-like models)"
    )
    add_revision(parser)
    add_portable(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="copy the compiled kernels into DIR, which a frozen application can ship as gumba-kernels beside its program",
    )


def compile_(args: argparse.Namespace) -> int:
    """Run ``gumba compile``: with MODEL, compile only what its file needs."""
    began = time.perf_counter()
    path = None if args.model is None else find_model(args.model, args.revision)
    from gumba.jit import bundled, jit, kernel_cache
    from gumba.runner.aot import compile_all

    with _warnings() as reasons:
        folder = kernel_cache.cache_folder()
        usable = folder is not None and kernel_cache.cache_writable()
    if folder is None or not usable:
        setting = os.environ.get("GUMBA_CACHE_DIR")
        where = "the user's cache folder" if setting is None else f"GUMBA_CACHE_DIR={setting}"
        why = f" ({reasons[0]})" if reasons else ""
        raise ResourceError(
            f"no kernel cache to compile into: {where} is not a folder that only this user can write to{why}"
        )
    kernel_cache.lost.clear()
    jit.watching = contextlib.nullcontext
    with Progress() as progress, progress.ticking(), _warnings() as warnings:
        total = compile_all(path, Compilation(progress).report, portable=args.portable)
    for line in warnings:
        if not line.startswith("kernel cache: cannot write"):  # the error below reports these
            note(f"gumba: {printable(line)}")
    if kernel_cache.lost:
        _, why = next(iter(kernel_cache.lost.items()))
        raise ResourceError(
            f"could not write {len(kernel_cache.lost)} of {total} compiled functions to {folder}: {why}"
        )
    if args.output is not None:
        bundled.ship(kernel_cache.kept, args.output / folder.name)
        folder = args.output
    seconds = time.perf_counter() - began
    cached = "" if jit.stats.compiled >= total else ", the others were cached"
    print(f"{jit.stats.compiled} of {total} functions compiled in {seconds:.1f} s{cached}: {folder}")
    return 0


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect gumba's warnings instead of printing them, so that an error can include them."""
    messages: list[str] = []
    log = logging.getLogger("gumba")

    def gather(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    log.addFilter(gather)
    try:
        yield messages
    finally:
        log.removeFilter(gather)
