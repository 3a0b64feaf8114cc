"""Checkpoints of recurrent states: which sequence has which slot, and copies at the ends of prefixes that requests share.

A recurrent state cannot be truncated, so a shared prefix can be reused only if there is a copy of the state at its end:
a checkpoint, at a node of the prefix tree. Checkpoints are made where they are likely to pay (Pan et al. 2024, "Marconi"): at the
end of a prompt's last full page, at intervals in a long prompt, and where requests diverge in the tree. A sequence that ends
or is preempted leaves its own state as one. The least recently used checkpoint is evicted first, and any is evicted when a
sequence needs its slot.

Draft tokens go into a state as all others do. So a sequence that drafts has a copy from before the draft, and rolls back to it
if a draft token was wrong: the right tokens are then computed again, with the one that follows, in one step.

For a model without recurrent layers all of this does nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from gumba.engine.prefix_tree import Node
from gumba.engine.protocols import StatePool
from gumba.engine.sequence import Sequence

#: Maximum number of checkpoints (a quarter of the slots if that is more), and about how many one prompt gets besides the last.
MAX_CHECKPOINTS, PER_PROMPT = 32, 8
#: Minimum number of pages between the checkpoints of one prompt.
MIN_PAGES_BETWEEN = 8


class SlotHolder(Protocol):
    """What may hold a slot: a sequence or a page lease. ``state``: the slot, whose state is that after ``n_cached`` tokens."""

    state: int
    n_cached: int


class StateCheckpoints:
    """The slots of one model's recurrent states.

    Args:
        states: The pool of slots; None for a model without recurrent layers.
        page_tokens: Tokens per KV page.
    """

    def __init__(self, states: StatePool | None, page_tokens: int) -> None:
        self._states, self._page_tokens = states, page_tokens
        self._limit = MAX_CHECKPOINTS if states is None else max(MAX_CHECKPOINTS, states.n_slots // 4)
        self._nodes: OrderedDict[Node, None] = OrderedDict()  # with a checkpoint, least recently used first

    @property
    def needed(self) -> bool:
        """Whether the model has recurrent layers."""
        return self._states is not None

    @property
    def n_checkpoints(self) -> int:
        """Number of checkpoints."""
        return len(self._nodes)

    def allocate(self, holder: SlotHolder) -> bool:
        """Give ``holder`` a slot, evicting a checkpoint if need be; False if sequences hold all of them."""
        if self._states is None:
            return True
        if self._evict(self._states):
            holder.state = self._states.allocate()
        return holder.state >= 0

    def _evict(self, states: StatePool) -> bool:
        """Make sure that a slot is free, evicting a checkpoint if need be; False if there is none to evict."""
        if not states.n_free and self._nodes:
            self.drop(next(iter(self._nodes)))
        return states.n_free > 0

    def copy(self, source: int, holder: SlotHolder) -> None:
        """Copy the state of slot ``source``, if not -1, to that of ``holder``."""
        if self._states is not None and source >= 0:
            self._states.copy(source, holder.state)

    def free(self, holder: SlotHolder) -> None:
        """Free the slot of ``holder``, if it has one."""
        slot, holder.state = holder.state, -1
        if self._states is not None and slot >= 0:
            self._states.release(slot)

    def can_draft(self, sequence: Sequence) -> bool:
        """Whether a wrong draft of a sequence could be rolled back."""
        states = self._states
        return states is None or (sequence.drafts and (sequence.backup_state >= 0 or self._evict(states)))

    def back_up(self, sequence: Sequence) -> None:
        """Copy a sequence's state before a step that computes draft tokens."""
        if self._states is not None:
            if sequence.backup_state < 0:
                sequence.backup_state = self._states.allocate()
            self._states.copy(sequence.state, sequence.backup_state)

    def roll_back(self, sequence: Sequence) -> None:
        """After a step: if a draft token was wrong, restore the state from before the draft."""
        states = self._states
        if states is not None and sequence.backup_state >= 0 and states.lengths[sequence.state] != sequence.n_cached:
            states.copy(sequence.backup_state, sequence.state)
            sequence.n_cached = states.lengths[sequence.state]

    def free_backup(self, sequence: Sequence) -> None:
        """Free the slot of a sequence's backup, if it has one."""
        slot, sequence.backup_state = sequence.backup_state, -1
        if self._states is not None and slot >= 0:
            self._states.release(slot)

    def tokens_to_next(self, sequence: Sequence) -> int:
        """Tokens up to the sequence's next checkpoint, where a step ends; all that remain if there is none."""
        if self._states is None or not sequence.uses_prefix_cache:
            return sequence.remaining
        every, done = self._interval(sequence), sequence.n_cached
        places = (self._last_place(sequence), sequence.divergence, (done // every + 1) * every, len(sequence.tokens))
        return min(min(place for place in places if place > done) - done, sequence.remaining)

    def due(self, sequence: Sequence) -> bool:
        """Whether a checkpoint is to be made where a sequence is now."""
        done = sequence.n_cached
        here = done in (self._last_place(sequence), sequence.divergence) or done % self._interval(sequence) == 0
        return self._states is not None and done > 0 and done % self._page_tokens == 0 and here

    def _last_place(self, sequence: Sequence) -> int:
        """The end of the last full page before a prompt's last token, which is always computed."""
        return (sequence.n_prompt - 1) // self._page_tokens * self._page_tokens

    def _interval(self, sequence: Sequence) -> int:
        """Tokens between the checkpoints of a sequence's prompt."""
        pages = -(-sequence.n_prompt // (PER_PROMPT * self._page_tokens))
        return max(MIN_PAGES_BETWEEN, pages) * self._page_tokens

    def add(self, node: Node, holder: SlotHolder) -> None:
        """Make a checkpoint at ``node`` from a copy of the holder's state, which is the one at the node's end."""
        if self._states is None or not self._is_current(holder):
            return
        if node.state < 0:
            while len(self._nodes) >= self._limit or (self._nodes and not self._states.n_free):
                self.drop(next(iter(self._nodes)))
            if not self._states.n_free:
                return
            node.state = self._states.allocate()
            self._states.copy(holder.state, node.state)
        self.touch(node)

    def move(self, holder: SlotHolder, node: Node) -> None:
        """Make a checkpoint at ``node`` from the holder's own slot, if the node has none; the holder then has no slot."""
        if self._states is None or not self._is_current(holder):
            return
        if node.state < 0:
            while len(self._nodes) >= self._limit:
                self.drop(next(iter(self._nodes)))
            node.state, holder.state = holder.state, -1
        self.touch(node)

    def _is_current(self, holder: SlotHolder) -> bool:
        """Whether the holder's state is the one after ``n_cached`` tokens: after a failed step it is not."""
        states, slot = self._states, holder.state
        return states is not None and slot >= 0 and states.lengths[slot] == holder.n_cached

    def touch(self, node: Node) -> None:
        """Mark a node's checkpoint, if it has one, as the most recently used."""
        if node.state >= 0:
            self._nodes[node] = None
            self._nodes.move_to_end(node)

    def drop(self, node: Node) -> None:
        """Remove a node's checkpoint, if it has one, and free its slot."""
        if self._states is not None and node.state >= 0:
            del self._nodes[node]
            self._states.release(node.state)
            node.state = -1
