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

#: Number of alternatives shown: default and maximum.
DEFAULT_ALTERNATIVES, MAX_ALTERNATIVES = 3, 20
#: ANSI colours from a minimum probability on: green, cyan, yellow, red.
_COLOURS = ((0.8, "32"), (0.5, "36"), (0.2, "33"), (0.0, "31"))


class View:
    """Collects the probabilities of an answer: ``style`` colours the newest text, ``table`` lists all tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rows: list[tuple[int, Logprobs]] = []
        self._coloured = colours()
        self.style = ""

    def tap(self, steps: Iterator[StreamOutput]) -> Iterator[StreamOutput]:
        """Yield ``steps`` unchanged, and collect their probabilities."""
        for step in steps:
            self.style = ""
            if step.token_id is not None and step.logprobs is not None:
                self._rows.append((step.token_id, step.logprobs))
                if self._coloured:
                    self.style = _colour(math.exp(step.logprobs.logprob))
            yield step

    def table(self) -> None:
        """Write one line per token to stderr: its probability, the token, and the most likely alternatives."""
        for token, logprobs in self._rows:
            others = ", ".join(f"{self._piece(other)} {_percent(logprob)}" for other, logprob in logprobs.top)
            note(f"{_percent(logprobs.logprob):>6}  {self._piece(token)}" + (f"  of {others}" if others else ""))

    def _piece(self, token: int) -> str:
        return f'"{printable(self._tokenizer.token_bytes(token).decode("utf-8", "replace"))}"'


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.1f}%"


def _colour(probability: float) -> str:
    return next((colour for minimum, colour in _COLOURS if probability >= minimum), "31")


def colours() -> bool:
    """Whether stdout shows ANSI colours. Older Windows consoles print them as text; the table suffices there."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain and (os.name != "nt" or "WT_SESSION" in os.environ)
