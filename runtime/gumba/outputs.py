"""Results of generation: one ``StreamOutput`` per token, or one ``RequestOutput`` per request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Why a request ended: "stop": an end-of-generation token, stop token or stop string; "length": max_tokens or a full context.
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Wall-clock times of one request in seconds. Other requests may run in the same steps."""

    #: From submission to the first step that processes part of the prompt.
    queue_s: float
    #: From there to the first generated token (to the end, without one).
    prompt_s: float
    #: From the first generated token to the last.
    decode_s: float
    #: Number of tokens of the prompt.
    prompt_tokens: int
    #: Number of generated tokens, including one that ended the request.
    generated_tokens: int
    #: Tokens of the prompt that were in the prefix cache.
    cached_tokens: int = 0

    @property
    def prompt_tokens_per_s(self) -> float:
        """Speed of prefill over the tokens that were not cached; 0 without a measurable time."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of decoding over the tokens after the first, which belongs to prefill; 0 without any."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 and self.generated_tokens > 1 else 0.0


@dataclass(frozen=True)
class Logprobs:
    """Log-probability of one token, and the most likely alternatives, from the model's logits before any sampler.

    ``logprob`` is the natural logarithm of the token's probability, the log-softmax of the logits in float64; ``rank`` its
    rank among all tokens from 1 (ties by ascending id); ``top`` the ids and log-probabilities of the most likely tokens, best
    first, as many as the request set.
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

    def as_dict(self) -> dict[str, object]:
        """The entry of ``tool_calls`` in OpenAI's messages."""
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.function.name, "arguments": self.function.arguments},
        }


@dataclass(frozen=True)
class StreamOutput:
    """One step of a stream.

    ``text`` is the new text: complete characters without any part of a stop string, so it can be empty or belong to several
    tokens. ``token_id`` is the new token (None if the request was cancelled), ``index`` counts tokens from 0, ``choice`` the
    answers to one prompt. ``finish_reason``, ``timings`` and ``tool_calls`` (chats only) are set on the last step of an answer;
    ``logprobs`` on each step with a token if ``SamplingParams.logprobs`` is set. ``reasoning`` is new text of a chat's
    reasoning, which is not in ``text``. ``stop_reason``: see CompletionOutput.
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
    """One answer to a prompt; ``index`` counts them from 0.

    ``token_ids`` are all generated tokens, including the one that ended the answer; ``text`` is their text without a final
    special token or stop string. ``logprobs`` has one entry per token if ``SamplingParams.logprobs`` is set. In a chat,
    ``reasoning`` is the model's reasoning (None without any), which is not in ``text``, and ``tool_calls`` are its calls of
    tools. ``stop_reason`` is the string of ``SamplingParams.stop``, or the token of ``stop_token_ids``, that ended the answer;
    None if it ended for another reason.
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
        """Sum of the tokens' log-probabilities; None without ``logprobs``."""
        return None if self.logprobs is None else sum(token.logprob for token in self.logprobs)


@dataclass(frozen=True)
class RequestOutput:
    """The result of one request: its answers; properties return the fields of the first one.

    ``prompt`` is the text of the prompt, None for a prompt of token ids. ``prompt_logprobs`` has one entry per token of the
    prompt, None for the first, if ``SamplingParams.prompt_logprobs`` is set.
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
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].text

    @property
    def reasoning(self) -> str | None:
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].tool_calls

    @property
    def token_ids(self) -> list[int]:
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].stop_reason

    @property
    def timings(self) -> Timings:
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].timings

    @property
    def logprobs(self) -> list[Logprobs] | None:
        """The first answer's, see ``CompletionOutput``."""
        return self.outputs[0].logprobs


@dataclass(frozen=True)
class BeamSearchSequence:
    """One answer of beam search.

    ``token_ids`` are all generated tokens, including the one that ended the answer; ``text`` is their text without a final
    special token. ``cumulative_logprob`` is the sum of the tokens' log-probabilities after temperature and repetition penalty;
    ``score`` ranks the answers: that sum, less diversity penalties, divided by the length to the power of the length penalty.
    """

    text: str
    token_ids: list[int]
    cumulative_logprob: float
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True)
class BeamSearchOutput:
    """The answers of beam search to one prompt, best first; ``prompt`` is its text, None for token ids."""

    prompt: str | None
    prompt_token_ids: list[int]
    sequences: list[BeamSearchSequence]
    timings: Timings


@dataclass(frozen=True)
class KVUsage:
    """Pages of the KV cache: all, those in use by requests, and those kept in the prefix cache only.

    ``window_pages``, ``window_in_use``, ``window_kept``: the same for layers with sliding-window attention if they have their
    own pages; a request frees those that its window has passed. ``states``, ``states_in_use``, ``states_kept``: the same for
    the states of recurrent layers, one per request and one per cached prefix.
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
