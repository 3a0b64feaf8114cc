"""Signal handling of the commands: Ctrl-C, SIGTERM and SIGHUP.

Python raises KeyboardInterrupt at any point, and a module that is being imported may report it as an error of its own. So
``AtOnce`` makes Ctrl-C end the process without an exception during imports. At other times Ctrl-C raises KeyboardInterrupt, and
``Ending`` makes SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed and threads end.

This module is imported before all others, so it imports only what is cheap.
"""

from __future__ import annotations

import _signal  # the names of the module signal, without its enumerations, which take longer to import than all of this
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: The exit code after Ctrl-C, as in shells.
INTERRUPTED = 130


class _Handlers:
    """Context manager that installs signal handlers and restores the previous ones.

    An ignored signal stays ignored. Outside of the main thread, which alone can set handlers, it does nothing.
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
    """Ctrl-C ends the process at once. For imports, when there is nothing to clean up."""

    def __init__(self) -> None:
        super().__init__(SIGINT=lambda number, frame: os._exit(INTERRUPTED))


class Ending(_Handlers):
    """SIGTERM and SIGHUP raise SystemExit with the code 128 + signal, as in shells; a second one ends the process at once."""

    def __init__(self) -> None:
        super().__init__(SIGTERM=_leave, SIGHUP=_leave)


def _leave(number: int, frame: Any) -> None:
    _signal.signal(number, _signal.SIG_DFL)
    raise SystemExit(128 + number)
