"""How much memory there is for this process, and errors that come from a lack of it."""

from __future__ import annotations

import errno

#: What libraries say of a lack of memory, in errors that are of no kind of their own. (The last: Windows.)
_SIGNS = (
    "failed to map segment",
    "annot allocate memory",
    "bad_alloc",
    "can't start new thread",
    "cannot create thread",
    "paging file is too small",
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or one that led to it, comes from a lack of memory."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(error, OSError | ImportError | RuntimeError | SystemError) and any(
            sign in str(error) for sign in _SIGNS
        ):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def shortage(need: str, n_bytes: int) -> str:
    """A message: there is not enough memory for ``need`` ("the working buffers need"), which is ``n_bytes``."""
    return f"not enough memory: {need} {megabytes(n_bytes)}{_available()}"


def no_memory() -> str:
    """A message for where it is not known how much is needed."""
    return f"not enough memory{_available().replace(', and', ':', 1)}"


def megabytes(n_bytes: int) -> str:
    """``n_bytes`` in MB of 2**20, as messages about memory count."""
    return f"{n_bytes >> 20} MB"


def _available() -> str:
    try:
        from gumba.processors import (
            available_memory,  # which imports more than a command that goes well should wait for
        )

        left = available_memory()
    except (MemoryError, ImportError, OSError):
        left = 0
    return "" if left is None else f", and {megabytes(left)} are available"
