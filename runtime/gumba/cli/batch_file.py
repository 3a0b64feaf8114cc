"""The files of ``gumba batch``: requests read line by line, and results that survive a kill.

Beside OUT there are, until it is complete, ``OUT.part`` with the results so far, one whole line each, and ``OUT.part.json``,
which says what they are the results of. A line that a killed run left half written is cut off. ``OUT.part`` becomes OUT by
being renamed.
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
from typing import Any, BinaryIO

from gumba.errors import RequestError, ResourceError
from gumba.files import write_file

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

#: Bytes of one line of requests.
LINE_LIMIT = 64_000_000
#: As ``OUT.part.json`` says it; another number is another format of these files.
_FORMAT = 1


@dataclass(frozen=True)
class Survey:
    """What a first look at the requests finds: ``n_requests`` are the lines that are not blank."""

    n_bytes: int
    n_lines: int
    n_requests: int
    sha256: str
    modified: float


class Lines:
    """The lines of ``path``, a plain file, as (number from 1, bytes; None for those beyond LINE_LIMIT); blank ones left out."""

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
        """Read the whole file once."""
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
        """Raise RequestError unless the lines read since the survey were the same."""
        if self._digest.hexdigest() != survey.sha256:
            raise RequestError(f"{self._path} was changed while it was read: give --overwrite to begin anew")

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
            size, whole, last = len(data), len(data) <= LINE_LIMIT, data
            while not last.endswith(b"\n"):
                last = self._file.readline(LINE_LIMIT)
                if not last:
                    break
                whole = False
                self._digest.update(last)
                size += len(last)
            yield number, data if whole else None, size

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


class Results:
    """The results for ``out``: those that an earlier run of the same has left, and those that are added.

    ``asked`` says of what they are the results, by names that a message can show: what an earlier run says must be the same.
    ``chosen`` are values that the first run chooses for all, integers; those in ``given`` were asked for and must be the
    same too. ``overwrite`` forgets earlier runs, and lets OUT be replaced.

    Raises RequestError when there is an OUT with an answer in it, when an earlier run was one of something else, and when one
    goes on just now.
    """

    def __init__(
        self,
        out: Path,
        requests: Path,
        asked: Mapping[str, Any],
        chosen: Mapping[str, int],
        given: Mapping[str, int],
        *,
        overwrite: bool,
    ) -> None:
        self._out = out
        self._part = out.with_name(out.name + ".part")
        self._said = out.with_name(out.name + ".part.json")
        if not out.absolute().parent.is_dir():
            raise RequestError(f"cannot write {out}: there is no folder {out.absolute().parent}")
        for path in (out, self._part, self._said):
            if path.exists() and (not path.is_file() or path.samefile(requests)):
                raise RequestError(f"{path} is {'a file of requests' if path.is_file() else 'not a plain file'}")
        self._done = bytearray(asked["input"]["lines"] + 1)
        self.n_kept = self.n_kept_errors = 0
        self._file = self._open()
        try:
            if not overwrite:
                chosen = self._earlier(asked, chosen, given)
            else:
                self._file.truncate(0)
            self._keep(chosen, asked, out.exists())
            self.seed, self.created = chosen["seed"], chosen["created"]
        except BaseException:
            self._file.close()
            raise

    def has(self, number: int) -> bool:
        """Whether there is a result for this line of the requests."""
        return number < len(self._done) and bool(self._done[number])

    def add(self, line: bytes) -> None:
        """Write a result: when this returns, it survives the end of this process. Raises ResourceError for a full disk."""
        with self._writing():
            self._file.write(line)
            self._file.flush()

    def complete(self) -> None:
        """All results are there: make OUT of them. Raises ResourceError for a full disk."""
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._out)
        self._said.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"{self._part} cannot be written: {error.strerror or error}; the same command goes on where it stopped"
            ) from error

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written a moment ago still cannot be
            if error is None:
                raise

    def _open(self) -> BinaryIO:
        """OUT.part, made where there is none, and locked where files can be."""
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

    def _earlier(
        self, asked: Mapping[str, Any], chosen: Mapping[str, int], given: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Take over an earlier run's results, if there are any; what that run chose."""
        n_bytes = self._file.seek(0, 2)
        said = self._read_said()
        if said is None and n_bytes:
            raise RequestError(f"{self._part} holds results, but of what is not known: give --overwrite to begin anew")
        differs = said is None or _difference({**said["asked"], **said["chosen"]}, {**asked, **said["chosen"], **given})
        if said is not None and differs and n_bytes:
            raise RequestError(
                f"{self._part} holds results of something else: {differs}. "
                "Go on with what they are of, or give --overwrite to begin anew"
            )
        if (said is None or differs or not said.get("replaces")) and _holds_answers(self._out):
            if not n_bytes:
                self._part.unlink()
            raise RequestError(f"{self._out} exists already: give --overwrite to replace it")
        if said is None or differs:
            return chosen
        self._take_over()
        return {name: said["chosen"][name] for name in chosen}

    def _read_said(self) -> dict[str, Any] | None:
        """What an earlier run wrote down; None where there is nothing of use."""
        try:
            said = json.loads(self._said.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return None
        whole = isinstance(said, dict) and said.get("format") == _FORMAT
        if not whole or not isinstance(said.get("asked"), dict) or not isinstance(said.get("chosen"), dict):
            return None
        return said if all(type(said["chosen"].get(name)) is int for name in ("seed", "created")) else None

    def _take_over(self) -> None:
        """Mark the lines that have a result. From the first that is not whole on, the file is cut off."""
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

    def _keep(self, chosen: Mapping[str, int], asked: Mapping[str, Any], replaces: bool) -> None:
        """Write down what the results are of, and whether they are to replace an OUT."""
        said = {"format": _FORMAT, "asked": asked, "chosen": chosen, "replaces": replaces}
        try:
            write_file(self._said, json.dumps(said, indent=1).encode() + b"\n")
        except OSError as error:
            raise ResourceError(f"{self._said} cannot be written: {error.strerror or error}") from error


def _result(data: bytes) -> tuple[int | None, bool]:
    """The number of the line that a whole line of results is for, and whether it was answered by an error."""
    if not data.endswith(b"\n"):
        return None, False
    try:
        result = json.loads(data)
        number, failed = result["line"], result.get("response") is None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, False
    return (number if type(number) is int else None), failed


def _holds_answers(out: Path) -> bool:
    """Whether something would be lost with ``out``: all but a file of errors alone, where every line was wrong."""
    try:
        with out.open("rb") as file:
            return not all(number is not None and failed for number, failed in map(_result, file))
    except FileNotFoundError:
        return False


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing that is not as it was, for a message; empty when all is."""
    titles = {"input": "the requests have changed", "model": "the model is another"}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name in titles:
            return titles[name]
        if isinstance(old, dict) and isinstance(new, dict):
            return _difference(old, new)
        return f"{name} was {old}, and is {new}"
    return ""
