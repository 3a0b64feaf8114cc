"""Prompt lookup decoding: proposes what followed the last tokens when they occurred before (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence

#: Lengths of the n-grams that are looked up, in order of preference.
NGRAM_SIZES = (4, 3, 2)
#: Length of the first proposal, and of the shortest limit that wrong proposals lead to, in tokens.
FIRST_LIMIT, MIN_LIMIT = 8, 2


class PromptLookup:
    """A drafter for one sequence: an n-gram index of its tokens.

    The length of a proposal adapts: it doubles after one that was right throughout, and shrinks after a wrong one to one more
    than were right.

    Args:
        max_tokens: Maximum length of a proposal.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._limit = min(max_tokens, FIRST_LIMIT)
        #: N-gram -> position after its last occurrence, but for the end of the tokens.
        self._positions: dict[tuple[int, ...], int] = {}
        self._n_indexed = 0
        self._n_before = 0
        self._n_proposed = 0

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        """What followed the last earlier occurrence of the longest known n-gram at the end of ``tokens``."""
        if len(tokens) < self._n_indexed:  # a context shift has changed the history
            self._positions, self._n_indexed = {}, 0
        for end in range(self._n_indexed, len(tokens)):  # without the end itself
            for size in NGRAM_SIZES:
                if end >= size:
                    self._positions[tuple(tokens[end - size : end])] = end
        self._n_indexed = len(tokens)
        self._n_before = len(tokens)
        limit = min(limit, self._limit)
        proposal: list[int] = []
        for size in NGRAM_SIZES:
            position = self._positions.get(tuple(tokens[len(tokens) - size :])) if len(tokens) >= size else None
            if position is not None and limit > 0:
                proposal = list(tokens[position : position + limit])
                break
        self._n_proposed = len(proposal)
        return proposal

    def on_verified(self, n_cached: int) -> None:
        """Adapt the length of the next proposal."""
        right = n_cached - self._n_before
        if right == self._n_proposed:
            self._limit = min(self._max_tokens, 2 * self._limit)
        else:
            self._limit = min(self._max_tokens, max(MIN_LIMIT, right + 1))

    def close(self) -> None:
        """Do nothing: it holds no pages."""
