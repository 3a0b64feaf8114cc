"""The steps that every change has to pass, and how they run: what tools/check, lint, types, test and check_full share.

A step is a command with a name. Steps run one after another, each prints its seconds, and the first that fails ends the run
with its exit code. A step may run in the background of those that follow it, until one that names it in ``after``. On Ctrl-C,
SIGTERM or SIGHUP all commands end, with the processes that they started, before the run does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent

#: Seconds that a command may take to end by itself after a signal.
PATIENCE_S = 10.0
#: Seconds between two looks at what runs.
POLL_S = 0.05
#: The exit code of pytest where it found no test, as one of two passes may where only some tests are selected.
NO_TESTS = 5
#: More test processes than this gain little, and each loads models of its own.
MOST_WORKERS = 8


@dataclass(frozen=True)
class Step:
    """A command with a name."""

    name: str
    command: Sequence[str]
    #: Variables of its environment, in addition to those of this process.
    env: Mapping[str, str] = field(default_factory=dict)
    #: Exit codes, in addition to 0, that are no failure.
    passes: Sequence[int] = ()
    #: It runs while the next steps run; what it prints is shown when it ends. If it fails, they end too.
    background: bool = False
    #: Background steps that must have ended before this one begins.
    after: Sequence[str] = ()


class Interrupted(BaseException):
    """A signal tells this process to end; ``code`` is its exit code then."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class StepFailed(Exception):
    """A step failed with the exit code ``code``."""

    def __init__(self, step: Step, code: int) -> None:
        super().__init__(f"{step.name} failed with exit code {code}: {shlex.join(step.command)}")
        self.code = code


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, the signals that end a process raise Interrupted, except a SIGHUP that is ignored (nohup)."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Running:
    """A command that runs, in a process group of its own."""

    def __init__(self, step: Step, output: IO[bytes] | None = None) -> None:
        self.step, self.output, self.began = step, output, time.perf_counter()
        self._process = subprocess.Popen(
            step.command, cwd=ROOT, env={**os.environ, **step.env}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=None if output is None else subprocess.STDOUT, start_new_session=os.name == "posix",
        )  # fmt: skip

    def ended(self) -> bool:
        """Whether it has ended; its output was shown then. Raises StepFailed if it failed."""
        code = self._process.poll()
        if code is None:
            return False
        self.seconds = time.perf_counter() - self.began
        if self.output is not None:
            print(f"\n== {self.step.name}: {shlex.join(self.step.command)} (in the background)", flush=True)
            self.output.seek(0)
            sys.stdout.buffer.write(self.output.read())
            self.output.close()
        print(f"-- {self.step.name}: {self.seconds:.1f} s", flush=True)
        if code != 0 and code not in self.step.passes:
            raise StepFailed(self.step, code if code > 0 else 128 - code)
        return True

    def end(self) -> None:
        """End the command and the processes that it started, if they still run."""
        if os.name == "nt":
            if self._process.poll() is None:
                tree = ["taskkill", "/F", "/T", "/PID", str(self._process.pid)]
                subprocess.run(tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            with contextlib.suppress(subprocess.TimeoutExpired, Interrupted):  # a second Ctrl-C: at once
                self._process.wait(PATIENCE_S)


def run(steps: Sequence[Step]) -> dict[str, float]:
    """Run ``steps``; seconds of each. Raises StepFailed at the first that fails, Interrupted by a signal."""
    running: dict[str, _Running] = {}
    seconds: dict[str, float] = {}

    def wait_for(names: Sequence[str]) -> None:
        while not running.keys().isdisjoint(names):
            for name in list(running):
                if running[name].ended():
                    seconds[name] = running.pop(name).seconds
            time.sleep(POLL_S)

    try:
        for step in steps:
            wait_for(step.after)
            if step.background:
                running[step.name] = _Running(step, tempfile.TemporaryFile())  # noqa: SIM115 - ended() closes it
                continue
            print(f"\n== {step.name}: {shlex.join(step.command)}", flush=True)
            running[step.name] = _Running(step)
            wait_for([step.name])
        wait_for(list(running))
    finally:
        for each in running.values():
            each.end()
    return seconds


def main(steps: Sequence[Step], title: str) -> int:
    """Run ``steps`` and print the seconds of each and of them all; the exit code for this process."""
    began = time.perf_counter()
    try:
        with interruptible():
            seconds = run(steps)
    except StepFailed as failure:
        print(f"\n{title}: {failure}", file=sys.stderr)
        return failure.code
    except Interrupted as interrupted:
        print(f"\n{title}: {interrupted}", file=sys.stderr)
        return interrupted.code
    if len(steps) == 1:
        return 0
    width = max(map(len, [*seconds, title]))
    print()
    for name, taken in seconds.items():
        print(f"{name:{width}} {taken:7.1f} s")
    print(f"{title:{width}} {time.perf_counter() - began:7.1f} s", flush=True)
    return 0


def python(*arguments: str) -> list[str]:
    """A command of this Python."""
    return [sys.executable, *arguments]


def lint() -> list[Step]:
    """Style, form, words and layers of the sources."""
    return [
        Step("ruff", python("-m", "ruff", "check", ".")),
        Step("format", python("-m", "ruff", "format", "--check", ".")),
        Step("words", python("tools/check_words.py")),
        # import-linter has no module to run, and its script may lie elsewhere than this Python.
        Step("layers", python("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")),
    ]


def types() -> list[Step]:
    """Types of the sources."""
    return [Step("types", python("-m", "mypy"))]


def workers() -> int:
    """The number of test processes that this machine has processors for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_WORKERS)


def tests(arguments: Sequence[str] = (), n_workers: int | None = None, *, but: str = "freeze or isas") -> list[Step]:
    """The tests that ``arguments`` of pytest select (by default all, ``but`` those with these marks), in two passes.

    First those that can run beside each other, in ``n_workers`` processes: a process that has ended its share takes over half
    of another's rest. Then those marked ``serial``, which need the machine to themselves. ``-m`` among the arguments selects
    among the tests of both passes; marks that it names are not left out.
    """
    n = str(workers() if n_workers is None else n_workers)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", default="")
    own, others = parser.parse_known_args(arguments)
    left_out = [mark for mark in but.split(" or ") if mark not in re.findall(r"\w+", own.m)]
    of_both = ([f"not ({' or '.join(left_out)})"] if left_out else []) + ([f"({own.m})"] if own.m else [])
    parallel = ("-n", n, "--dist", "worksteal", "-m", " and ".join(["not serial", *of_both]))
    # Collecting all tests takes seconds.
    where = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.serial" in path.read_text(encoding="utf-8")
    ]
    names = others or [path.relative_to(ROOT).as_posix() for path in where]
    passes = (NO_TESTS,) if arguments else ()  # all tests are in both passes, or a mark has lost its meaning
    return [
        Step("parallel tests", python("-m", "pytest", *parallel, *others), passes=passes, after=("model",)),
        Step(
            "serial tests",
            python("-m", "pytest", "-m", " and ".join(["serial", *of_both]), *names),
            passes=passes,
            after=("types",),
        ),
    ]


def freeze() -> list[Step]:
    """The tests that freeze a program with PyInstaller, with kernels packed for its users."""
    return [Step("freeze", python("-m", "pytest", "-m", "freeze", "tests/test_frozen.py"))]


def core() -> list[Step]:
    """All that a change to the package itself has to pass."""
    model = Step("model", python("-m", "gumba", "pull", "smollm2-135m-instruct"), background=True)
    beside = [replace(step, background=True) for step in types()]
    return [model, *lint(), *beside, *tests()]


#: The named parts of CI, each with a time of its own.
PARTS = {"core": core, "packs": freeze}
