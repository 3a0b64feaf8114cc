"""Steps of tools/check: order, exit codes, background steps, and an end that leaves no process behind."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import steps

TOOLS = Path(__file__).parents[2] / "tools"


def run(code: str) -> subprocess.Popen[str]:
    """A process that runs ``code`` with ``steps`` imported."""
    program = f"import sys, steps\nfrom steps import Step, main, python\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", program], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
    )  # fmt: skip


def test_steps_run_in_order_and_each_prints_its_seconds() -> None:
    process = run(
        "a = Step('a', python('-c', 'print(1)'))\n"
        "b = Step('b', python('-c', 'import os; print(os.environ[\"X\"])'), env={'X': '2'})\n"
        "sys.exit(main([a, b], 'both'))"
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""
    words = [line.split() for line in out.splitlines()]
    assert [line[0] for line in words if line[1:] and line[-1] == "s"] == ["--", "--", "a", "b", "both"]
    assert out.index("== a: ") < out.index("\n1\n") < out.index("-- a: ") < out.index("== b: ") < out.index("\n2\n")


def test_the_first_step_that_fails_gives_the_exit_code() -> None:
    process = run(
        "steps = [Step('a', python('-c', 'raise SystemExit(5)'), passes=(5,)), Step('b', python('-c', 'raise SystemExit(3)')),"
        " Step('c', python('-c', 'print(123)'))]\nsys.exit(main(steps, 'all'))"
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3 and "123" not in out.replace("print(123)", "")
    assert "all: b failed with exit code 3: " in err


def test_a_step_in_the_background_ends_before_the_one_that_comes_after_it() -> None:
    process = run(
        "steps = [Step('slow', python('-c', 'import time; time.sleep(1); print(11)'), background=True),"
        " Step('a', python('-c', 'print(22)')), Step('b', python('-c', 'print(33)'), after=['slow'])]\n"
        "sys.exit(main(steps, 'all'))"
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line for line in out.splitlines() if line in ("11", "22", "33")] == ["22", "11", "33"]


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_failure_in_the_background_ends_the_run(seconds: int) -> None:
    process = run(
        "steps = [Step('bad', python('-c', 'raise SystemExit(4)'), background=True),"
        f" Step('a', python('-c', 'import time; time.sleep({seconds})'))]\n"
        "sys.exit(main(steps, 'all'))"
    )
    _, err = process.communicate(timeout=50)
    assert process.returncode == 4 and "bad failed" in err


@pytest.mark.skipif(os.name == "nt", reason="sends signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_steps_and_their_processes(name: str, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import pathlib, subprocess, sys, time\n"
        "sleeper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(sleeper.pid))\n"
        "time.sleep(60)\n",
        encoding="utf-8",
    )
    pids = [tmp_path / "front", tmp_path / "back"]
    process = run(
        f"front, back = [python({str(child)!r}, path) for path in {[str(path) for path in pids]}]\n"
        "sys.exit(main([Step('back', back, background=True), Step('front', front)], 'all'))"
    )
    deadline = time.monotonic() + 30
    while not all(path.exists() and path.read_text() for path in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    for path in pids:
        deadline = time.monotonic() + 5
        while _runs(int(path.read_text())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _runs(int(path.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process runs: neither gone nor only waiting to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc").is_dir()


def test_the_files_that_check_full_repeats_are_there() -> None:
    module = types.ModuleType("check_full")
    exec(compile((TOOLS / "check_full").read_text(encoding="utf-8"), "check_full", "exec"), module.__dict__)
    assert [path for path in module.RACES if not (TOOLS.parent / path).is_file()] == []
    args = argparse.Namespace(
        **dict.fromkeys(sum(module.NEEDS.values(), ()), Path("x")), times=2, wheel=None, checkpoint=None
    )
    assert all(module.plan(name, args) for name in module.NEEDS)


def test_lint_checks_style_words_and_layers() -> None:
    assert [step.name for step in steps.lint()] == ["ruff", "format", "words", "layers"]
    scripts = [word for step in steps.lint() for word in step.command if word.startswith("tools/")]
    assert scripts and all((TOOLS.parent / script).is_file() for script in scripts)


def test_serial_tests_run_after_the_others_from_the_files_that_have_them() -> None:
    first, second = steps.tests(but="isas")
    assert "not serial and not (isas)" in first.command and "serial and not (isas)" in second.command
    files = [word for word in second.command if word.startswith("tests/")]
    assert "tests/engine/test_interrupts.py" in files and all((TOOLS.parent / file).is_file() for file in files)
    assert steps.tests(["tests/gguf"])[1].command[-1] == "tests/gguf"


def test_marks_select_among_the_tests_of_each_pass() -> None:
    def marks(*arguments: str) -> list[str]:
        commands = [step.command for step in steps.tests(arguments)]
        assert all(command.count("-m") == 2 for command in commands), "python -m pytest, and one -m of pytest's"
        return [command[command.index("-m", 3) + 1] for command in commands]

    assert marks() == ["not serial and not (freeze or isas)", "serial and not (freeze or isas)"]
    assert marks("-m", "not model", "tests/llm") == [
        "not serial and not (freeze or isas) and (not model)",
        "serial and not (freeze or isas) and (not model)",
    ]
    assert marks("-m", "isas") == ["not serial and not (freeze) and (isas)", "serial and not (freeze) and (isas)"]
    assert marks("-mfreeze or isas") == ["not serial and (freeze or isas)", "serial and (freeze or isas)"]
    assert steps.tests(["-m", "model", "tests/llm"])[1].command[-1] == "tests/llm"


def test_all_tests_are_in_both_passes_and_some_may_be_in_one() -> None:
    assert [step.passes for step in steps.tests()] == [(), ()]
    assert [step.passes for step in steps.tests(["tests/gguf"])] == [(steps.NO_TESTS,)] * 2
