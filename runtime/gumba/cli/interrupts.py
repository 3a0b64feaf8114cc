"""Signal handling of the commands: Ctrl-C, SIGTERM and SIGHUP.

Python raises KeyboardInterrupt at any point, and a module that is being imported may report it as an error of its own, or go on
without what it could not import. So Ctrl-C ends the process without an exception during imports, most of which happen when a
command first needs the module (temporary files left behind are removed by the next process, see ``gumba.files``). At other times
Ctrl-C raises KeyboardInterrupt, and SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed and threads end.

This module is imported before all others, so it imports only what is cheap.
"""

from __future__ import annotations

import _signal  # the names of the module signal, without its enumerations, which take longer to import than all of this
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: The exit code after Ctrl-C, as in shells.
INTERRUPTED = 130


class _Handlers:
    """Context manager that installs signal handlers and restores the previous ones.

    An ignored signal stays ignored. Outside of the main thread, which alone can set handlers, it does nothing.
    """

    def __init__(self, **handlers: Callable[[int, FrameType | None], object]) -> None:
        self._wanted = {getattr(_signal, name): each for name, each in handlers.items() if hasattr(_signal, name)}
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> None:
        for number, handler in self._wanted.items():
            before = _signal.getsignal(number)
            if before in (_signal.SIG_DFL, _signal.default_int_handler, _interrupt):
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
    """Ctrl-C ends the process at once: there is nothing to clean up."""

    def __init__(self) -> None:
        super().__init__(SIGINT=_exit)


class Ending(_Handlers):
    """The handlers of a running command.

    Ctrl-C raises KeyboardInterrupt, or ends the process at once while a module is imported. SIGTERM and SIGHUP raise SystemExit
    with the code 128 + signal, as in shells; a second one ends the process at once.
    """

    def __init__(self) -> None:
        super().__init__(SIGINT=_interrupt, SIGTERM=_leave, SIGHUP=_leave)


class Interruptible(_Handlers):
    """Ctrl-C raises KeyboardInterrupt, during imports too.

    For a chat, where it stops an answer and the conversation goes on, and for asyncio, which cancels its tasks only if Python's
    own handler is in place.
    """

    def __init__(self) -> None:
        super().__init__(SIGINT=_signal.default_int_handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None and frame.f_globals.get("__name__") != "gumba.cli.main":
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    _signal.signal(number, _signal.SIG_DFL)
    raise SystemExit(128 + number)
