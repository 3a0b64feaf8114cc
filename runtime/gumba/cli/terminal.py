"""Text in and out: checks that files are UTF-8 text, and removes control characters from what a terminal shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gumba.errors import RequestError
from gumba.progress import size

#: Maximum bytes of a text that a command reads: far beyond any context, and far below the size of memory.
_MAX_TEXT_BYTES = 250_000_000
_KEEP = "\n\t\r"


def printable(text: str) -> str:
    """``text`` on one line, with control characters written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def without_controls(text: str) -> str:
    """``text`` without control characters other than line breaks and tabs, safe to show on a terminal."""
    return "".join(c if c.isprintable() or c in _KEEP or ord(c) > 0x9F else "\N{REPLACEMENT CHARACTER}" for c in text)


def show(text: str, style: str = "") -> None:
    """Write generated text to stdout and flush it; on a terminal without control characters, in the ANSI ``style``."""
    if sys.stdout.isatty():
        text = f"\x1b[{style}m{without_controls(text)}\x1b[0m" if style and text else without_controls(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str = "") -> None:
    """Write one line to stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Write one JSON object to stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def read_text(path: str) -> str:
    """The text of a UTF-8 file, or of stdin for ``-``. Raises RequestError if it is not one, or too long."""
    name = "stdin" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MAX_TEXT_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(_MAX_TEXT_BYTES + 1)
        if len(data) > _MAX_TEXT_BYTES:
            raise RequestError(f"{name} is longer than {size(_MAX_TEXT_BYTES)}")
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror or error}") from error


def argument_text(text: str) -> str:
    """``text`` from the command line. Raises RequestError if it contains bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"the text on the command line is not UTF-8 (character {error.start})") from error
    return text


def table(rows: list[list[str]], *, right: str = "") -> str:
    """``rows`` in columns two spaces apart; the columns whose index is a digit of ``right`` are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if str(i) in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count(n: int, noun: str) -> str:
    """``n`` and ``noun``, in the singular or plural."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
