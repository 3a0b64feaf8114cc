"""``--reasoning``: showing or hiding a model's reasoning."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from gumba.cli.probabilities import colours
from gumba.cli.terminal import show

if TYPE_CHECKING:
    from gumba.outputs import StreamOutput

#: Values of ``--reasoning``.
MODES = ("show", "hide", "raw")


def add_reasoning(parser: argparse.ArgumentParser) -> None:
    """Add ``--reasoning``."""
    parser.add_argument(
        "--reasoning",
        choices=MODES,
        help="show or hide the model's reasoning, or leave it in the answer unparsed (default: show on a terminal, hide "
        "elsewhere)",
    )


def parser_mode(mode: str | None) -> str:
    """``reasoning`` of ``LLM.chat`` for a value of ``--reasoning``."""
    return "off" if mode == "raw" else "auto"


class AnswerWriter:
    """Writes an answer's steps to stdout; reasoning is dimmed and followed by a blank line."""

    def __init__(self, mode: str | None) -> None:
        self._shows_reasoning = mode == "show" or (mode is None and sys.stdout.isatty())
        self._dim = "2" if colours() else ""
        self._in_reasoning = False

    def write(self, step: StreamOutput, style: str = "") -> None:
        """Write the new text of ``step``; ``style`` as of ``gumba.cli.terminal.show``."""
        if step.reasoning and self._shows_reasoning:
            show(step.reasoning, ";".join(filter(None, (self._dim, style))))
            self._in_reasoning = True
        if step.text and self._in_reasoning:
            show("\n\n")
            self._in_reasoning = False
        show(step.text, style)
