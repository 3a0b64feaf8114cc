"""Text in and out: what comes from files and models is not trusted to be text, or to be kind to a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gumba.errors import RequestError
from gumba.progress import size

#: Bytes of text that a command takes in at once: far beyond any context, and far from the end of memory.
_MOST_TEXT = 250_000_000
_KEEP = "\n\t\r"


def printable(text: str) -> str:
    """``text`` on one line, with whatever a terminal would act on written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def tame(text: str) -> str:
    """``text`` with no control characters but line breaks and tabs: what a terminal may be given."""
    return "".join(c if c.isprintable() or c in _KEEP or ord(c) > 0x9F else "\N{REPLACEMENT CHARACTER}" for c in text)


def show(text: str, style: str = "") -> None:
    """Write generated text to stdout at once; a terminal gets it tamed, in the ``style`` of an ANSI sequence if there is one."""
    if sys.stdout.isatty():
        text = f"\x1b[{style}m{tame(text)}\x1b[0m" if style and text else tame(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str = "") -> None:
    """Write one line to stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Write one JSON object to stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def read_text(path: str) -> str:
    """The text of a UTF-8 file, or of stdin for ``-``. Raises ``RequestError`` for anything else."""
    name = "stdin" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MOST_TEXT + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(_MOST_TEXT + 1)
        if len(data) > _MOST_TEXT:
            raise RequestError(f"{name} is longer than {size(_MOST_TEXT)}")
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror or error}") from error


def argument_text(text: str) -> str:
    """``text`` as given on the command line, which may hold bytes that are not text. Raises ``RequestError``."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"the text on the command line is not UTF-8 (character {error.start})") from error
    return text


def table(rows: list[list[str]], *, right: str = "") -> str:
    """``rows`` in columns two spaces apart; the columns whose index is a digit of ``right`` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if str(i) in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count(n: int, thing: str) -> str:
    """``n`` of a thing, in the singular or plural."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
