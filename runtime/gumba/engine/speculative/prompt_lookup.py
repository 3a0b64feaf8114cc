"""Guessing the next tokens from what followed the last ones before (Saxena 2023, "Prompt lookup decoding")."""

from __future__ import annotations

from collections.abc import Sequence

#: Tokens that must have occurred before, the more the better.
LENGTHS = (4, 3, 2)
#: A first guess, and the least of one, in tokens.
FIRST, LEAST = 8, 2


class PromptLookup:
    """A drafter of one sequence; at most ``most`` tokens a guess.

    How many it guesses follows from how many of the last were right.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = min(most, FIRST)
        self._places: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._before = 0
        self._guessed = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """What followed the latest earlier occurrence of the longest known end of ``tokens``."""
        if len(tokens) < self._seen:  # another history than the one before
            self._places, self._seen = {}, 0
        for end in range(self._seen, len(tokens)):  # all but the end itself
            for length in LENGTHS:
                if end >= length:
                    self._places[tuple(tokens[end - length : end])] = end
        self._seen = len(tokens)
        self._before = len(tokens)
        most = min(most, self._now)
        found: list[int] = []
        for length in LENGTHS:
            place = self._places.get(tuple(tokens[len(tokens) - length :])) if len(tokens) >= length else None
            if place is not None and most > 0:
                found = list(tokens[place : place + most])
                break
        self._guessed = len(found)
        return found

    def learn(self, n_cached: int) -> None:
        right = n_cached - self._before
        self._now = min(self._most, 2 * self._now) if right == self._guessed else min(self._most, max(LEAST, right + 1))

    def close(self) -> None:
        """Nothing to give back."""
