"""Takes an answer apart while it comes: reasoning, answer, calls."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from gumba.chat.tool_parsers.base import Call, ToolParser, Tools
from gumba.outputs import CompletionOutput, FunctionCall, StreamOutput, ToolCall

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _is_cut(finish_reason: str | None) -> bool:
    return finish_reason not in (None, "stop")


class Delta(NamedTuple):
    """What new text holds. Calls come with the last one."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Splitter(Protocol):
    """Text in pieces to deltas; ``finish`` gives what was held back. However it is cut, the sums are the same."""

    def push(self, text: str, /) -> Delta: ...

    def finish(self) -> Delta: ...


class MarkerScanner:
    """Splits text that comes in pieces at ``markers``, however it is cut. No marker may begin with another one."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, markers)) or r"(?!)")
        self._beginnings = frozenset(marker[:n] for marker in markers for n in range(1, len(marker)))
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""

    def push(self, text: str) -> list[tuple[str, str]]:
        """Pairs of plain text and the marker after it; the last pair has no marker."""
        text = self._held + text
        found, place = [], 0
        for marker in self._pattern.finditer(text):
            found.append((text[place : marker.start()], marker[0]))
            place = marker.end()
        lengths = range(min(self._longest, len(text) - place), 0, -1)
        kept = next((n for n in lengths if text[-n:] in self._beginnings), 0)
        end = len(text) - kept
        self._held = text[end:]
        return [*found, (text[place:end], "")]

    def finish(self) -> str:
        """Held-back text that looked like the start of a marker, but is not."""
        held, self._held = self._held, ""
        return held


class Trimmer:
    """Holds white space back until other text follows it."""

    def __init__(self, *, leading: bool = False) -> None:
        #: Whether white space in front of everything is dropped.
        self._drops = leading
        self._spaces: list[str] = []

    def push(self, text: str) -> str:
        """The held-back white space and ``text``, without white space at its end."""
        bare = text.rstrip()
        if not bare:
            if not self._drops:
                self._spaces.append(text)
            return ""
        if self._drops:
            self._drops, result = False, bare.lstrip()
        else:
            result = self.finish() + bare
        self._spaces = [text[len(bare) :]]
        return result

    def finish(self) -> str:
        """The white space that was held back."""
        held, self._spaces = "".join(self._spaces), []
        return held


#: Characters after which an answer that may have begun with a call without a marker is none.
MOST_UNDECIDED = 512


class CallSplitter:
    """Answer and calls. What begins like a call is held back until the end, which tells whether it is one."""

    def __init__(self, form: ToolParser, tools: Tools) -> None:
        self._form, self._tools = form, tools
        self._scanner, self._spaces = MarkerScanner(form.markers), Trimmer()
        self._held: list[str] = []
        self._begun = self._decided = self._collecting = False

    def push(self, text: str) -> str:
        """What is certainly no call."""
        if self._collecting:
            self._held.append(text)
            return ""
        if not self._decided:
            text = self._start(text)
        content = []
        for plain, marker in self._scanner.push(text) if text else ():
            if self._collecting:
                self._held += (plain, marker)
                continue
            content.append(self._spaces.push(plain))
            if marker:
                self._collecting = True
                self._held.append(marker)
        if self._collecting:
            self._held.append(self._scanner.finish())
        result = "".join(content)
        self._begun = self._begun or bool(result)
        return result

    def _start(self, text: str) -> str:
        """The text so far when it is clear how the answer begins, and that it is not by a call without a marker."""
        bare = text if self._held else text.lstrip()
        if not self._held:
            self._spaces.push(text[: len(text) - len(bare)])
        self._held = ["".join([*self._held, bare])] if bare else self._held
        if not self._held:
            return ""
        verdict = self._form.starts(self._held[0][:MOST_UNDECIDED], self._tools)
        if verdict is None and len(self._held[0]) < MOST_UNDECIDED:
            return ""
        self._decided, self._collecting = True, verdict is True
        if self._collecting:
            return ""
        text, self._held = self._held[0], []
        return text

    def finish(self, cut: bool = False) -> tuple[str, tuple[Call, ...]]:
        """What is left of the answer, and the calls. ``cut``: see ``ToolParser.parse``."""
        spaces, held = self._spaces.finish(), "".join(self._held) + self._scanner.finish()
        if not self._collecting:
            return spaces + held, ()
        calls, rest = self._form.parse(held, self._tools, cut)
        if not calls:
            return spaces + held, ()
        rest = (spaces + rest if self._begun else rest).rstrip()
        return rest, tuple(calls)


@dataclass(frozen=True)
class AnswerFormat:
    """How a request's answers are taken apart: by ``reasoning`` (it makes a splitter), and ``form`` of calls of ``tools``.

    ``salt``: what the ids of calls are made of, besides the answer. ``texts``: those that have to be shown even if they are
    control tokens.
    """

    reasoning: SplitterMaker | None
    form: ToolParser | None
    tools: Tools
    salt: bytes = b""
    texts: tuple[str, ...] = ()

    def parser(self) -> AnswerParser:
        """Of one answer."""
        return AnswerParser(self)


class SplitterMaker(Protocol):
    """Makes what tells reasoning, and perhaps calls, from the answer."""

    def __call__(self) -> Splitter: ...


class AnswerParser:
    """One answer's."""

    def __init__(self, form: AnswerFormat) -> None:
        self._splitter = None if form.reasoning is None else form.reasoning()
        self._calls = None if form.form is None else CallSplitter(form.form, form.tools)
        self._digest = hashlib.sha256(form.salt)

    def push(self, text: str) -> Delta:
        """What new ``text`` holds for certain."""
        self._digest.update(text.encode("utf-8", "surrogatepass"))
        delta = Delta(text) if self._splitter is None else self._splitter.push(text)
        return delta if self._calls is None else delta._replace(content=self._calls.push(delta.content))

    def finish(self, cut: bool = False) -> Delta:
        """What was held back, and the calls. ``cut``: the answer ended before the model did, at the most tokens allowed."""
        delta = Delta() if self._splitter is None else self._splitter.finish()
        if self._calls is None:
            return delta
        content = self._calls.push(delta.content)
        rest, calls = self._calls.finish(cut)
        return Delta(content + rest, delta.reasoning, delta.calls + calls)

    def step(self, step: StreamOutput) -> StreamOutput:
        """A step of the stream, with its text taken apart."""
        content, reasoning, _ = self.push(step.text)
        if step.finish_reason is None:
            return replace(step, text=content, reasoning=reasoning)
        last = self.finish(_is_cut(step.finish_reason))
        return replace(
            step,
            text=content + last.content,
            reasoning=reasoning + last.reasoning,
            tool_calls=self.named(last.calls),
        )

    def output(self, output: CompletionOutput) -> CompletionOutput:
        """A whole answer, taken apart."""
        first, last = self.push(output.text), self.finish(_is_cut(output.finish_reason))
        return replace(
            output,
            text=first.content + last.content,
            reasoning=first.reasoning + last.reasoning or None,
            tool_calls=self.named(last.calls),
        )

    def named(self, calls: tuple[Call, ...]) -> tuple[ToolCall, ...]:
        """Calls with ids: the model's, or nine letters and digits (as Mistral's templates want) that tell turns apart."""
        found = []
        for index, call in enumerate(calls):
            digest = self._digest.copy()
            digest.update(b"%d" % index)
            number = int.from_bytes(digest.digest(), "big")
            letters = "".join(_LETTERS[number // 62**i % 62] for i in range(9))
            found.append(ToolCall(call.id or letters, FunctionCall(call.name, call.arguments)))
        return tuple(found)
