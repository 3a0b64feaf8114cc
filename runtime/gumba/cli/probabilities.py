"""The token-probability view of ``gumba chat``."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gumba.cli.terminal import note, printable

if TYPE_CHECKING:
    from gumba.outputs import Logprobs, StreamOutput
    from gumba.tokenizer.tokenizer import Tokenizer

#: Alternatives shown where no number is given, and at most.
USUAL, MOST = 3, 20
#: Least probability and ANSI colour: green, cyan, yellow, red.
_COLOURS = ((0.8, "32"), (0.5, "36"), (0.2, "33"), (0.0, "31"))


class View:
    """Watches an answer's steps: a ``style`` for the newest text, and a table of all tokens when it has ended."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rows: list[tuple[int, Logprobs]] = []
        self._coloured = colours()
        self.style = ""

    def tap(self, steps: Iterator[StreamOutput]) -> Iterator[StreamOutput]:
        """Hand on ``steps``."""
        for step in steps:
            self.style = ""
            if step.token_id is not None and step.logprobs is not None:
                self._rows.append((step.token_id, step.logprobs))
                if self._coloured:
                    self.style = _colour(math.exp(step.logprobs.logprob))
            yield step

    def table(self) -> None:
        """One line per token on stderr: its probability, the token, and the likeliest ones at its place."""
        for token, found in self._rows:
            others = ", ".join(f"{self._piece(other)} {_percent(logprob)}" for other, logprob in found.top)
            note(f"{_percent(found.logprob):>6}  {self._piece(token)}" + (f"  of {others}" if others else ""))

    def _piece(self, token: int) -> str:
        return f'"{printable(self._tokenizer.token_bytes(token).decode("utf-8", "replace"))}"'


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.1f}%"


def _colour(probability: float) -> str:
    return next((colour for least, colour in _COLOURS if probability >= least), "31")


def colours() -> bool:
    """Whether stdout shows ANSI colours. Older Windows consoles print them as text: the table tells enough there."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain and (os.name != "nt" or "WT_SESSION" in os.environ)
