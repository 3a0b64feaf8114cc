"""Opens a model for a command, and reports downloads, loading and compilation on stderr."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumba.cli.interrupts import AtOnce
from gumba.cli.options import did_you_mean
from gumba.cli.terminal import note, printable
from gumba.errors import RequestError
from gumba.progress import Progress
from gumba.store import resolve

if TYPE_CHECKING:
    from gumba.llm.llm import LLM
    from gumba.runner.aot import Function


def find_model(model: str | None, revision: str | None = None, *, quiet: bool = False, check: bool = False) -> Path:
    """The GGUF file of MODEL, with a progress bar if it must be downloaded or converted first.

    ``quiet``: print no line before a download; ``check``: verify the hash of a file that was downloaded earlier.
    """
    with Progress(quiet=quiet) as progress:

        def announce(line: str) -> None:
            progress.clear()
            if not quiet:
                note(f"gumba: {printable(line)}")

        try:
            return resolve(model, revision=revision, progress=progress, announce=announce, check=check)
        except RequestError as error:
            hint = ""
            if model is not None and "did you mean" not in str(error):
                hint = did_you_mean(model, _gguf_files_beside(model), lambda name: Path(name).stem)
            if not hint:
                raise
            raise RequestError(f"{error}{hint}") from None


def _gguf_files_beside(model: str) -> list[str]:
    """The GGUF files in the folder of the path ``model``."""
    folder = Path(model).parent
    try:
        files = [
            str(folder / entry.name)
            for entry in folder.iterdir()
            if entry.suffix.lower() == ".gguf" and entry.is_file()
        ]
        return [file for file in files if file != model]
    except (OSError, ValueError):
        return []


def compile_seconds() -> float:
    """Seconds that this process has spent compiling kernels so far."""
    from gumba.jit import jit

    return jit.stats.compile_s


class Compilation:
    """Reports the compilation of kernels to the user.

    ``progress`` draws the progress bar. ``needed`` returns the functions that the coming work needs and the cache lacks: the
    first cache miss compiles all of them, so that the bar shows a total. Functions that are compiled later are counted one by
    one. ``quiet``: do not print the line that announces compilation.
    """

    def __init__(
        self, progress: Progress, needed: Callable[[], Sequence[Function]] | None = None, *, quiet: bool = False
    ) -> None:
        self._progress, self._needed, self._quiet = progress, needed, quiet
        self._begun = False
        self._done = self._total = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The context manager for ``gumba.jit.jit.watching``: entered around each compilation."""
        if not self._begun:
            self._begun = True
            with AtOnce():  # in a chat too: the compiler is large, and of no use when partly imported
                self._announce()
                from gumba.jit import codegen  # noqa: F401 - imports the compiler
            if self._needed is not None:
                from gumba.runner.aot import compile_functions

                with self._progress.ticking():
                    compile_functions(self._needed(), self.report)
                self._done = self._total
                yield  # nearly always for one of the functions just compiled
                return
        self._done += 1
        figure = f"{self._done} of {self._done}" if self._total else str(self._done)
        self._progress("compiling kernels", 0, figure=figure, rare=True)
        try:
            yield
        finally:
            self._progress.clear()

    def report(self, done: int, total: int, share: float) -> None:
        """Draw the bar: ``done`` of ``total`` functions are compiled, which is the fraction ``share`` of the work."""
        self._total = total
        self._progress("compiling kernels", share, 1.0, figure=f"{min(done + 1, total)} of {total}", rare=True)

    def _announce(self) -> None:
        from gumba.jit import kernel_cache

        if not self._quiet:
            self._progress.clear()
            kept = "only once" if kernel_cache.cache_writable() else "at every start: there is no kernel cache"
            note(f"gumba: compiling kernels for this processor ({kept}); this takes some seconds ...")


def watch_compilation(
    progress: Progress, needed: Callable[[], Sequence[Function]] | None = None, *, quiet: bool = False
) -> None:
    """From now on report the kernels that this process compiles; the arguments are those of ``Compilation``."""
    from gumba.jit import jit

    jit.watching = Compilation(progress, needed, quiet=quiet).watching


def open_llm(args: argparse.Namespace, **options: Any) -> tuple[LLM, float]:
    """The model of a command's options, and the seconds it took to open, without compilation.

    ``options``: further arguments of ``LLM``.
    """
    path = find_model(args.model, args.revision, quiet=args.quiet)
    began = time.perf_counter()
    with Progress(quiet=args.quiet, delayed=True) as progress:
        watch_compilation(progress, needed_for(path, args, top_k=_top_k(args)), quiet=args.quiet)
        compiled = compile_seconds()  # importing may compile too
        from gumba.llm.llm import LLM

        llm = LLM(
            path,
            n_ctx=args.ctx,
            n_threads=args.threads,
            kv_type=args.kv_type,
            portable=args.portable,
            kv_memory=args.kv_memory,
            progress=progress.fraction("load"),
            **{"chat_template": getattr(args, "chat_template", None), **options},
        )
        load_s = time.perf_counter() - began - (compile_seconds() - compiled)
    return llm, max(0.0, load_s)


def needed_for(
    path: Path, args: argparse.Namespace, *, text: bool = True, top_k: int | None = None
) -> Callable[[], list[Function]]:
    """The ``needed`` of ``watch_compilation`` for a model and the options of a command.

    ``text``, ``top_k``: as of ``gumba.runner.aot.first_functions``.
    """

    def needed() -> list[Function]:
        from gumba.runner.aot import first_functions

        return first_functions(path, args.kv_type, portable=args.portable, text=text, top_k=top_k)

    return needed


def _top_k(args: argparse.Namespace) -> int | None:
    """The ``top_k`` of a command's options (0: all tokens, 1: greedy); None for a command that does not sample."""
    from gumba.sampling_params import SamplingParams

    if not hasattr(args, "top_k"):
        return None
    if args.temp == 0:
        return 1
    return SamplingParams().top_k if args.top_k is None else int(args.top_k)
