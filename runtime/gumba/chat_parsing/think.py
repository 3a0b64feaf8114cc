"""Reasoning between two tags at the beginning of an answer: <think>...</think> and its kin."""

from __future__ import annotations

from dataclasses import dataclass

from gumba.chat_parsing.answer import Delta, held_back


@dataclass(frozen=True)
class Tags:
    """What reasoning begins and ends with; ``dropped``: marks around the answer, which are left out of it."""

    opening: str
    closing: str
    dropped: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return (self.opening, self.closing, *self.dropped)


class ThinkSplitter:
    """Tells reasoning from the answer; white space around the reasoning is nobody's.

    ``opened``: the prompt ends with the opening tag. An answer without tags passes unchanged; reasoning that does not end is
    all there is.
    """

    def __init__(self, tags: Tags, opened: bool) -> None:
        self._tags = tags
        self._state = "reasoning" if opened else "start"
        #: Whether the prompt opened the reasoning: some models write the tag once more.
        self._repeated = opened
        self._held = ""
        self._began = False

    def push(self, text: str) -> Delta:
        """See ``Splitter``."""
        self._held += text
        content = reasoning = ""
        if self._state == "start" or self._repeated:
            bare = self._held.lstrip()
            if self._tags.opening.startswith(bare) and bare != self._tags.opening:
                return Delta()
            if bare.startswith(self._tags.opening):
                self._state, self._held = "reasoning", bare[len(self._tags.opening) :]
            elif self._state == "start":
                self._state = "answer"
            self._repeated = False
        if self._state == "reasoning":
            reasoning = self._reasoning()
        if self._state == "after":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answer"
        if self._state == "answer":
            content = self._answer(last=False)
        return Delta(content, reasoning)

    def _reasoning(self) -> str:
        if not self._began:
            self._held = self._held.lstrip()
        at = self._held.find(self._tags.closing)
        if at >= 0:
            found, self._held = self._held[:at].rstrip(), self._held[at + len(self._tags.closing) :]
            self._state = "after"
        else:
            end = len(self._held) - held_back(self._held, (self._tags.closing,))
            end = len(self._held[:end].rstrip())
            found, self._held = self._held[:end], self._held[end:]
        self._began = self._began or bool(found)
        return found

    def _answer(self, last: bool) -> str:
        text = self._held
        for mark in self._tags.dropped:
            text = text.replace(mark, "")
        keep = 0 if last else held_back(text, self._tags.dropped)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> Delta:
        """See ``Splitter``."""
        if self._state == "reasoning":
            held, self._held = self._held.rstrip(), ""
            return Delta(reasoning=held if self._began else held.lstrip())
        return Delta(self._answer(last=True))
