"""The entry point of the command ``gumba``, kept small so that it handles Ctrl-C almost from the start.

``main`` itself imports everything that takes time, so that Ctrl-C during an import also exits with 130, without a traceback.
"""

from __future__ import annotations

from gumba.cli.interrupts import INTERRUPTED, AtOnce, Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own when None) and return the exit code."""
    import gc

    if argv is None:
        # In a process of its own: most objects that it makes while it starts stay, so collecting early only takes time
        # (measured: with Python's own thresholds a start takes 6 % longer).
        gc.set_threshold(100_000, 50, 50)
    try:
        with AtOnce():
            from gumba.cli.commands import execute
        with Ending():
            return execute(argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:  # before the module with the better message is imported
        import sys

        sys.stderr.write("gumba: error: not enough memory\n")
        return 2
    finally:
        if argv is None:  # the process is about to end: Ctrl-C must not print a traceback any more
            AtOnce().__enter__()
