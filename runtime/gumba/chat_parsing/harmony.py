"""Harmony, the form of gpt-oss: messages in channels (github.com/openai/harmony).

::

    <|channel|>analysis<|message|>We ...<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>
    <|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Bonn"}<|call|>
"""

from __future__ import annotations

import re

from gumba.chat_parsing.answer import Delta, held_back
from gumba.chat_parsing.tools import Call, make_call

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")
TEXTS = (CHANNEL, MESSAGE, "<|constrain|>", *ENDS)
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")


class HarmonySplitter:
    """Analysis, and commentary to nobody, are reasoning; commentary to a function is a call; the rest is the answer.

    An answer that does not begin with a header passes unchanged. ``calls``: whether calls are looked for; otherwise they are
    commentary. ``header``: what the prompt already says of it.
    """

    def __init__(self, calls: bool, header: str = "") -> None:
        self._with_calls = calls
        self._state = "start"
        self._held = header
        self._header = ""
        self._body = ""
        self._calls: list[Call] = []
        #: Of a channel: whether there was anything before, which a line break tells apart.
        self._reasoned = False
        self._begun = False

    def push(self, text: str) -> Delta:
        """See ``Splitter``."""
        self._held += text
        content, reasoning = "", ""
        while True:
            if self._state == "start":
                bare = self._held.lstrip()
                heads = (CHANNEL, "<|start|>", "to=")
                if bare.startswith(heads):
                    self._state = "header"
                elif any(head.startswith(bare) for head in heads):
                    break
                else:
                    self._state = "plain"
            if self._state == "plain":
                content, self._held = content + self._held, ""
                break
            if self._state == "header":
                at = self._held.find(MESSAGE)
                if at < 0:
                    break
                self._header, self._held = self._held[:at], self._held[at + len(MESSAGE) :]
                self._state, self._body, self._begun = "message", "", False
            found = [at for end in ENDS if (at := self._held.find(end)) >= 0]
            end = min(found) if found else len(self._held) - held_back(self._held, ENDS)
            more = self._take(self._held[:end])
            content, reasoning = content + more.content, reasoning + more.reasoning
            self._held = self._held[end:]
            if not found:
                break
            last = self._close()
            content += last.content
            self._held = self._held[len(next(end for end in ENDS if self._held.startswith(end))) :]
            self._state = "header"
        return Delta(content, reasoning)

    @property
    def _kind(self) -> str:
        """What the message is that its header opens."""
        if self._with_calls and _RECIPIENT.search(self._header):
            return "call"
        _, _, channel = self._header.partition(CHANNEL)
        return "reasoning" if channel.startswith(("analysis", "commentary")) else "content"

    def _take(self, text: str) -> Delta:
        """More of a message."""
        if self._kind == "call":
            self._body += text
            return Delta()
        if self._kind == "content":
            return Delta(text)
        if text and self._reasoned and not self._begun:
            text = "\n" + text
        self._begun = self._begun or bool(text)
        self._reasoned = self._reasoned or bool(text)
        return Delta(reasoning=text)

    def _close(self) -> Delta:
        """The end of a message: a call is read. One that is malformed is text."""
        recipient = _RECIPIENT.search(self._header)
        if self._kind != "call" or recipient is None:
            return Delta()
        call = make_call(recipient[1], self._body)
        if call is None:
            return Delta(self._body)
        self._calls.append(call)
        return Delta()

    def finish(self) -> Delta:
        """See ``Splitter``."""
        last = Delta()
        if self._state == "message":
            more = self._take(self._held)
            last = Delta(more.content + self._close().content, more.reasoning)
        elif self._state == "start":
            last = Delta(self._held)
        self._held = ""
        return last._replace(calls=tuple(self._calls))
