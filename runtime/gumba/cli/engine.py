"""Opening a model for a command, and saying what that takes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumba.cli.text import note
from gumba.progress import Progress
from gumba.sources import resolve

if TYPE_CHECKING:
    from gumba.llm import LLM


def find_model(model: str | None) -> Path:
    """The GGUF file of MODEL, with a progress bar where it has to be fetched or converted first."""
    with Progress() as progress:
        return resolve(model, progress=progress)


def compile_seconds() -> float:
    """Seconds that this process has spent compiling kernels so far."""
    from gumba.kernels import jit

    return jit.stats.compile_s


def announce_compilation(progress: Progress | None = None, *, quiet: bool = False) -> None:
    """Have the first kernel that is compiled in this process tell the user, once, that it takes a while.

    ``quiet``: tell nothing.
    """
    from gumba.kernels import cache, jit

    told = quiet

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            if progress is not None:
                progress.clear()
            kept = "they are kept" if cache.cache_writable() else "they cannot be kept: there is no kernel cache"
            note(f"gumba: compiling kernels for this processor, which takes some seconds ({kept}) ...")

    jit.on_first_compile = tell


def open_llm(args: argparse.Namespace, **options: Any) -> tuple[LLM, float]:
    """The model that the options of a command name, and the seconds that opening it took, compiling not counted.

    ``options``: further arguments of ``LLM``.
    """
    path = find_model(args.model)
    began = time.perf_counter()
    with Progress() as progress:
        announce_compilation(progress, quiet=args.quiet)
        compiled = compile_seconds()  # importing may compile too
        from gumba.llm import LLM

        llm = LLM(
            path,
            n_ctx=args.ctx,
            n_threads=args.threads,
            kv_type=args.kv_type,
            kv_memory=args.kv_memory,
            progress=progress.fraction("load"),
            **{"chat_template": getattr(args, "chat_template", None), **options},
        )
        load_s = time.perf_counter() - began - (compile_seconds() - compiled)
    return llm, max(0.0, load_s)
