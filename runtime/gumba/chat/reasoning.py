"""Reasoning between two tags in an answer, such as <think>...</think>."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gumba.chat.output_parser import MAX_UNDECIDED, Delta, MarkerScanner, Trimmer
from gumba.chat.tool_parsers.base import ToolParser, Tools


@dataclass(frozen=True)
class Tags:
    """The opening and closing tag of reasoning; ``dropped``: pairs of markers around the answer, which are removed."""

    opening: str
    closing: str
    dropped: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All tags and markers."""
        return (self.opening, self.closing, *self.dropped)


class _Code:
    """Tracks whether the end of a streamed text is inside Markdown code."""

    _RUN = re.compile("`+")

    def __init__(self) -> None:
        self._fenced = self._in_span = False
        #: The start of the last line, which shows whether it is a fence, and the last character of the text.
        self._line = self._last = ""

    def push(self, text: str) -> None:
        """Append a piece of the text."""
        first, *others = text.split("\n")
        self._extend(first)
        for line in others:
            self._fenced ^= self._line.startswith(("```", "~~~"))
            self._line = self._last = ""
            self._in_span = False
            self._extend(line)

    def _extend(self, part: str) -> None:
        for run in self._RUN.finditer(part):
            self._in_span ^= run.start() > 0 or self._last != "`"
        self._last = part[-1:] or self._last
        self._line = (self._line + (part[:8] if self._line else part.lstrip()[:8]))[:8]

    def __bool__(self) -> bool:
        return self._fenced or self._in_span

    @property
    def opens_span(self) -> bool:
        """Whether the last character is a backtick that opens code within a line."""
        return self._in_span and self._last == "`"

    @property
    def at_line_start(self) -> bool:
        """Whether the last line is blank so far."""
        return not self._line


class ReasoningSplitter:
    """Separates reasoning from the answer, and drops white space around the reasoning.

    - Everything between an opening and a closing tag is reasoning, also in the middle of the answer, but not in Markdown
      code or in calls. Unclosed reasoning extends to the end.
    - If a second closing tag may follow (the reasoning is empty although the prompt opened it, or it contains another
      opening tag), the text after the first one is held until that tag, and is reasoning too, or until the end.
    - An unclosed opening tag in the middle of a line of the answer is text. So is an unopened closing tag, except at the
      start of the answer or right after another closing tag.

    Args:
        tags: The model's tags.
        opened: Whether the prompt ends with the opening tag.
        parser: Parser of calls to ``tools``, whose text is not searched for tags.
    """

    def __init__(self, tags: Tags, opened: bool, parser: ToolParser | None = None, tools: Tools | None = None) -> None:
        self._tags, self._parser, self._tools = tags, parser, tools
        self._calls, self._calls_end = ((), ()) if parser is None else (parser.markers, parser.closing)
        #: The beginning of the answer, which may be a call without a marker.
        self._beginning = ""
        self._scanner = MarkerScanner(tuple(dict.fromkeys((*tags.texts, *self._calls, *self._calls_end))))
        #: start, reasoning, after (the closing tag), doubt (a second closing tag may follow), answer, inner (reasoning in
        #: the answer), call.
        self._state = "reasoning" if opened else "start"
        #: Whether the prompt opened the reasoning, whether the answer repeated its tag, and the number of nested tags.
        self._opened, self._repeated, self._nested = opened, False, 0
        self._reasoned = False
        #: Whether earlier reasoning exists, from which a line break separates the next.
        self._again = False
        #: Whether the reasoning in the answer began on a line of its own.
        self._inner_at_start = False
        self._thought, self._lead = Trimmer(leading=True), Trimmer()
        self._code = _Code()
        #: A closing tag after a backtick: it is text if another backtick follows.
        self._quoted = False
        self._held: list[str] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []

    def push(self, text: str) -> Delta:
        """See ``Splitter``."""
        for plain, marker in self._scanner.push(text):
            self._take(plain, marker)
        return self._delta()

    def finish(self) -> Delta:
        """See ``Splitter``."""
        self._text(self._scanner.finish())
        if self._quoted:
            self._close()
        held = "".join(self._held)
        if self._state == "start":
            self._content.append(self._lead.finish())
        elif self._state == "doubt":
            self._content.append(held.lstrip())
        elif self._state == "inner":
            if self._inner_at_start:
                self._begin()
                self._think(held)
            else:
                self._content.append(self._tags.opening + held)
        return self._delta()

    def _delta(self) -> Delta:
        delta = Delta("".join(self._content), "".join(self._reasoning))
        self._content, self._reasoning = [], []
        return delta

    def _take(self, plain: str, marker: str) -> None:
        self._text(plain)
        if not marker:
            return
        if self._quoted:
            self._close()
        tags, state = self._tags, self._state
        if state == "call":
            self._content.append(marker)
            if marker in self._calls_end:
                self._state = "answer"
        elif marker == tags.opening:
            self._open()
        elif marker == tags.closing:
            if state == "reasoning" and self._code.opens_span:
                self._quoted = True
            else:
                self._close()
        elif marker in tags.dropped:
            self._drop(marker)
        elif state in ("start", "after", "answer") and marker in self._calls:
            self._answer(marker)
            self._state = "call"
        else:
            self._text(marker)

    def _text(self, text: str) -> None:
        """Handle text between tags."""
        if not text:
            return
        if self._quoted and not text.startswith("`"):
            self._close()
        elif self._quoted:
            self._quoted = False
            self._think(self._tags.closing)
        if self._state == "reasoning":
            self._think(text)
        elif self._state in ("doubt", "inner"):
            self._held.append(text)
        elif self._state == "call":
            self._content.append(text)
        elif self._state == "answer":
            self._answer(text)
        else:
            text = text.lstrip() if self._state == "after" else self._lead.push(text)
            if text:
                if self._state == "start":
                    text += self._lead.finish()
                self._answer(text)

    def _answer(self, text: str) -> None:
        if self._state == "start":
            self._content.append(self._lead.finish())
        self._state = "answer"
        if len(self._beginning) < MAX_UNDECIDED:
            self._beginning += text[:MAX_UNDECIDED]
        self._code.push(text)
        self._content.append(text)

    @property
    def _in_call(self) -> bool:
        """Whether the answer begins with a call without a marker."""
        if self._parser is None or self._tools is None:
            return False
        return self._parser.starts(self._beginning[:MAX_UNDECIDED], self._tools) is True

    def _think(self, text: str) -> None:
        self._code.push(text)
        text = self._thought.push(text)
        if text and self._again:
            text = "\n" + text
        if text:
            self._again = False
            self._reasoned = True
            self._reasoning.append(text)

    def _open(self) -> None:
        """Handle an opening tag."""
        if self._state == "doubt":  # text before a new opening tag belongs to the answer
            held, self._held = "".join(self._held).lstrip(), []
            self._state = "after"
            if held:
                self._answer(held)
        if self._state == "reasoning":
            begun = self._reasoned and not self._again
            if self._opened and not begun and not self._repeated:  # some models repeat the prompt's tag
                self._repeated = True
                return
            self._nested += 1
            if begun:
                self._think(self._tags.opening)
        elif self._state == "answer":
            if self._code or self._in_call:
                self._answer(self._tags.opening)
            else:
                self._state, self._nested, self._inner_at_start = "inner", 0, self._code.at_line_start
        elif self._state == "inner":
            self._nested += 1
            self._held.append(self._tags.opening)
        else:
            self._begin()

    def _begin(self) -> None:
        """Start the reasoning."""
        self._lead.finish()
        self._state, self._opened, self._nested = "reasoning", False, 0
        self._thought, self._code, self._again = Trimmer(leading=True), _Code(), self._reasoned

    def _close(self) -> None:
        """Handle a closing tag."""
        self._quoted = False
        if self._state == "reasoning":
            self._code = _Code()
            uncertain = self._nested > 0 or (self._opened and not self._reasoned)
            self._state = "doubt" if uncertain else "after"
        elif self._state == "doubt":
            held, self._held = "".join(self._held), []
            nested = max(self._nested - 1, 0)
            if held.strip():
                self._begin()
                self._think(held)
                self._code, self._nested = _Code(), nested
                self._state = "doubt" if nested else "after"
        elif self._state == "inner":
            if self._nested:
                self._nested -= 1
                self._held.append(self._tags.closing)
                return
            code, held, self._held = self._code, "".join(self._held), []
            self._begin()
            self._think(held)
            self._state, self._code = "answer", code
        elif self._state == "answer":
            self._answer(self._tags.closing)
        elif self._state == "start":
            self._lead.finish()
            self._state = "after"

    def _drop(self, mark: str) -> None:
        """Handle a marker around the answer; an opening one ends the reasoning."""
        if self._state == "start":
            self._answer("")
        elif self._state in ("reasoning", "doubt", "inner"):
            if self._state == "reasoning" and mark in self._tags.dropped[::2]:
                self._code = _Code()
                self._state = "after"
            elif self._state != "doubt":
                self._text(mark)
