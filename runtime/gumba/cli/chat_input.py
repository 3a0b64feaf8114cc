"""Input of ``gumba chat``: messages of one or several lines, and the history of lines."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gumba.cli.terminal import note
from gumba.errors import RequestError
from gumba.files import write_file

#: Maximum number of lines in the history, and of characters of a line; longer lines are not kept.
MAX_LINES, MAX_CHARACTERS = 1000, 4000
_QUOTES = '"""'
_QUOTED = re.compile(rf"\s*(/\S+\s+)?{_QUOTES}")


class Lines:
    """Reads the user's messages and commands.

    A backslash at the end of a line joins the next one to it. Triple quotes at the beginning of a line, or after the name of
    a command, join lines until the one that ends in triple quotes. ``keep`` is called with each line.
    """

    def __init__(self, interactive: bool, keep: Callable[[str], None] | None = None) -> None:
        self._interactive = interactive
        self._keep = keep
        self._entry = _Entry()
        self._ended = False
        self._number = 0

    def read(self) -> tuple[str, bool] | None:
        """The next input, and whether it is a message even if it begins with a slash (quoted); None at the end."""
        while True:
            line = self._line()
            if line is None:
                entry, self._entry = self._entry, _Entry()
                return (entry.text, entry.is_message) if entry.text.strip() else None
            if self._keep is not None:
                self._keep(line)
            if self._entry.add(line):
                entry, self._entry = self._entry, _Entry()
                if entry.text.strip():
                    return entry.text, entry.is_message

    def forget(self) -> None:
        """Discard the lines of an incomplete message."""
        self._entry = _Entry()

    def _line(self) -> str | None:
        """One line without its end; None at the end of input."""
        while self._interactive:
            try:
                return input("... " if self._entry.open else "> ").rstrip("\r\n")
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


class _Entry:
    """The joined lines of one input: ``text`` so far; ``open``: more lines follow."""

    def __init__(self) -> None:
        self.text = ""
        self.open = self._quoted = self.is_message = False

    def add(self, line: str) -> bool:
        """Add a line; True if it is the last one."""
        if self._quoted:
            return self._add_quoted(line)
        if not self.open and (match := _QUOTED.match(line)):
            self.text, self.is_message = match[1] or "", not match[1]
            self._quoted = self.open = True
            rest = line[match.end() :]
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
        if end == _QUOTES:  # on their own line: the line break before them is not part of the message
            self.text = self.text.removesuffix("\n")
        return True


class _Editor(Protocol):
    """The member of the module ``readline`` that ``History`` uses."""

    def add_history(self, line: str, /) -> None: ...


class History:
    """The input history of this run and earlier ones, for readline, in a file that only the user can read.

    Errors of reading or writing the file are ignored.
    """

    def __init__(self, path: Path, editor: _Editor) -> None:
        self._path = path
        self._last = ""
        for line in self._read():
            editor.add_history(line)
            self._last = line

    def keep(self, line: str) -> None:
        """Append a line to the file, unless it is empty, too long, or equal to the last one."""
        if not line.strip() or len(line) > MAX_CHARACTERS or line == self._last:
            return
        self._last = line
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)  # never wait for a FIFO
            with os.fdopen(os.open(self._path, flags, 0o600), "ab") as file:
                file.write((line + "\n").encode("utf-8", "replace"))

    def _read(self) -> list[str]:
        """The last lines of the file, which is shortened to them if it is too long."""
        max_bytes = MAX_LINES * MAX_CHARACTERS * 4
        with contextlib.suppress(OSError):
            if self._path.is_file():
                if os.name == "posix":
                    self._path.chmod(0o600)
                with self._path.open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
                    data = file.read(max_bytes)
                lines = data.decode("utf-8", "replace").split("\n")
                kept = ["".join(c for c in line if c.isprintable() or c == "\t") for line in lines]
                kept = [line for line in kept if line.strip() and len(line) <= MAX_CHARACTERS][-MAX_LINES:]
                if len(lines) > MAX_LINES + 1:  # the last is empty
                    self._write(kept)
                return kept
        return []

    def _write(self, kept: list[str]) -> None:
        write_file(self._path, "".join(line + "\n" for line in kept).encode("utf-8", "replace"), mode=0o600)


def open_history(path: Path | None) -> History | None:
    """Enable line editing, and return the history in ``path``; None without readline, or without a path (not kept)."""
    try:
        import readline
    except ImportError:  # Windows, whose console has its own history
        return None
    return None if path is None else History(path, readline)
