"""Processors of this process: which it may use, how many threads to run on them, and pinning a thread to one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gumba.errors import RequestError

#: More threads do not speed up work that is limited by memory bandwidth.
MAX_COPY_THREADS = 16


def allowed_processors() -> list[int]:
    """Numbers of the logical processors that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _linux_cores(processors: list[int]) -> int | None:
    """Physical cores among ``processors``, without those of less than half the largest capacity (little ones of an Arm)."""
    cores: dict[str, int] = {}
    for cpu in processors:
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}")
        try:
            siblings = (folder / "topology/thread_siblings_list").read_text().strip()
        except OSError:
            return None
        try:
            capacity = int((folder / "cpu_capacity").read_text())
        except (OSError, ValueError):
            capacity = 0
        cores[siblings] = max(capacity, cores.get(siblings, 0))
    largest = max(cores.values(), default=0)
    return sum(2 * capacity >= largest for capacity in cores.values())


def _mac_performance_cores() -> int | None:
    """Performance cores of an Apple processor; None if it has one kind of core. psutil counts efficiency cores too."""
    import ctypes

    try:
        sysctl = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return None
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    code = sysctl(b"hw.perflevel0.physicalcpu", ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return value.value if code == 0 and value.value > 0 else None


def _other_cores(processors: list[int]) -> int | None:
    """Physical cores among ``processors``, by psutil: of macOS, Windows and other systems without Linux's ``/sys``.

    The logical processors of one core are taken to have consecutive numbers, as Windows numbers them.
    """
    import psutil

    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    if not physical or not logical:
        return None
    if sys.platform == "win32" and logical <= 64:  # a larger machine's affinity covers one group of processors only
        processors = psutil.Process().cpu_affinity() or processors
    per_core = logical // physical if logical % physical == 0 else 1
    return min(int(physical), len({processor // per_core for processor in processors}))


def physical_cores() -> int:
    """Physical cores that this process may use; its logical processors if the system does not report cores."""
    processors = allowed_processors()
    if sys.platform == "linux":
        cores = _linux_cores(processors)
    else:
        cores = (_mac_performance_cores() if sys.platform == "darwin" else None) or _other_cores(processors)
    return max(1, cores or len(processors))


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors that the control group (v2, then v1) allows; infinity without a limit."""
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    limit = float("inf")
    for line in own:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            group = root / path.lstrip("/")
            for folder in [group, *group.parents]:
                try:
                    allowed_us, period = (folder / "cpu.max").read_text().split()
                except (OSError, ValueError):
                    continue
                if allowed_us != "max":
                    limit = min(limit, int(allowed_us) / int(period))
        elif "cpu" in controllers.split(","):
            for folder in (root / "cpu" / path.lstrip("/"), root / "cpu"):
                try:
                    quota_us = int((folder / "cpu.cfs_quota_us").read_text())
                    period_us = int((folder / "cpu.cfs_period_us").read_text())
                except (OSError, ValueError):
                    continue
                if quota_us > 0:
                    limit = min(limit, quota_us / period_us)
    return limit


def default_threads() -> int:
    """Threads to compute with: physical cores that this process may use, within its control group's quota; at least 1."""
    return max(1, int(min(physical_cores(), cpu_quota())))


def available_threads(maximum: int = MAX_COPY_THREADS) -> int:
    """Threads for work other than arithmetic: logical processors of this process, within its quota; 1 to ``maximum``."""
    return max(1, int(min(maximum, len(allowed_processors()), cpu_quota())))


def parse_affinity(text: str) -> list[int]:
    """The processors of GUMBA_AFFINITY: a list such as "0-3,8" (the form of Linux's taskset), or "all".

    Raises RequestError for another form, or for a processor that this process may not use.
    """
    usable = allowed_processors()
    if text.strip() == "all":
        return usable
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise RequestError(f'GUMBA_AFFINITY={text}: expected a list such as "0-3,8", or "all"') from None
        if not (0 <= low <= high <= usable[-1] and set(range(low, high + 1)) <= set(usable)):
            raise RequestError(f"GUMBA_AFFINITY={text}: {part.strip()} is not among those of this process, {usable}")
        chosen += range(low, high + 1)
    return chosen


def can_pin_threads() -> bool:
    """Whether this system can pin threads to processors (Linux and Windows can)."""
    return hasattr(os, "sched_setaffinity") or os.name == "nt"


def pin_thread(processor: int) -> bool:
    """Pin the calling thread to one processor; False if the system refuses."""
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {processor})  # 0: of the calling thread alone
            return True
        if os.name == "nt":  # psutil pins whole processes only
            import ctypes

            kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
            kernel.GetCurrentThread.restype = ctypes.c_void_p
            kernel.SetThreadAffinityMask.restype = ctypes.c_size_t
            thread = ctypes.c_void_p(kernel.GetCurrentThread())
            return bool(kernel.SetThreadAffinityMask(thread, ctypes.c_size_t(1 << processor)))
    except (OSError, AttributeError):
        pass
    return False
