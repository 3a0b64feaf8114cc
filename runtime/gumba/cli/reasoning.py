"""How a model's reasoning is shown, or not."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from gumba.cli.probabilities import colours
from gumba.cli.terminal import show

if TYPE_CHECKING:
    from gumba.outputs import StreamOutput

#: What ``--reasoning`` knows.
MODES = ("show", "hide", "raw")


def add_reasoning(parser: argparse.ArgumentParser) -> None:
    """``--reasoning``."""
    parser.add_argument(
        "--reasoning",
        choices=MODES,
        help="show or hide the model's reasoning, or leave it in the answer unparsed (default: show on a terminal, hide "
        "elsewhere)",
    )


def form_of(mode: str | None) -> str:
    """``reasoning`` of ``LLM.chat`` for a value of ``--reasoning``."""
    return "off" if mode == "raw" else "auto"


class Shown:
    """Writes an answer's steps to stdout, reasoning dimmed and a blank line behind it."""

    def __init__(self, mode: str | None) -> None:
        self._thoughts = mode == "show" or (mode is None and sys.stdout.isatty())
        self._dim = "2" if colours() else ""
        self._thinking = False

    def show(self, step: StreamOutput, style: str = "") -> None:
        """Write what is new; ``style`` as of ``show``."""
        if step.reasoning and self._thoughts:
            show(step.reasoning, ";".join(filter(None, (self._dim, style))))
            self._thinking = True
        if step.text and self._thinking:
            show("\n\n")
            self._thinking = False
        show(step.text, style)
