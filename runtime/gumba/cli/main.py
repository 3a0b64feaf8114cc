"""The entry point of the command ``gumba``, so small that Ctrl-C finds it ready nearly at once.

All that takes time to import is imported inside of ``main``: Ctrl-C is exit code 130 without a traceback there too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own when None) and return the exit code."""
    try:
        from gumba.cli.commands import execute

        return execute(argv)
    except KeyboardInterrupt:
        return 130
