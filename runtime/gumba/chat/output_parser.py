"""Parses an answer while it streams: reasoning, answer text, tool calls."""

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
    """The parts of new text. Calls come with the last delta."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Splitter(Protocol):
    """Splits streamed text into deltas; ``finish`` returns the pending ones. The concatenated result does not depend on how the
    text is cut into pieces."""

    def push(self, text: str, /) -> Delta: ...

    def finish(self) -> Delta: ...


class MarkerScanner:
    """Splits streamed text at ``markers``, also at markers cut across pieces. No marker may be a prefix of another."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, markers)) or r"(?!)")
        self._prefixes = frozenset(marker[:n] for marker in markers for n in range(1, len(marker)))
        self._longest = max(map(len, self._prefixes), default=0)
        self._pending = ""

    def push(self, text: str) -> list[tuple[str, str]]:
        """Pairs of plain text and the marker after it; the last pair has no marker."""
        text = self._pending + text
        pairs, place = [], 0
        for marker in self._pattern.finditer(text):
            pairs.append((text[place : marker.start()], marker[0]))
            place = marker.end()
        lengths = range(min(self._longest, len(text) - place), 0, -1)
        n_pending = next((n for n in lengths if text[-n:] in self._prefixes), 0)
        end = len(text) - n_pending
        self._pending = text[end:]
        return [*pairs, (text[place:end], "")]

    def finish(self) -> str:
        """Pending text that looked like the start of a marker but is not."""
        pending, self._pending = self._pending, ""
        return pending


class Trimmer:
    """Delays white space until other text follows it.

    ``leading``: drop white space before the first text.
    """

    def __init__(self, *, leading: bool = False) -> None:
        self._drops = leading
        self._spaces: list[str] = []

    def push(self, text: str) -> str:
        """The delayed white space and ``text``, without trailing white space."""
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
        """The delayed white space."""
        spaces, self._spaces = "".join(self._spaces), []
        return spaces


#: An answer that is still undecided after this many characters does not begin with a call.
MAX_UNDECIDED = 512


class CallSplitter:
    """Separates tool calls from the answer. Text that begins like a call is collected until the end, and then parsed."""

    def __init__(self, parser: ToolParser, tools: Tools) -> None:
        self._parser, self._tools = parser, tools
        self._scanner, self._spaces = MarkerScanner(parser.markers), Trimmer()
        self._held: list[str] = []
        self._begun = self._decided = self._collecting = False

    def push(self, text: str) -> str:
        """Text that is certainly not part of a call."""
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
        """The text so far, once it is decided that the answer does not begin with a call without a marker; else ""."""
        bare = text if self._held else text.lstrip()
        if not self._held:
            self._spaces.push(text[: len(text) - len(bare)])
        self._held = ["".join([*self._held, bare])] if bare else self._held
        if not self._held:
            return ""
        starts_call = self._parser.starts(self._held[0][:MAX_UNDECIDED], self._tools)
        if starts_call is None and len(self._held[0]) < MAX_UNDECIDED:
            return ""
        self._decided, self._collecting = True, starts_call is True
        if self._collecting:
            return ""
        text, self._held = self._held[0], []
        return text

    def finish(self, cut: bool = False) -> tuple[str, tuple[Call, ...]]:
        """The rest of the answer, and the calls. ``cut``: see ``ToolParser.parse``."""
        spaces, held = self._spaces.finish(), "".join(self._held) + self._scanner.finish()
        if not self._collecting:
            return spaces + held, ()
        calls, rest = self._parser.parse(held, self._tools, cut)
        if not calls:
            return spaces + held, ()
        rest = (spaces + rest if self._begun else rest).rstrip()
        return rest, tuple(calls)


@dataclass(frozen=True)
class AnswerFormat:
    """How the answers of a request are parsed.

    Args:
        reasoning: Makes the splitter of reasoning; None: the answers have none.
        tool_parser: Parser of the calls; None: no calls are parsed.
        tools: The tools that the request offers.
        salt: Input of the call ids, besides the answer's text.
        texts: Texts that must be part of the answer's text even if they are control tokens.
    """

    reasoning: SplitterFactory | None
    tool_parser: ToolParser | None
    tools: Tools
    salt: bytes = b""
    texts: tuple[str, ...] = ()

    def parser(self) -> AnswerParser:
        """A parser for one answer."""
        return AnswerParser(self)


class SplitterFactory(Protocol):
    """Creates the splitter of one answer."""

    def __call__(self) -> Splitter: ...


class AnswerParser:
    """Parses one answer."""

    def __init__(self, form: AnswerFormat) -> None:
        self._splitter = None if form.reasoning is None else form.reasoning()
        self._calls = None if form.tool_parser is None else CallSplitter(form.tool_parser, form.tools)
        self._digest = hashlib.sha256(form.salt)

    def push(self, text: str) -> Delta:
        """The parts of ``text``, and of pending text, that are certain."""
        self._digest.update(text.encode("utf-8", "surrogatepass"))
        delta = Delta(text) if self._splitter is None else self._splitter.push(text)
        return delta if self._calls is None else delta._replace(content=self._calls.push(delta.content))

    def finish(self, cut: bool = False) -> Delta:
        """The pending text, and the calls. ``cut``: the answer was cut off at the token limit."""
        delta = Delta() if self._splitter is None else self._splitter.finish()
        if self._calls is None:
            return delta
        content = self._calls.push(delta.content)
        rest, calls = self._calls.finish(cut)
        return Delta(content + rest, delta.reasoning, delta.calls + calls)

    def step(self, step: StreamOutput) -> StreamOutput:
        """A step of the stream with its text parsed."""
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
        """A whole answer, parsed."""
        first, last = self.push(output.text), self.finish(_is_cut(output.finish_reason))
        return replace(
            output,
            text=first.content + last.content,
            reasoning=first.reasoning + last.reasoning or None,
            tool_calls=self.named(last.calls),
        )

    def named(self, calls: tuple[Call, ...]) -> tuple[ToolCall, ...]:
        """Calls with ids: the model's, or nine letters and digits (as Mistral's templates require) that differ between turns."""
        named = []
        for index, call in enumerate(calls):
            digest = self._digest.copy()
            digest.update(b"%d" % index)
            number = int.from_bytes(digest.digest(), "big")
            letters = "".join(_LETTERS[number // 62**i % 62] for i in range(9))
            named.append(ToolCall(call.id or letters, FunctionCall(call.name, call.arguments)))
        return tuple(named)
