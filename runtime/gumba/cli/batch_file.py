"""The files of ``gumba batch``: requests read line by line, and results that survive a kill.

Until OUT is complete, ``OUT.part`` holds the results so far, one per line, and ``OUT.part.json`` describes the job that they
belong to. A line that a killed run left incomplete is cut off. In the end ``OUT.part`` is renamed to OUT. Unlike the
temporaries of ``gumba.files`` it keeps its name from run to run, so that the next run can resume.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypedDict

from gumba.errors import RequestError, ResourceError
from gumba.files import write_file

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

#: Maximum length of a line of requests in bytes.
LINE_LIMIT = 64_000_000
#: Version of the format of ``OUT.part`` and ``OUT.part.json``.
_FORMAT = 2


class Input(TypedDict):
    """The file of requests, in a job."""

    bytes: int
    lines: int
    sha256: str


class Job(TypedDict):
    """What the results of a run depend on."""

    gumba: str
    input: Input
    model: str
    options: dict[str, object]


@dataclass(frozen=True)
class _State:
    """The contents of ``OUT.part.json``."""

    job: dict[str, object]
    chosen: dict[str, int]
    replaces: bool


@dataclass(frozen=True)
class Survey:
    """Size, hash and modification time of the file of requests; ``n_requests``: lines that are not blank."""

    n_bytes: int
    n_lines: int
    n_requests: int
    sha256: str
    modified: float


class Lines:
    """Iterates over the lines of a plain file, without blank ones: (number from 1, bytes; None beyond LINE_LIMIT)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        if not path.is_file():
            raise RequestError(f"{path}: {'not a plain file' if path.exists() else 'no such file'}")
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error

    def survey(self, progress: Callable[[int, int], object]) -> Survey:
        """Read the whole file once; ``progress`` is called with the bytes read and the bytes of the file."""
        info = os.fstat(self._file.fileno())
        n_lines = n_requests = n_bytes = 0
        for number, data, size in self._all():
            if number == 1 and data is not None and b"\0" in data:
                raise RequestError(
                    f"{self._path}: expected a JSON object on each line of UTF-8 text, found binary data"
                )
            n_lines, n_bytes = number, n_bytes + size
            n_requests += data is None or bool(data.strip())
            progress(n_bytes, info.st_size)
        return Survey(n_bytes, n_lines, n_requests, self._digest.hexdigest(), info.st_mtime)

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        for number, data, _ in self._all():
            if data is None or data.strip():
                yield number, data

    def check_unchanged(self, survey: Survey) -> None:
        """Raise RequestError if the lines differ from those of the survey."""
        if self._digest.hexdigest() != survey.sha256:
            raise RequestError(f"{self._path} was changed while it was read: give --overwrite to start over")

    def _all(self) -> Iterator[tuple[int, bytes | None, int]]:
        self._file.seek(0)
        self._digest = hashlib.sha256()
        number = 0
        while True:
            data = self._file.readline(LINE_LIMIT + 1)
            if not data:
                return
            number += 1
            self._digest.update(data)
            size, complete, last = len(data), len(data) <= LINE_LIMIT, data
            while not last.endswith(b"\n"):
                last = self._file.readline(LINE_LIMIT)
                if not last:
                    break
                complete = False
                self._digest.update(last)
                size += len(last)
            yield number, data if complete else None, size

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


class Results:
    """The results of a job: those that an earlier run left, and those that this run adds.

    Args:
        out: OUT, the file that the results become.
        requests: The file of requests, which must not be overwritten.
        job: What the results depend on, by names for messages; an earlier run's must be equal to be resumed.
        chosen: Integers that the first run chooses for all later ones ("seed", "created").
        given: Those of ``chosen`` that the user set; an earlier run's must be equal.
        overwrite: Discard the results of earlier runs, and replace OUT.

    Raises RequestError if OUT contains an answer, if an earlier run has another job, or if another process is running it.
    """

    def __init__(
        self,
        out: Path,
        requests: Path,
        job: Job,
        chosen: Mapping[str, int],
        given: Mapping[str, int],
        *,
        overwrite: bool,
    ) -> None:
        self._out = out
        self._part = out.with_name(out.name + ".part")
        self._state_path = out.with_name(out.name + ".part.json")
        if not out.absolute().parent.is_dir():
            raise RequestError(f"cannot write {out}: there is no folder {out.absolute().parent}")
        for path in (out, self._part, self._state_path):
            if path.exists() and (not path.is_file() or path.samefile(requests)):
                raise RequestError(f"{path} is {'a file of requests' if path.is_file() else 'not a plain file'}")
        self._done = bytearray(job["input"]["lines"] + 1)
        self.n_kept = self.n_kept_errors = 0
        self._file = self._open()
        try:
            if not overwrite:
                chosen = self._resume(job, chosen, given)
            else:
                self._file.truncate(0)
            self._write_state(job, chosen, out.exists())
            self.seed, self.created = chosen["seed"], chosen["created"]
        except BaseException:
            self._file.close()
            raise

    def has(self, number: int) -> bool:
        """Whether the line ``number`` of the requests has a result."""
        return number < len(self._done) and bool(self._done[number])

    def add(self, line: bytes) -> None:
        """Append a result, which then survives the end of this process. Raises ResourceError if the disk is full."""
        with self._writing():
            self._file.write(line)
            self._file.flush()

    def complete(self) -> None:
        """Rename the complete results to OUT. Raises ResourceError if the disk is full."""
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._out)
        self._state_path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"{self._part} cannot be written: {error.strerror or error}; the same command resumes where it stopped"
            ) from error

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:  # the error of the failed write is raised already
            if error is None:
                raise

    def _open(self) -> BinaryIO:
        """Open OUT.part, creating it if needed, and lock it if the system has locks."""
        file = open(os.open(self._part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")  # noqa: PTH123, SIM115
        if fcntl is not None:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise RequestError(f"{self._part}: another gumba batch is writing it") from None
            except OSError:  # a file system without locks
                pass
        return file

    def _resume(self, job: Job, chosen: Mapping[str, int], given: Mapping[str, int]) -> Mapping[str, int]:
        """Keep the results of an earlier run of the same job, if there are any; return the values that it chose."""
        n_bytes = self._file.seek(0, 2)
        state = self._read_state()
        if state is None and n_bytes:
            raise RequestError(f"{self._part} has results of an unknown job: give --overwrite to start over")
        differs = state is None or _difference({**state.job, **state.chosen}, {**job, **state.chosen, **given})
        if state is not None and differs and n_bytes:
            raise RequestError(
                f"{self._part} has results of another job: {differs}. "
                "Repeat the earlier command, or give --overwrite to start over"
            )
        if (state is None or differs or not state.replaces) and _has_answers(self._out):
            if not n_bytes:
                self._part.unlink()
            raise RequestError(f"{self._out} exists already: give --overwrite to replace it")
        if state is None or differs:
            return chosen
        self._keep_results()
        return {name: state.chosen[name] for name in chosen}

    def _read_state(self) -> _State | None:
        """The state that an earlier run wrote; None without a valid one."""
        try:
            state: object = json.loads(self._state_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            return None
        job, chosen = state.get("job"), state.get("chosen")
        if not isinstance(job, dict) or not isinstance(chosen, dict):
            return None
        if any(type(chosen.get(name)) is not int for name in ("seed", "created")):
            return None
        return _State(job, chosen, bool(state.get("replaces")))

    def _keep_results(self) -> None:
        """Mark the lines that have a result, and truncate the file at the first incomplete line."""
        self._file.seek(0)
        end = 0
        for data in self._file:
            number, failed = _result(data)
            if number is None or not 0 < number < len(self._done) or self._done[number]:
                break
            self._done[number] = 1
            self.n_kept += 1
            self.n_kept_errors += failed
            end += len(data)
        self._file.truncate(end)
        self._file.seek(end)

    def _write_state(self, job: Job, chosen: Mapping[str, int], replaces: bool) -> None:
        """Write OUT.part.json; ``replaces``: the results will replace an OUT that exists."""
        state = {"format": _FORMAT, "job": job, "chosen": chosen, "replaces": replaces}
        try:
            write_file(self._state_path, json.dumps(state, indent=1).encode() + b"\n")
        except OSError as error:
            raise ResourceError(f"{self._state_path} cannot be written: {error.strerror or error}") from error


def _result(data: bytes) -> tuple[int | None, bool]:
    """Parse a line of results: the number of the request's line (None if invalid), and whether it failed."""
    if not data.endswith(b"\n"):
        return None, False
    try:
        result = json.loads(data)
        number, failed = result["line"], result.get("response") is None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, False
    return (number if type(number) is int else None), failed


def _has_answers(out: Path) -> bool:
    """Whether ``out`` contains anything but errors."""
    try:
        with out.open("rb") as file:
            return not all(number is not None and failed for number, failed in map(_result, file))
    except FileNotFoundError:
        return False


def _difference(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The first difference between two jobs, for a message; "" without one."""
    titles = {"input": "the requests have changed", "model": "the model differs"}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name in titles:
            return titles[name]
        if isinstance(old, dict) and isinstance(new, dict):
            return _difference(old, new)
        return f"{name} was {old} and is now {new}"
    return ""
