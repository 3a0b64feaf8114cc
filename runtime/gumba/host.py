"""The processors that this process may use: how many threads are worth it, and tying a thread to one of them."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from gumba.errors import RequestError

#: More threads do not help where memory is the limit.
MOST_FOR_COPYING = 16


def allowed() -> list[int]:
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


def _mac_cores() -> int | None:
    """Physical cores of the fast kind, or all where there is one kind."""
    try:
        call = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return None
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
        if call(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0 and value.value > 0:
            return value.value
    return None


def core_masks(data: bytes) -> Iterator[tuple[int, int]]:
    """(group, mask of logical processors) of each physical core, from Windows' list of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX.

    An entry is: int32 kind (0: a core), uint32 size of the entry; of a core at 30 the number of masks, at 32 the masks, 16
    bytes each: uint64 mask, uint16 group.
    """
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<iI", data, at)
        if size < 8 or at + size > len(data):
            return
        if kind == 0 and size >= 48:
            (n_masks,) = struct.unpack_from("<H", data, at + 30)
            for i in range(min(n_masks, (size - 32) // 16)):
                mask, group = struct.unpack_from("<QH", data, at + 32 + 16 * i)
                yield group, mask
        at += size


def _windows_cores() -> int | None:
    """Physical cores that hold a processor of this process."""
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    size = ctypes.c_uint32(0)
    try:
        kernel.GetLogicalProcessorInformationEx(0, None, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        if not kernel.GetLogicalProcessorInformationEx(0, data, ctypes.byref(size)):
            return None
        own, system = ctypes.c_size_t(0), ctypes.c_size_t(0)
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel.GetCurrentProcess())
        if not kernel.GetProcessAffinityMask(process, ctypes.byref(own), ctypes.byref(system)):
            return None
    except (OSError, AttributeError):
        return None
    cores = list(core_masks(data.raw[: size.value]))
    if len({group for group, _ in cores}) != 1 or not own.value:  # several groups: the process' mask speaks of one only
        return len(cores) or None
    return sum(1 for _, mask in cores if mask & own.value) or None


def physical_cores() -> int:
    """Physical cores that this process may use; where the system does not tell, logical processors count."""
    processors = allowed()
    if os.name == "nt":
        found = _windows_cores()
    elif sys.platform == "darwin":
        found = _mac_cores()
    else:
        found = _linux_cores(processors)
    return max(1, found or len(processors))


def quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors that the control group allows (v2, then v1); infinity where there is no limit."""
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    limit = float("inf")
    for line in own:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder = root / path.lstrip("/")
            for each in [folder, *folder.parents]:
                try:
                    allowed_us, period = (each / "cpu.max").read_text().split()
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
    return max(1, int(min(physical_cores(), quota())))


def available_threads(most: int = MOST_FOR_COPYING) -> int:
    """Threads for work that is not pure arithmetic: logical processors of this process, within its quota; 1 to ``most``."""
    return max(1, int(min(most, len(allowed()), quota())))


def parse_list(text: str) -> list[int]:
    """GUMBA_AFFINITY's processors, as in "0-3,8" (as Linux' taskset writes them), or "all": those that this process may use.

    Raises RequestError for anything else, or for a processor that this process may not use.
    """
    usable = allowed()
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


def can_tie() -> bool:
    """Whether threads can be tied to processors here (Linux and Windows)."""
    return hasattr(os, "sched_setaffinity") or os.name == "nt"


def tie(processor: int) -> bool:
    """Tie the calling thread to one processor; whether that worked."""
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {processor})  # 0: of the calling thread alone
            return True
        if os.name == "nt":
            kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
            kernel.GetCurrentThread.restype = ctypes.c_void_p
            kernel.SetThreadAffinityMask.restype = ctypes.c_size_t
            thread = ctypes.c_void_p(kernel.GetCurrentThread())
            return bool(kernel.SetThreadAffinityMask(thread, ctypes.c_size_t(1 << processor)))
    except (OSError, AttributeError):
        pass
    return False


def available_memory() -> int | None:
    """Bytes of memory that this process could still take without anything being swapped out; None where nobody says."""
    found = [_free_memory(), _group_memory(), address_space_left()]
    return min((each for each in found if each is not None), default=None)


def address_space_left() -> int | None:
    """Bytes of address space that this process may still take; None where it is not limited (``ulimit -v``), or not known."""
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


def _free_memory() -> int | None:
    if os.name == "nt":
        status = (ctypes.c_uint64 * 8)()  # MEMORYSTATUSEX: two 32-bit words, then 64-bit ones: in all, free, ...
        ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = 64
        library = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
        return int(status[2]) if library.GlobalMemoryStatusEx(ctypes.byref(status)) else None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # of macOS only the whole is known here; half of it is a cautious guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _group_memory() -> int | None:
    """What is left of the limit of this process's control group."""
    folder = Path("/sys/fs/cgroup")
    for most, now in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int((folder / most).read_text()) - int((folder / now).read_text()))
        except (OSError, ValueError):
            continue
    return None
