"""What generation hands back: one ``StreamOutput`` per token, or one ``RequestOutput`` per request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

#: Why a request ended: an end-of-generation token, stop token or stop string; max_tokens or the context's end;
#: cancelled.
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went. Times are wall-clock seconds, shared with whatever ran in the same steps."""

    #: From submission to the first step that took part of the prompt in.
    queue_s: float
    #: From there to the first generated token (or to the end, when there was none).
    prompt_s: float
    #: From the first generated token to the last.
    decode_s: float
    #: Tokens of the prompt.
    prompt_tokens: int
    #: Tokens generated, one that ended the request included.
    generated_tokens: int
    #: Tokens of the prompt that were there already, because another request began with them.
    cached_tokens: int = 0

    @property
    def prompt_tokens_per_s(self) -> float:
        """Speed of prefill, of the tokens that it had to compute; 0 when nothing could be measured."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of decoding: the tokens after the first, whose time is prefill's; 0 when there were none."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 and self.generated_tokens > 1 else 0.0


@dataclass(frozen=True)
class Logprobs:
    """How likely the model held one token, and which ones it held the likeliest, before any sampler changed that.

    ``logprob`` is the natural logarithm of the token's probability, the log-softmax of the model's logits in float64;
    ``rank`` its place among all tokens from 1 (equal ones by ascending id); ``top`` are the ids and log-probabilities of
    the likeliest tokens, best first, as many as were asked for.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class FunctionCall:
    """The function that a model calls: its name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, with OpenAI's fields."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"

    def as_dict(self) -> dict[str, Any]:
        """As it stands in ``tool_calls`` of OpenAI's messages."""
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.function.name, "arguments": self.function.arguments},
        }


@dataclass(frozen=True)
class StreamOutput:
    """One step of a stream.

    ``text`` is the new text: whole characters, without any part of a stop string, and so sometimes empty or of several
    tokens. ``token_id`` is the new token (None when the request was cancelled), ``index`` counts tokens from 0, ``choice``
    the answers of one prompt. ``finish_reason`` and ``timings`` are set on the last one of an answer only; ``logprobs`` on
    each that has a token, where ``SamplingParams.logprobs`` asks for it. Chats tell ``reasoning``, new text of that kind, from
    the ``text`` of the answer, and have the answer's ``tool_calls`` on its last one. ``stop_reason``: as of CompletionOutput.
    """

    text: str
    token_id: int | None
    index: int
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    choice: int = 0
    logprobs: Logprobs | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class CompletionOutput:
    """One answer to a prompt, the ``index``-th.

    ``token_ids`` are all tokens generated, the one that ended the request included; ``text`` is their text without special
    tokens that ended it and without the stop string. ``logprobs`` has one entry per token where ``SamplingParams.logprobs``
    asks for it. Of a chat, ``reasoning`` is what the model thought (None: nothing), which is not in ``text``, and
    ``tool_calls`` are the tools that it calls. ``stop_reason`` is the string of ``SamplingParams.stop``, or the token of
    ``stop_token_ids``, that ended it; None where it ended for another reason.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    timings: Timings
    logprobs: list[Logprobs] | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: str | int | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the tokens' log-probabilities; None when they were not asked for."""
        return None if self.logprobs is None else sum(each.logprob for each in self.logprobs)


@dataclass(frozen=True)
class RequestOutput:
    """The result of one request: its answers, and the first one's fields as its own.

    ``prompt`` is the text given, None when token ids were. ``prompt_logprobs`` has one entry per token of the prompt, None for
    the first, where ``SamplingParams.prompt_logprobs`` asks for it.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[Logprobs | None] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def text(self) -> str:
        """Of the first answer."""
        return self.outputs[0].text

    @property
    def reasoning(self) -> str | None:
        """Of the first answer."""
        return self.outputs[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Of the first answer."""
        return self.outputs[0].tool_calls

    @property
    def token_ids(self) -> list[int]:
        """Of the first answer."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Of the first answer."""
        return self.outputs[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        """Of the first answer."""
        return self.outputs[0].stop_reason

    @property
    def timings(self) -> Timings:
        """Of the first answer."""
        return self.outputs[0].timings

    @property
    def logprobs(self) -> list[Logprobs] | None:
        """Of the first answer."""
        return self.outputs[0].logprobs


@dataclass(frozen=True)
class BeamSearchSequence:
    """One answer that beam search found.

    ``token_ids`` are all tokens generated, the one that ended it included; ``text`` is their text without special tokens that
    ended it. ``cumulative_logprob`` is the sum of the tokens' log-probabilities, as the search's parameters (temperature,
    repetition penalty) made them; ``score`` is what answers are ranked by: that sum, less diversity penalties, divided by the
    length to the power of the length penalty.
    """

    text: str
    token_ids: list[int]
    cumulative_logprob: float
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True)
class BeamSearchOutput:
    """The answers that beam search found to one prompt, best first; ``prompt`` is the text given, None for token ids."""

    prompt: str | None
    prompt_token_ids: list[int]
    sequences: list[BeamSearchSequence]
    timings: Timings


@dataclass(frozen=True)
class KVUsage:
    """Pages of the KV cache: all, those that requests hold, and those only kept for requests that begin alike.

    ``window_pages``, ``window_in_use``, ``window_kept``: the same for layers that see a window only, where they have pages of
    their own; of these a request gives back what is behind the window while it goes on. ``states``, ``states_in_use``,
    ``states_kept``: the same for the states of recurrent layers, one for each request and one for each beginning kept.
    """

    pages: int
    in_use: int
    kept: int
    page_tokens: int
    window_pages: int = 0
    window_in_use: int = 0
    window_kept: int = 0
    states: int = 0
    states_in_use: int = 0
    states_kept: int = 0
