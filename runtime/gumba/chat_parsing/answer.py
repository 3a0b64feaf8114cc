"""Takes an answer apart while it comes: reasoning, answer, calls."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from gumba.chat_parsing.tools import Call, ToolFormat, Tools
from gumba.outputs import CompletionOutput, FunctionCall, StreamOutput, ToolCall

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Delta(NamedTuple):
    """What new text holds. Calls come with the last one."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Splitter(Protocol):
    """Text in pieces to deltas; ``finish`` gives what was held back. However it is cut, the sums are the same."""

    def push(self, text: str, /) -> Delta: ...

    def finish(self) -> Delta: ...


def held_back(text: str, markers: tuple[str, ...]) -> int:
    """How many of the last characters of ``text`` may be the beginning of one of ``markers``."""
    longest = max(map(len, markers), default=1) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(m.startswith(text[-n:]) for m in markers)), 0)


class CallSplitter:
    """Answer and calls. What begins like a call is held back until the end, which tells whether it is one."""

    def __init__(self, form: ToolFormat, tools: Tools) -> None:
        self._form, self._tools = form, tools
        self._held = ""
        self._began = self._collecting = False

    def push(self, text: str) -> str:
        """What is certainly no call."""
        self._held += text
        if self._collecting:
            return ""
        if not self._began:
            verdict = self._form.starts(self._held.lstrip(), self._tools) if self._held.strip() else None
            self._collecting = verdict is True
            if verdict is not False:
                return self._at_marker() if verdict is None and self._marked() else ""
        return self._at_marker()

    def _marked(self) -> bool:
        return any(marker in self._held for marker in self._form.markers)

    def _at_marker(self) -> str:
        found = [at for marker in self._form.markers if (at := self._held.find(marker)) >= 0]
        self._collecting = bool(found)
        end = min(found) if found else len(self._held) - held_back(self._held, self._form.markers)
        end = len(self._held[:end].rstrip())  # white space in front of a call is none of the answer's
        text, self._held = self._held[:end], self._held[end:]
        self._began = self._began or bool(text)
        return text

    def finish(self) -> tuple[str, tuple[Call, ...]]:
        """What is left of the answer, and the calls."""
        if not self._collecting:
            return self._held, ()
        calls, rest = self._form.parse(self._held if self._began else self._held.lstrip(), self._tools)
        if not calls:
            return self._held, ()
        return rest.rstrip() if rest.strip() else "", tuple(calls)


@dataclass(frozen=True)
class AnswerFormat:
    """How a request's answers are taken apart: by ``reasoning`` (it makes a splitter), and ``form`` of calls of ``tools``.

    ``salt``: what the ids of calls are made of, besides the answer. ``texts``: those that have to be shown even if they are
    control tokens.
    """

    reasoning: SplitterMaker | None
    form: ToolFormat | None
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

    def finish(self) -> Delta:
        """What was held back, and the calls."""
        delta = Delta() if self._splitter is None else self._splitter.finish()
        if self._calls is None:
            return delta
        content = self._calls.push(delta.content)
        rest, calls = self._calls.finish()
        return Delta(content + rest, delta.reasoning, delta.calls + calls)

    def step(self, step: StreamOutput) -> StreamOutput:
        """A step of the stream, with its text taken apart."""
        content, reasoning, _ = self.push(step.text)
        if step.finish_reason is None:
            return replace(step, text=content, reasoning=reasoning)
        last = self.finish()
        return replace(
            step,
            text=content + last.content,
            reasoning=reasoning + last.reasoning,
            tool_calls=self.named(last.calls),
        )

    def output(self, output: CompletionOutput) -> CompletionOutput:
        """A whole answer, taken apart."""
        first, last = self.push(output.text), self.finish()
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
