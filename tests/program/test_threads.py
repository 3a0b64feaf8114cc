"""How many threads are used when nobody says: real cores that this process may use, within its control group's quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from gumba.program import threads


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
    monkeypatch.setattr(threads, "_affinity", lambda: set(range(8)))
    return files


def test_cores_not_hyperthreads(machine: dict[str, str]) -> None:
    assert threads.default_threads() == 4


def test_only_our_processors(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_affinity", lambda: {0, 4, 5})
    assert threads.default_threads() == 2


def test_unknown_topology(machine: dict[str, str]) -> None:
    machine.clear()
    assert threads.default_threads() == 8


@pytest.mark.parametrize("quota, expected", [
    ("max 100000", 4), ("300000 100000", 3), ("250000 100000", 2), ("150000 100000", 1), ("20000 100000", 1),
    ("900000 100000", 4), ("100000 50000", 2), ("nonsense", 4), ("", 4),
])  # fmt: skip
def test_quota_of_version_2(quota: str, expected: int, machine: dict[str, str]) -> None:
    machine["/proc/self/cgroup"] = "0::/user.slice/job\n"
    machine["/sys/fs/cgroup/user.slice/job/cpu.max"] = quota + "\n"
    assert threads.default_threads() == expected


def test_a_parent_group_may_allow_less(machine: dict[str, str]) -> None:
    machine["/proc/self/cgroup"] = "0::/outer/inner\n"
    machine["/sys/fs/cgroup/outer/inner/cpu.max"] = "max 100000\n"
    machine["/sys/fs/cgroup/outer/cpu.max"] = "200000 100000\n"
    assert threads.default_threads() == 2
    machine["/sys/fs/cgroup/outer/inner/cpu.max"] = "100000 100000\n"
    assert threads.default_threads() == 1


def test_inside_a_container_of_version_2(machine: dict[str, str]) -> None:
    """The container's group is mounted as the root."""
    machine["/proc/self/cgroup"] = "0::/\n"
    machine["/sys/fs/cgroup/cpu.max"] = "200000 100000\n"
    assert threads.default_threads() == 2


@pytest.mark.parametrize("quota, expected", [("-1", 4), ("200000", 2), ("50000", 1), ("nonsense", 4)])
@pytest.mark.parametrize("where", ["/docker/abc", ""])
def test_quota_of_version_1(where: str, quota: str, expected: int, machine: dict[str, str]) -> None:
    """On the host the group has a folder; inside a container its files lie at the root, though the path says otherwise."""
    machine["/proc/self/cgroup"] = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/\n"
    machine[f"/sys/fs/cgroup/cpu{where}/cpu.cfs_quota_us"] = quota + "\n"
    machine[f"/sys/fs/cgroup/cpu{where}/cpu.cfs_period_us"] = "100000\n"
    assert threads.default_threads() == expected


def test_the_real_machine() -> None:
    assert threads.default_threads() >= 1
