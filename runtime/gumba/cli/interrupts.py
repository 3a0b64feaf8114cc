"""What Ctrl-C and the signals that end a process do to a command.

Python raises KeyboardInterrupt wherever it is, and modules that are being imported do not expect it: some take it for an
error of their own. So while much is imported, ``AtOnce`` lets Ctrl-C end the process without an exception. At other times it
is KeyboardInterrupt, and SIGTERM and SIGHUP are SystemExit, so that temporary files are removed and threads end.

This module is imported before all others, so it imports nothing that takes long.
"""

from __future__ import annotations

import _signal  # the names of the module signal, without its enumerations, which take longer to import than all of this
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: The exit code of a process that Ctrl-C has ended, as shells have it.
INTERRUPTED = 130


class _Handlers:
    """Signal handlers while it is entered; those from before come back when it is left.

    A signal that is ignored stays so. Only the main thread can have any: elsewhere nothing changes.
    """

    def __init__(self, **handlers: Callable[[int, Any], object]) -> None:
        self._wanted = {getattr(_signal, name): each for name, each in handlers.items() if hasattr(_signal, name)}
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number, handler in self._wanted.items():
            before = _signal.getsignal(number)
            if before in (_signal.SIG_DFL, _signal.default_int_handler):
                try:
                    _signal.signal(number, handler)
                except ValueError:  # not the main thread
                    return
                self._before[number] = before

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            _signal.signal(number, before)
        self._before.clear()


class AtOnce(_Handlers):
    """Ctrl-C ends the process: for imports, during which there is nothing to clean up."""

    def __init__(self) -> None:
        super().__init__(SIGINT=lambda number, frame: os._exit(INTERRUPTED))


class Ending(_Handlers):
    """SIGTERM and SIGHUP are SystemExit with the exit code that shells give such a process; a second one is not waited for."""

    def __init__(self) -> None:
        super().__init__(SIGTERM=_leave, SIGHUP=_leave)


def _leave(number: int, frame: Any) -> None:
    _signal.signal(number, _signal.SIG_DFL)
    raise SystemExit(128 + number)
