"""A sequence: the tokens of one request, the KV pages that hold them, and what the next step computes of it."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gumba.engine.prefix_tree import CacheKey, Node
from gumba.errors import EngineError
from gumba.outputs import FinishReason, StreamOutput, Timings
from gumba.sampling.sampler import Sampler

#: Maximum number of logit rows that one sequence requests in a step: each row is as wide as the vocabulary.
MAX_LOGIT_ROWS = 128

#: Which tokens of a chunk get a row of logits.
Outputs = Literal["none", "last", "all"]

#: What a sequence delivers: tokens while it streams, then itself when it has ended.
Delivery: TypeAlias = "StreamOutput | Sequence"


class Fork(NamedTuple):
    """A branch that ends, and the sequences that continue it: their tokens begin with its tokens, computed so far.

    Without children, the branch is dropped.
    """

    parent: Sequence
    children: Ordered[Sequence]


class Sequence(ABC):
    """Tokens of one request, and how many of them the KV cache has: ``tokens[:n_cached]`` lie in ``pages``.

    A preempted sequence loses its pages: it goes back to ``n_cached = 0`` and is recomputed. Results do not depend on how tokens
    are grouped into steps, so nothing else changes. Once submitted, a sequence belongs to the engine's thread, except
    ``cancelled``, which any thread may set, and what ``deliver`` has received.

    Args:
        prompt: Token ids, at least one.
    """

    #: Whether each token is delivered as soon as it is chosen.
    streaming = False
    #: Whether it may start from cached pages and leave its own pages in the cache.
    uses_prefix_cache = True
    #: Whether ``advance`` reads ``hidden``: the final hidden states of the requested rows, float32 [rows, n_embd].
    wants_hidden = False
    hidden: NDArray[np.float32]
    #: Maximum number of tokens to take from the prefix cache.
    max_cached = sys.maxsize
    #: Encoder-decoders: the number of leading tokens that are the source; one step computes all of them.
    n_source = 0
    #: Whether one step has to compute all tokens, since each attends to those after it.
    single_step = False
    #: Whether it is a request by itself; branches of a search belong to another sequence's request.
    is_request = True

    def __init__(self, prompt: Ordered[int]) -> None:
        self.tokens = list(prompt)
        self.n_prompt = len(self.tokens)
        #: Block table: ids of its KV pages.
        self.pages: list[int] = []
        #: Block table of the window pool, as long as ``pages`` or shorter; -1 before the window.
        self.window_pages: list[int] = []
        #: Slot of its recurrent state after ``n_cached`` tokens, -1 while it does not run.
        self.state = -1
        #: Slot of a copy from before draft tokens were computed, -1 for none.
        self.backup_state = -1
        #: Length of the prefix shared with other requests, in tokens, as far as the prefix cache knows.
        self.divergence = 0
        self.n_cached = 0
        #: The node of its last page that is in the prefix cache, and how many of ``pages`` are.
        self.prefix_node: Node | None = None
        self.n_prefix_pages = 0
        #: Prompt tokens that came from the prefix cache.
        self.n_reused = 0
        #: Tokens removed because the context was full; ``shifted``: in this step, so its pages are invalid.
        self.n_dropped = 0
        self.shifted = False
        self.priority = 0
        #: Position in the scheduler's order: priority, then arrival.
        self.rank = (0, 0)
        #: Another sequence that computes the same prompt; this one waits until it has.
        self.leader: Sequence | None = None
        self.prompt_done = False
        #: Receives tokens of a stream, then the sequence itself at its end; called in the engine's thread.
        self.deliver: Callable[[Delivery], object] = lambda item: None
        #: Whether it has nothing to compute until the other branches of its request are computed too.
        self.waiting_on_group = False
        #: Called in the engine's thread during prefill: prompt tokens computed, prompt tokens in all.
        self.on_prompt: Callable[[int, int], object] | None = None
        #: Set by any thread; the engine ends the sequence before its next step.
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self._submitted = time.perf_counter()
        self._started: float | None = None
        self._first: float | None = None
        self._last: float | None = None

    @property
    def remaining(self) -> int:
        """Number of tokens that the KV cache does not have yet."""
        return len(self.tokens) - self.n_cached

    @property
    def min_step_tokens(self) -> int:
        """Minimum number of its tokens that a step can compute."""
        return len(self.tokens) if self.single_step else max(1, self.n_source - self.n_cached)

    def cache_key(self, first: int, last: int) -> CacheKey:
        """Key of ``tokens[first:last]`` in the prefix cache, below the node of the tokens before them.

        The encoder's output for one source token depends on all of them: so the whole source replaces the first token.
        """
        key = tuple(self.tokens[first:last])
        return key if first or not self.n_source else (tuple(self.tokens[: self.n_source]), *key[1:])

    @property
    def drafts(self) -> bool:
        """Whether ``next_tokens`` may add draft tokens."""
        return False

    @property
    def n_generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self.tokens) - self.n_prompt + self.n_dropped

    @property
    def done(self) -> bool:
        """Whether the engine has nothing left to do for it."""
        return self.finish_reason is not None or self.error is not None

    @property
    def ending(self) -> FinishReason:
        """Its finish reason. Raises EngineError if it has not ended, or ended by an error."""
        if self.finish_reason is None:
            raise EngineError("the request has not ended")
        return self.finish_reason

    @property
    def started(self) -> bool:
        """Whether a step has taken part of it."""
        return self._started is not None

    def start(self) -> None:
        """Record that a step is about to take part of it."""
        if self._started is None:
            self._started = time.perf_counter()

    @abstractmethod
    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        """Tokens from ``n_cached`` on to compute in a step, at most ``budget``, and which of them get logits."""

    @abstractmethod
    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        """Process a step that computed ``count`` tokens; ``rows``: the requested logits, valid during the call."""

    def after_step(self) -> Iterable[Fork]:
        """Forks to apply after a step that this sequence was part of, once all its sequences have advanced."""
        return ()

    def cancel(self) -> None:
        """End as cancelled."""
        self.finish_reason = "cancelled"

    def fail(self, error: BaseException) -> None:
        """End with ``error``, which the caller of the request raises."""
        if not self.done:
            self.error = error

    def ended(self) -> None:
        """Deliver the sequence; it is done, and its pages are released."""
        self.deliver(self)

    def timings(self) -> Timings:
        """Times and token counts of the request so far."""
        now = time.perf_counter()
        started = self._started or now
        first = self._first or (now if self._started else started)
        return Timings(
            queue_s=started - self._submitted,
            prompt_s=first - started,
            decode_s=(self._last or first) - first,
            prompt_tokens=self.n_prompt,
            generated_tokens=self.n_generated,
            cached_tokens=self.n_reused,
        )
