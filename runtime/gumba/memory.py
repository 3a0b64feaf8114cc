"""Out-of-memory errors: recognizing them, and messages with the memory available to this process."""

from __future__ import annotations

import errno

#: Messages of libraries that report a lack of memory with a general error type. (The last: Windows.)
_SIGNS = (
    "failed to map segment",
    "annot allocate memory",
    "bad_alloc",
    "can't start new thread",
    "cannot create thread",
    "paging file is too small",
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or an error in its chain of causes, reports a lack of memory."""
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
    """The message that ``need`` (e.g. "the working buffers need") takes ``n_bytes``, more than is available."""
    return f"not enough memory: {need} {megabytes(n_bytes)}{_available()}"


def no_memory() -> str:
    """The message of ``shortage`` if the memory needed is unknown."""
    return f"not enough memory{_available().replace(', and', ':', 1)}"


def megabytes(n_bytes: int) -> str:
    """``n_bytes`` in MB (2**20 bytes), as text."""
    return f"{n_bytes >> 20} MB"


def _available() -> str:
    try:
        from gumba.host import available_memory

        left = available_memory()
    except (MemoryError, ImportError, OSError):
        left = 0
    return "" if left is None else f", and {megabytes(left)} are available"
