#!/usr/bin/env python3
"""Check that no retired word is left in identifiers, docstrings, comments, messages, docs or file names.

    python tools/check_words.py

tools/retired_words.txt lists them, one a line: a word, or a prefix that ends with an asterisk. Words in capitals are
identifiers and match as they are written; the others match whatever their case. CHANGELOG.md may have them, since it tells of
earlier versions.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = Path(__file__).with_name("retired_words.txt")
#: Files that may name the words, and keys of file formats that cannot change any more.
EXEMPT = ("CHANGELOG.md", "tools/check_words.py", "tools/retired_words.txt", "tests/tools/test_check_words.py")
#: Keys of session files, and a model's own prompt.
KEPT = re.compile(r"[\"'`](?:near_from|near_bytes)[\"'`]|Judge whether the Document")
#: Text files that people write; recorded test data is none.
SUFFIXES = (".py", ".md", ".toml", ".sh", ".txt", "")
#: What git ignores, in paths with a slash at both ends.
IGNORED = re.compile(r"/(?:__pycache__|build|dist|[^/]*\.egg-info|\.(?!ci/|gitignore/)[^/]*)/")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Retired:
    """The words of a list: ``lines`` of words, blank lines and comments that begin with ``#``."""

    def __init__(self, lines: Iterator[str] | list[str]) -> None:
        words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        self._prefixes = tuple(word[:-1] for word in words if word.endswith("*"))
        self._capitals = {word for word in words if word.isupper()}
        self._words = {word for word in words if not word.endswith("*") and not word.isupper()}

    def in_line(self, line: str) -> list[str]:
        """The retired words of one line, in its order."""
        hits = []
        for token in re.findall(r"\w+", KEPT.sub("", line)):
            hits += [token for prefix in self._prefixes if token.lstrip("_").lower().startswith(prefix)]
            hits += [token] if token in self._capitals else []
            hits += [part for part in _PARTS.findall(token) if part.lower() in self._words]
        return hits


def files() -> Iterator[Path]:
    """Every file of the repository that people write, except those that may name the words."""
    for name in _names():
        path = ROOT / name
        if path.suffix in SUFFIXES and name not in EXEMPT and not name.startswith("tests/data/") and path.is_file():
            yield path


def _names() -> Iterator[str]:
    """Paths of the repository's files, as git lists them; of a copy without git's folder, all files that git would not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
        yield from filter(None, listing.split("\0"))
        return
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if not IGNORED.search(f"/{name}/") and path.is_file():
            yield name


def main() -> int:
    retired = Retired(WORDS.read_text(encoding="utf-8").splitlines())
    n_hits = 0
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        lines = [(0, name), *enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]
        for number, line in lines:
            for word in retired.in_line(line):
                n_hits += 1
                print(f"{name}:{number}: {word!r} is a retired word: {line.strip()[:100]}")
    if n_hits:
        print(f"{n_hits} retired words; docs/glossary.md has the words in their place", file=sys.stderr)
    return 1 if n_hits else 0


if __name__ == "__main__":
    sys.exit(main())
