"""What a person types at ``gumba chat``: messages of one line or several, and the lines of earlier runs."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gumba.cli.terminal import note
from gumba.errors import RequestError
from gumba.files import write_file

#: Lines that are kept between runs, and characters of one: longer ones are not kept.
MOST_LINES, MOST_CHARACTERS = 1000, 4000
_QUOTES = '"""'
_QUOTED = re.compile(rf"\s*(/\S+\s+)?{_QUOTES}")


class Lines:
    """Reads the user's messages and commands.

    A backslash at the end of a line joins the next one to it. Triple quotes at the beginning of a line, or after the name of
    a command, hold lines together until the one that ends in triple quotes. ``keep`` is called with each line.
    """

    def __init__(self, interactive: bool, keep: Callable[[str], None] | None = None) -> None:
        self._interactive = interactive
        self._keep = keep
        self._held = _Held()
        self._ended = False
        self._number = 0

    def read(self) -> tuple[str, bool] | None:
        """The next one, and whether it is a message whatever it begins with, as those in quotes are; None at the end."""
        while True:
            line = self._line()
            if line is None:
                done, self._held = self._held, _Held()
                return (done.text, done.is_message) if done.text.strip() else None
            if self._keep is not None:
                self._keep(line)
            if self._held.add(line):
                done, self._held = self._held, _Held()
                if done.text.strip():
                    return done.text, done.is_message

    def forget(self) -> None:
        """Begin a new message."""
        self._held = _Held()

    def _line(self) -> str | None:
        """One line without its end; None at the end of input."""
        while self._interactive:
            try:
                return input("... " if self._held.open else "> ").rstrip("\r\n")
            except EOFError:
                note()
                self._interactive, self._ended = False, True
                return None
            except KeyboardInterrupt:
                note()
                self.forget()
        line = b"" if self._ended else sys.stdin.buffer.readline()
        self._number += 1
        try:
            return line.decode().rstrip("\r\n") if line else None
        except UnicodeDecodeError:
            raise RequestError(f"line {self._number} of stdin is not UTF-8 text") from None


class _Held:
    """Lines that go on in the next one: ``text`` is what they are together, ``open`` whether they are any."""

    def __init__(self) -> None:
        self.text = ""
        self.open = self._quoted = self.is_message = False

    def add(self, line: str) -> bool:
        """Whether this is the last one."""
        if self._quoted:
            return self._add_quoted(line)
        if not self.open and (found := _QUOTED.match(line)):
            self.text, self.is_message = found[1] or "", not found[1]
            self._quoted = self.open = True
            rest = line[found.end() :]
            return bool(rest.strip()) and self._add_quoted(rest)
        self.open = line.endswith("\\")
        self.text += line[:-1] + "\n" if self.open else line
        return not self.open

    def _add_quoted(self, line: str) -> bool:
        end = line.rstrip()
        if not end.endswith(_QUOTES):
            self.text += line + "\n"
            return False
        self.text += end[: -len(_QUOTES)]
        if end == _QUOTES:  # on a line of their own: the line break before them is not the message's
            self.text = self.text.removesuffix("\n")
        return True


class History:
    """The lines of this run and of earlier ones, for the editor of lines, in a file that only the user can read.

    Without an editor there is none to keep, and where the file cannot be read or written nothing is said.
    """

    def __init__(self, path: Path, editor: Any) -> None:
        self._path = path
        self._last = ""
        for line in self._read():
            editor.add_history(line)
            self._last = line

    def keep(self, line: str) -> None:
        """Add a line to the file, unless it is empty, too long, or was the last one too."""
        if not line.strip() or len(line) > MOST_CHARACTERS or line == self._last:
            return
        self._last = line
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)  # never wait for a FIFO
            with os.fdopen(os.open(self._path, flags, 0o600), "ab") as file:
                file.write((line + "\n").encode("utf-8", "replace"))

    def _read(self) -> list[str]:
        """The last lines of the file, which is cut down to them when it has become long."""
        most = MOST_LINES * MOST_CHARACTERS * 4
        with contextlib.suppress(OSError):
            if self._path.is_file():
                if os.name == "posix":
                    self._path.chmod(0o600)
                with self._path.open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - most))
                    data = file.read(most)
                found = data.decode("utf-8", "replace").split("\n")
                kept = ["".join(c for c in line if c.isprintable() or c == "\t") for line in found]
                kept = [line for line in kept if line.strip() and len(line) <= MOST_CHARACTERS][-MOST_LINES:]
                if len(found) > MOST_LINES + 1:  # the last is empty
                    self._write(kept)
                return kept
        return []

    def _write(self, kept: list[str]) -> None:
        write_file(self._path, "".join(line + "\n" for line in kept).encode("utf-8", "replace"), mode=0o600)


def open_history(path: Path | None) -> History | None:
    """The history of a terminal's lines; None where lines cannot be edited. With ``path`` None only this run's, unkept."""
    try:
        import readline
    except ImportError:  # Windows, whose console has a history of its own
        return None
    return None if path is None else History(path, readline)
