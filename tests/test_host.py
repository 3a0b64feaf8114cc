"""Which processors count: real cores that this process may use, within its control group's quota; and tying threads to them."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from gumba import host
from gumba.errors import RequestError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The system's files, by path: a machine of 8 logical processors on 4 cores, all of them ours."""
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
    monkeypatch.setattr(host, "allowed", lambda: list(range(8)))
    return files


def test_cores_not_hyperthreads(machine: dict[str, str]) -> None:
    assert host.default_threads() == 4


def test_only_our_processors(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "allowed", lambda: [0, 4, 5])
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
    """On the host the group has a folder; inside a container its files lie at the root, though the path says otherwise."""
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
    monkeypatch.setattr(host, "allowed", lambda: list(range(100)))
    assert host.available_threads() == 16 and host.available_threads(most=64) == 64


@pytest.mark.parametrize("capacities, expected", [
    ((1024, 1024, 1024, 1024), 4), ((1024, 1024, 640, 640), 4), ((1024, 1024, 300, 250), 2), ((512, 100, 100, 100), 1),
])  # fmt: skip
def test_little_cores_do_not_count(capacities: tuple[int, ...], expected: int, machine: dict[str, str]) -> None:
    """Capacity as Linux tells it; a core of less than half the largest would only be waited for."""
    for cpu in range(8):
        machine[f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = f"{capacities[cpu % 4]}\n"
    assert host.default_threads() == expected


def entry(kind: int, *masks: tuple[int, int]) -> bytes:
    """One SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX: kind, size, flags and class, 20 reserved bytes, count, masks."""
    body = bytes(22) + struct.pack("<H", len(masks)) + b"".join(struct.pack("<QH6x", m, g) for g, m in masks)
    return struct.pack("<iI", kind, 8 + len(body)) + body


def test_the_cores_of_windows() -> None:
    """Two cores of two processors, something else than a core, one core of one, one in another group."""
    data = entry(0, (0, 0b11)) + entry(0, (0, 0b1100)) + entry(3, (0, 0xFF)) + entry(0, (0, 0b10000)) + entry(0, (1, 1))
    assert list(host.core_masks(data)) == [(0, 0b11), (0, 0b1100), (0, 0b10000), (1, 1)]
    assert list(host.core_masks(data[:-1])) == [(0, 0b11), (0, 0b1100), (0, 0b10000)], "cut short"
    assert list(host.core_masks(bytes(64))) == [], "an entry of no size"
    assert list(host.core_masks(b"")) == []


@pytest.mark.parametrize(
    "text, expected", [("all", [2, 3, 4, 8]), ("3", [3]), ("2-4,8", [2, 3, 4, 8]), ("8, 2", [8, 2])]
)
def test_a_list_of_processors(text: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "allowed", lambda: [2, 3, 4, 8])
    assert host.parse_list(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1", "4-8", "4-2", "-1", "2-", "2,,3", "0-99999999999", "3-x"])
def test_a_wrong_list_of_processors(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "allowed", lambda: [2, 3, 4, 8])
    with pytest.raises(RequestError, match="GUMBA_AFFINITY"):
        host.parse_list(text)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="what a thread is tied to is asked as Linux does")
def test_a_thread_is_tied() -> None:
    last, found = host.allowed()[-1], []

    def work() -> None:
        found.append(host.tie(last))
        found.append(os.sched_getaffinity(0))
        found.append(host.tie(1 << 20))

    before = os.sched_getaffinity(0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, {last}, False]
    assert os.sched_getaffinity(0) == before


def test_the_real_machine() -> None:
    assert host.default_threads() >= 1
