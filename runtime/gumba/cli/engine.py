"""Opening a model for a command, and saying what that takes."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumba.cli.interrupts import AtOnce
from gumba.cli.options import did_you_mean
from gumba.cli.text import note, printable
from gumba.errors import RequestError
from gumba.progress import Progress
from gumba.store import resolve

if TYPE_CHECKING:
    from gumba.ahead import Function
    from gumba.llm import LLM


def find_model(model: str | None, revision: str | None = None, *, quiet: bool = False, check: bool = False) -> Path:
    """The GGUF file of MODEL, with a progress bar where it has to be fetched or converted first.

    ``quiet``: no line before a download; ``check``: hash what has been fetched earlier.
    """
    with Progress(quiet=quiet) as progress:

        def announce(line: str) -> None:
            progress.clear()
            if not quiet:
                note(f"gumba: {printable(line)}")

        try:
            return resolve(model, revision=revision, progress=progress, announce=announce, check=check)
        except RequestError as error:
            hint = "" if model is None or "did you mean" in str(error) else did_you_mean(model, _files_near(model))
            if not hint:
                raise
            raise RequestError(f"{error}{hint}") from None


def _files_near(model: str) -> list[str]:
    """The GGUF files in the folder that ``model`` names."""
    folder = Path(model).parent
    try:
        files = [
            str(folder / each.name) for each in folder.iterdir() if each.suffix.lower() == ".gguf" and each.is_file()
        ]
        return [file for file in files if file != model]
    except (OSError, ValueError):
        return []


def compile_seconds() -> float:
    """Seconds that this process has spent compiling kernels so far."""
    from gumba.kernels import jit

    return jit.stats.compile_s


class Compilation:
    """Tells the user of kernels that are compiled: that it happens once, and how far it is.

    ``progress`` draws that. ``needed`` gives what is yet to be compiled for the work at hand: all of it is compiled when the
    first kernel is missed, so that it can be counted. Others that are compiled later are counted as they come. ``quiet``: no
    line that says what it is about.
    """

    def __init__(
        self, progress: Progress, needed: Callable[[], Sequence[Function]] | None = None, *, quiet: bool = False
    ) -> None:
        self._progress, self._needed, self._quiet = progress, needed, quiet
        self._begun = False
        self._done = self._total = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """As ``gumba.kernels.jit.watching``."""
        if not self._begun:
            self._begun = True
            with AtOnce():
                self._announce()
                from gumba.kernels import codegen  # noqa: F401 - imports the compiler
            if self._needed is not None:
                from gumba.ahead import compile_functions

                compile_functions(self._needed(), self.report)
                self._done = self._total
                yield  # nearly always for one of those
                return
        self._done += 1
        figure = f"{self._done} of {self._done}" if self._total else str(self._done)
        self._progress("compiling kernels", 0, figure=figure, rare=True)
        try:
            yield
        finally:
            self._progress.clear()

    def report(self, done: int, total: int, share: float) -> None:
        """``done`` of ``total`` functions are compiled, and ``share`` of the work is done."""
        self._total = total
        self._progress("compiling kernels", share, 1.0, figure=f"{min(done + 1, total)} of {total}", rare=True)

    def _announce(self) -> None:
        from gumba.kernels import cache

        if not self._quiet:
            self._progress.clear()
            kept = "they are kept" if cache.cache_writable() else "they cannot be kept: there is no kernel cache"
            note(f"gumba: compiling kernels for this processor, which takes some seconds ({kept}) ...")


def watch_compilation(
    progress: Progress, needed: Callable[[], Sequence[Function]] | None = None, *, quiet: bool = False
) -> None:
    """Tell the user of kernels that this process compiles from now on; arguments as of ``Compilation``."""
    from gumba.kernels import jit

    jit.watching = Compilation(progress, needed, quiet=quiet).watching


def open_llm(args: argparse.Namespace, **options: Any) -> tuple[LLM, float]:
    """The model that the options of a command name, and the seconds that opening it took, compiling not counted.

    ``options``: further arguments of ``LLM``.
    """
    path = find_model(args.model, args.revision, quiet=args.quiet)
    began = time.perf_counter()
    with Progress(quiet=args.quiet) as progress:
        watch_compilation(progress, needed_for(path, args.kv_type, top_k=_top_k(args)), quiet=args.quiet)
        compiled = compile_seconds()  # importing may compile too
        with AtOnce():
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


def needed_for(
    path: Path, kv_type: str | None, *, text: bool = True, top_k: int | None = None
) -> Callable[[], list[Function]]:
    """What ``watch_compilation`` takes, for work on a model; arguments as of ``gumba.ahead.first_functions``."""

    def needed() -> list[Function]:
        from gumba.ahead import first_functions

        return first_functions(path, kv_type, text=text, top_k=top_k)

    return needed


def _top_k(args: argparse.Namespace) -> int | None:
    """How many tokens these options choose from, 0 for all; None of a command that chooses none."""
    from gumba.params import SamplingParams

    if not hasattr(args, "top_k"):
        return None
    if args.temp == 0:
        return 1
    return SamplingParams().top_k if args.top_k is None else int(args.top_k)
