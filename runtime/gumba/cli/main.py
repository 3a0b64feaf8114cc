"""The entry point of the command ``gumba``, so small that Ctrl-C finds it ready nearly at once.

All that takes time to import is imported inside of ``main``: Ctrl-C is exit code 130 without a traceback there too.
"""

from __future__ import annotations

from gumba.cli.interrupts import INTERRUPTED, AtOnce, Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own when None) and return the exit code."""
    try:
        with AtOnce():
            from gumba.cli.commands import execute
        with Ending():
            return execute(argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:  # before there is anything that says more of it
        import sys

        sys.stderr.write("gumba: error: not enough memory\n")
        return 2
    finally:
        if argv is None:  # the process ends: nothing that it still does may be interrupted with a traceback
            AtOnce().__enter__()
