"""Harmony, the answer format of gpt-oss: messages in channels (github.com/openai/harmony).

::

    <|channel|>analysis<|message|>We ...<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>
    <|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Bonn"}<|call|>
"""

from __future__ import annotations

import re

from gumba.chat.output_parser import Delta, MarkerScanner
from gumba.chat.tool_parsers.base import Call, Tools, make_call

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>", START)
TEXTS = (CHANNEL, MESSAGE, "<|constrain|>", *ENDS)
_RECIPIENT = re.compile(r"(?<!\S)to=(\S+?)(?=<\||\s|\Z)")
_CHANNEL = re.compile(r"\s*([\w.-]*)")
#: Maximum length of a header in characters; of a longer one only the end is read.
_MAX_HEADER = 1000


class HarmonySplitter:
    """Splits an answer by its channels.

    The final channel, and a message without a channel, are the answer; a message to an offered function is a call; every
    other channel is reasoning. A malformed call, or one to an unknown function, is text of the answer, or reasoning in the
    analysis channel.

    A header ends at ``<|message|>``; a header that ends otherwise, and text between messages, are dropped. An answer that does
    not begin with a header passes unchanged.

    Args:
        tools: The offered tools; None: no calls are parsed.
        header: The part of the first header that the prompt contains.
    """

    def __init__(self, tools: Tools | None, header: str = "") -> None:
        self._tools = tools
        self._scanner = MarkerScanner((CHANNEL, MESSAGE, *ENDS))
        #: start, plain (text without headers), header, message, between (messages)
        self._state = "start"
        self._header: list[str] = []
        self._kind, self._name = "content", ""
        self._channel = ""
        self._held: list[str] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[Call] = []
        #: Whether there is earlier reasoning, from which a line break separates the next, and whether this message has begun.
        self._reasoned = self._begun = False
        self.push(header)

    def push(self, text: str) -> Delta:
        """See ``Splitter``."""
        for plain, marker in self._scanner.push(text):
            self._text(plain)
            if marker:
                self._mark(marker)
        delta = Delta("".join(self._content), "".join(self._reasoning))
        self._content, self._reasoning = [], []
        return delta

    def finish(self) -> Delta:
        """See ``Splitter``."""
        self._text(self._scanner.finish())
        if self._state == "start" or (self._state == "between" and "".join(self._held).strip()):
            self._content += self._held  # no message follows
        elif self._state == "message":
            self._close()
        self._held = []
        return self.push("")._replace(calls=tuple(self._calls))

    def _text(self, text: str) -> None:
        if self._state == "start":
            self._held.append(text)
            if not text.strip():
                return
            held = "".join(self._held).lstrip()
            if held.startswith("to="):
                self._state, self._header, self._held = "header", [held], []
            elif not "to=".startswith(held):
                self._state = "plain"
                self._content += self._held
                self._held = []
        elif self._state == "plain":
            self._content.append(text)
        elif self._state == "header":
            self._header.append(text)
        elif self._state == "between":
            self._held.append(text)
        elif text:
            self._take(text)

    def _mark(self, marker: str) -> None:
        if self._state == "plain":
            self._content.append(marker)
        elif marker == MESSAGE:
            if self._state == "header":
                self._open()
        elif marker == CHANNEL:
            if self._state == "message":
                self._close()
            if self._state != "header":
                self._header = []
            self._header.append(marker)
            self._state, self._held = "header", []
        else:
            if self._state == "message":
                self._close()
            self._state = "header" if marker == START else "between"
            self._header, self._held = [], []

    def _open(self) -> None:
        """Start a message, whose header is complete."""
        header = "".join(self._header)[-_MAX_HEADER:]
        channels = [match[1] for part in header.split(CHANNEL)[1:] if (match := _CHANNEL.match(part))]
        self._channel = "analysis" if "analysis" in channels else channels[-1] if channels else "final"
        recipients = _RECIPIENT.findall(header.replace(CHANNEL, " "))
        self._name = recipients[-1] if recipients else ""
        calls = self._tools is not None and bool(self._name) and self._name != "assistant"
        self._kind = "call" if calls else "content" if self._channel == "final" and not self._name else "reasoning"
        self._state, self._begun, self._held = "message", False, []

    def _take(self, text: str) -> None:
        """Append text to the current message."""
        if self._kind == "call":
            self._held.append(text)
        elif self._kind == "content":
            self._content.append(text)
        else:
            if self._reasoned and not self._begun:
                self._reasoning.append("\n")
            self._begun = self._reasoned = True
            self._reasoning.append(text)

    def _close(self) -> None:
        """End a message; parse it if it is a call."""
        if self._kind != "call" or self._tools is None:
            return
        text, self._held = "".join(self._held), []
        call = make_call(self._tools, self._name, text)
        if call is not None:
            self._calls.append(call)
        elif text:
            self._kind = "reasoning" if self._channel == "analysis" else "content"
            self._take(text)
