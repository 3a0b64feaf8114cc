"""How many threads to use: what this process may use, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical(processors: set[int]) -> int:
    """Physical cores among logical ``processors`` (Linux); elsewhere all of them count."""
    cores = set()
    for cpu in processors:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            return len(processors)
        cores.add(siblings.strip())
    return max(1, len(cores))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
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
                    quota, period = (each / "cpu.max").read_text().split()
                except (OSError, ValueError):
                    continue
                if quota != "max":
                    limit = min(limit, int(quota) / int(period))
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
    """Physical cores of the processors this process may run on, no more than its control group's quota; at least 1."""
    cores = _physical(_affinity())
    quota = _quota()
    return max(1, int(min(cores, quota)))
