"""Default thread counts: physical cores that this process may use, within its control group's quota; and pinning threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from gumba import host
from gumba.errors import RequestError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The system's files by path: a machine of 8 logical processors on 4 cores, all allowed."""
    files = {
        f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n" for i in range(8)
    }
    real = Path.read_text

    def read_text(self: Path, *args: object, **kwargs: object) -> str:
        name = self.as_posix()
        if name in files:
            return files[name]
        if name.startswith(("/sys/", "/proc/")):
            raise FileNotFoundError(name)
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(host, "allowed_processors", lambda: list(range(8)))
    return files


def test_cores_not_hyperthreads(machine: dict[str, str]) -> None:
    assert host.default_threads() == 4


def test_only_allowed_processors(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "allowed_processors", lambda: [0, 4, 5])
    assert host.default_threads() == 2


def test_unknown_topology(machine: dict[str, str]) -> None:
    machine.clear()
    assert host.default_threads() == 8


@pytest.mark.parametrize("quota, expected", [
    ("max 100000", 4), ("300000 100000", 3), ("250000 100000", 2), ("150000 100000", 1), ("20000 100000", 1),
    ("900000 100000", 4), ("100000 50000", 2), ("nonsense", 4), ("", 4),
])  # fmt: skip
def test_quota_of_version_2(quota: str, expected: int, machine: dict[str, str]) -> None:
    machine["/proc/self/cgroup"] = "0::/user.slice/job\n"
    machine["/sys/fs/cgroup/user.slice/job/cpu.max"] = quota + "\n"
    assert host.default_threads() == expected


def test_a_parent_group_may_allow_less(machine: dict[str, str]) -> None:
    machine["/proc/self/cgroup"] = "0::/outer/inner\n"
    machine["/sys/fs/cgroup/outer/inner/cpu.max"] = "max 100000\n"
    machine["/sys/fs/cgroup/outer/cpu.max"] = "200000 100000\n"
    assert host.default_threads() == 2
    machine["/sys/fs/cgroup/outer/inner/cpu.max"] = "100000 100000\n"
    assert host.default_threads() == 1


def test_inside_a_container_of_version_2(machine: dict[str, str]) -> None:
    """The container's group is mounted as the root."""
    machine["/proc/self/cgroup"] = "0::/\n"
    machine["/sys/fs/cgroup/cpu.max"] = "200000 100000\n"
    assert host.default_threads() == 2


@pytest.mark.parametrize("quota, expected", [("-1", 4), ("200000", 2), ("50000", 1), ("nonsense", 4)])
@pytest.mark.parametrize("where", ["/docker/abc", ""])
def test_quota_of_version_1(where: str, quota: str, expected: int, machine: dict[str, str]) -> None:
    """On the host the group has a folder; inside a container its files are at the root, despite the path."""
    machine["/proc/self/cgroup"] = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/\n"
    machine[f"/sys/fs/cgroup/cpu{where}/cpu.cfs_quota_us"] = quota + "\n"
    machine[f"/sys/fs/cgroup/cpu{where}/cpu.cfs_period_us"] = "100000\n"
    assert host.default_threads() == expected


def test_threads_for_copying(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Logical processors, within the quota, and not too many."""
    assert host.available_threads() == 8
    machine["/proc/self/cgroup"], machine["/sys/fs/cgroup/cpu.max"] = "0::/\n", "350000 100000\n"
    assert host.available_threads() == 3
    machine["/sys/fs/cgroup/cpu.max"] = "10000 100000\n"
    assert host.available_threads() == 1
    del machine["/proc/self/cgroup"]
    monkeypatch.setattr(host, "allowed_processors", lambda: list(range(100)))
    assert host.available_threads() == 16 and host.available_threads(maximum=64) == 64


@pytest.mark.parametrize("capacities, expected", [
    ((1024, 1024, 1024, 1024), 4), ((1024, 1024, 640, 640), 4), ((1024, 1024, 300, 250), 2), ((512, 100, 100, 100), 1),
])  # fmt: skip
def test_slow_cores_do_not_count(capacities: tuple[int, ...], expected: int, machine: dict[str, str]) -> None:
    """Linux reports capacities; the others would only wait for a core of less than half the largest."""
    for cpu in range(8):
        machine[f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = f"{capacities[cpu % 4]}\n"
    assert host.default_threads() == expected


@pytest.mark.parametrize("platform", ["win32", "darwin"])
@pytest.mark.parametrize("physical, logical, allowed, expected", [
    (4, 8, range(8), 4), (4, 8, range(4), 2), (4, 8, (0, 2, 4), 3), (4, 4, (1, 3), 2),
    (6, 8, range(8), 6), (6, 8, (0, 1), 2), (None, 8, range(8), 8), (128, 256, range(256), 128),
])  # fmt: skip
def test_cores_of_windows_and_macos(
    platform: str,
    physical: int | None,
    logical: int,
    allowed: Iterable[int],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of psutil's counts, those that this process may use; processors of one core have consecutive numbers."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(host, "_mac_performance_cores", lambda: None)
    monkeypatch.setattr(host, "allowed_processors", lambda: list(range(logical) if platform == "win32" else allowed))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: list(allowed)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True, n=(physical, logical): n[logical])
    assert host.physical_cores() == expected


def test_efficiency_cores_of_macos_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(host, "_mac_performance_cores", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    assert host.physical_cores() == 4


@pytest.mark.parametrize(
    "text, expected", [("all", [2, 3, 4, 8]), ("3", [3]), ("2-4,8", [2, 3, 4, 8]), ("8, 2", [8, 2])]
)
def test_a_list_of_processors(text: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "allowed_processors", lambda: [2, 3, 4, 8])
    assert host.parse_affinity(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1", "4-8", "4-2", "-1", "2-", "2,,3", "0-99999999999", "3-x"])
def test_a_wrong_list_of_processors(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "allowed_processors", lambda: [2, 3, 4, 8])
    with pytest.raises(RequestError, match="GUMBA_AFFINITY"):
        host.parse_affinity(text)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="reads the affinity of a thread as Linux does")
def test_a_thread_is_pinned() -> None:
    last, results = host.allowed_processors()[-1], []

    def work() -> None:
        results.append(host.pin_thread(last))
        results.append(os.sched_getaffinity(0))
        results.append(host.pin_thread(1 << 20))

    before = os.sched_getaffinity(0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [True, {last}, False]
    assert os.sched_getaffinity(0) == before


def test_the_real_machine() -> None:
    assert host.default_threads() >= 1
