"""States of models with recurrent layers: which sequence has which slot, and copies for others to begin with.

A state cannot be cut to that of fewer tokens, so a beginning that requests have in common is of use only where somebody has
kept the state at its end: a checkpoint, at a node of the prefix tree. They are made where they pay (Pan et al. 2024, "Marconi"):
at the end of a prompt's last full page, every so many tokens of a long one, and where the tree shows that requests part. A
sequence that ends, or has to wait, leaves its own state. The one not used for longest goes first, and any goes when a sequence
needs its slot.

Guessed tokens go into a state as all others do. So a sequence that guesses has a copy from before, and goes back to it when a
guess was wrong: its right tokens are computed again, with the one that follows, in one step.

For a model without recurrent layers nothing here does anything.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gumba.engine.prefix_cache import Node
    from gumba.engine.sequence import Sequence

#: Checkpoints at most, of all requests (or a quarter of the slots, if that is more); and of one prompt, beside the last, about.
MOST_KEPT, EACH = 32, 8
#: Pages between those, at least.
LEAST_PAGES = 8


class StatePool(Protocol):
    """What is needed of ``gumba.runner.state_pool.States``."""

    @property
    def n_slots(self) -> int: ...

    @property
    def n_free(self) -> int: ...

    @property
    def lengths(self) -> list[int]: ...

    def allocate(self) -> int: ...

    def release(self, slot: int, /) -> None: ...

    def copy(self, source: int, target: int, /) -> None: ...

    def read(self, slot: int, /) -> bytes: ...

    def write(self, slot: int, data: bytes, length: int, /) -> None: ...


class Holder(Protocol):
    """Who may have a slot: a sequence, or somebody who reads or writes a session."""

    state: int
    n_cached: int


class Checkpoints:
    """The slots of one model (``states``: None for one without), whose pages hold ``page_tokens``."""

    def __init__(self, states: StatePool | None, page_tokens: int) -> None:
        self._states, self._size = states, page_tokens
        self._most = MOST_KEPT if states is None else max(MOST_KEPT, states.n_slots // 4)
        self._kept: OrderedDict[Node, None] = OrderedDict()  # the least recently used first

    @property
    def needed(self) -> bool:
        """Whether the model has recurrent layers."""
        return self._states is not None

    @property
    def n_kept(self) -> int:
        """Nodes that have a state."""
        return len(self._kept)

    def take(self, holder: Holder) -> bool:
        """A slot for a sequence; False when other sequences have them all."""
        if self._states is None:
            return True
        if self._room(self._states):
            holder.state = self._states.allocate()
        return holder.state >= 0

    def _room(self, states: StatePool) -> bool:
        """Whether a slot is free, by giving up a checkpoint if need be."""
        if not states.n_free and self._kept:
            self.drop(next(iter(self._kept)))
        return states.n_free > 0

    def copy(self, source: int, holder: Holder) -> None:
        """Let a holder that has a slot begin with the state in another one."""
        if self._states is not None and source >= 0:
            self._states.copy(source, holder.state)

    def free(self, holder: Holder) -> None:
        """Take a sequence's slot back, if it has one."""
        slot, holder.state = holder.state, -1
        if self._states is not None and slot >= 0:
            self._states.release(slot)

    def may_guess(self, sequence: Sequence) -> bool:
        """Whether a wrong guess of a sequence could be undone."""
        states = self._states
        return states is None or (sequence.guesses and (sequence.backup >= 0 or self._room(states)))

    def back_up(self, sequence: Sequence) -> None:
        """Before a sequence that may guess does: remember its state."""
        if self._states is not None:
            if sequence.backup < 0:
                sequence.backup = self._states.allocate()
            self._states.copy(sequence.state, sequence.backup)

    def undo(self, sequence: Sequence) -> None:
        """After a step: if a guess was wrong, go back to before it."""
        states = self._states
        if states is not None and sequence.backup >= 0 and states.lengths[sequence.state] != sequence.n_cached:
            states.copy(sequence.backup, sequence.state)
            sequence.n_cached = states.lengths[sequence.state]

    def free_backup(self, sequence: Sequence) -> None:
        """There will be no more guesses."""
        slot, sequence.backup = sequence.backup, -1
        if self._states is not None and slot >= 0:
            self._states.release(slot)

    def stop(self, sequence: Sequence) -> int:
        """Tokens to the next place of a checkpoint: a step does not go beyond it. All tokens, where there is none."""
        if self._states is None or not sequence.uses_prefix_cache:
            return sequence.remaining
        every, done = self._every(sequence), sequence.n_cached
        places = (self._last(sequence), sequence.divergence, (done // every + 1) * every)
        return min(min(place for place in (*places, len(sequence.tokens)) if place > done) - done, sequence.remaining)

    def due(self, sequence: Sequence) -> bool:
        """Whether a sequence has come to the place of a checkpoint."""
        done = sequence.n_cached
        here = done in (self._last(sequence), sequence.divergence) or done % self._every(sequence) == 0
        return self._states is not None and done > 0 and done % self._size == 0 and here

    def _last(self, sequence: Sequence) -> int:
        """The end of the last full page before a prompt's last token, which is always computed."""
        return (sequence.n_prompt - 1) // self._size * self._size

    def _every(self, sequence: Sequence) -> int:
        return max(LEAST_PAGES, -(-sequence.n_prompt // (EACH * self._size))) * self._size

    def keep(self, node: Node, holder: Holder) -> None:
        """Keep a copy of a sequence's state, which is that at the end of ``node``."""
        if self._states is None or not self._right(holder):
            return
        if node.state < 0:
            while len(self._kept) >= self._most or (self._kept and not self._states.n_free):
                self.drop(next(iter(self._kept)))
            if not self._states.n_free:
                return
            node.state = self._states.allocate()
            self._states.copy(holder.state, node.state)
        self.use(node)

    def give(self, node: Node, holder: Holder) -> None:
        """Keep a sequence's state, as ``keep``, in its own slot, if the node has none; the sequence has none afterwards."""
        if self._states is None or not self._right(holder):
            return
        if node.state < 0:
            while len(self._kept) >= self._most:
                self.drop(next(iter(self._kept)))
            node.state, holder.state = holder.state, -1
        self.use(node)

    def _right(self, holder: Holder) -> bool:
        """Whether its slot holds what it says: not so after a step that failed."""
        states, slot = self._states, holder.state
        return states is not None and slot >= 0 and states.lengths[slot] == holder.n_cached

    def use(self, node: Node) -> None:
        """Note that a node's state, if it has one, is of use."""
        if node.state >= 0:
            self._kept[node] = None
            self._kept.move_to_end(node)

    def drop(self, node: Node) -> None:
        """Give up a node's state, if it has one."""
        if self._states is not None and node.state >= 0:
            del self._kept[node]
            self._states.release(node.state)
            node.state = -1
