"""Memory of this process: how much is available, recognizing out-of-memory errors, and their messages."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

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


def available_memory() -> int | None:
    """Bytes of memory that this process can still allocate without swapping; None if the system does not report it."""
    limits = [_system_memory(), _control_group_memory(), address_space_left()]
    return min((limit for limit in limits if limit is not None), default=None)


def address_space_left() -> int | None:
    """Bytes of address space left to this process; None if there is no limit (``ulimit -v``), or it is unknown."""
    if sys.platform != "linux":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None
    return max(0, limit - taken)


def _system_memory() -> int | None:
    """Bytes of memory that the whole system has available."""
    if sys.platform == "linux":  # without psutil, whose import would delay the start of a model
        try:
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            pass
        try:  # without MemAvailable, half of the total is a cautious guess
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (ValueError, OSError):
            return None
    import psutil

    try:
        return int(psutil.virtual_memory().available)
    except (OSError, RuntimeError, psutil.Error):
        return None


def _control_group_memory() -> int | None:
    """Bytes left of the limit of this process's control group (v2, then v1)."""
    folder = Path("/sys/fs/cgroup")
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int((folder / limit).read_text()) - int((folder / usage).read_text()))
        except (OSError, ValueError):
            continue
    return None


def _available() -> str:
    try:
        left = available_memory()
    except (MemoryError, ImportError, OSError):
        left = 0
    return "" if left is None else f", and {megabytes(left)} are available"
