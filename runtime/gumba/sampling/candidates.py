"""The candidate tokens of one draw: gathered from a row of logits, filtered, and drawn from."""

from __future__ import annotations

import math

import numpy as np

from gumba.sampling.arrays import Float32Array, Int32Array, Int64Array
from gumba.sampling.kernels import filters as kernels


class Candidates:
    """Candidate tokens of a vocabulary of ``n_vocab``: the first ``n`` of ``ids`` (int32, ascending) and ``logits`` (float64).

    Also holds the scratch memory of the filters, so one thread may use it at a time.
    """

    def __init__(self, n_vocab: int) -> None:
        self.n = 0
        self.ids: Int32Array = np.empty(n_vocab, np.int32)
        self.logits = np.empty(n_vocab, np.float64)
        self._scratch = np.empty(3 * n_vocab + kernels.SCRATCH_EXTRA, np.float64)
        self._number = np.empty(1, np.float64)

    def gather(self, row: Float32Array) -> int:
        """Take all tokens of ``row`` that are not banned; returns their number, or ``-1 - token`` for a non-finite logit."""
        self.n = kernels.gather(row, self.ids, self.logits)
        return self.n

    def gather_top_k(self, row: Float32Array, k: int, blocks: Int32Array, heap: Int64Array) -> int:
        """Take the ``k`` most likely tokens of ``row`` that are not banned; ``blocks`` and ``heap`` are scratch.

        Returns their number, or ``-1 - token`` for a logit that is not finite.
        """
        self.n = kernels.gather_top_k(row, k, blocks, heap, self.ids, self.logits)
        return self.n

    # ------------------------------------------------------------------------------------------------ measures

    def log_total(self) -> float:
        """log(sum(exp(logits - largest)))."""
        total: float = kernels.log_total(self.logits, self.n, self._number, self._scratch)
        return total

    def entropy(self) -> float:
        """Entropy of the candidates' probabilities, in nats."""
        self.log_total()
        return float(self._number[0])

    def deviation(self) -> float:
        """Standard deviation of the logits."""
        deviation: float = kernels.deviation(self.logits, self.n, self._scratch)
        return deviation

    def largest_logit(self) -> float:
        """The largest logit."""
        return float(self.logits[: self.n].max())

    def largest_logits(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The ``count`` largest logits, descending; float64."""
        largest = np.empty(count)
        kernels.largest(self.logits, self.n, largest)
        return largest

    # ------------------------------------------------------------------------------------------------- filters

    def keep_top_k(self, k: int) -> None:
        """Keep the ``k`` most likely candidates (1 or more)."""
        if k < self.n:
            self.n = kernels.top_k(self.ids, self.logits, self.n, k, self._scratch)

    def keep_top_p(self, p: float, min_keep: int) -> None:
        """Keep the most likely candidates until they hold the probability ``p``."""
        self.n = kernels.top_p(self.ids, self.logits, self.n, p, min_keep, self._scratch)

    def keep_typical(self, p: float, min_keep: int) -> None:
        """Keep the candidates whose surprise is nearest the entropy until they hold the probability ``p``."""
        self.n = kernels.typical(self.ids, self.logits, self.n, p, min_keep, self._scratch)

    def keep_within(self, distance: float, min_keep: int) -> None:
        """Keep candidates whose logit is at most ``distance`` below the largest."""
        self.n = kernels.within(self.ids, self.logits, self.n, distance, min_keep, self._scratch)

    def keep_above(self, probability: float, min_keep: int) -> None:
        """Keep candidates of at least this probability."""
        if probability > 0:
            self.keep_within(-math.log(probability) - self.log_total(), min_keep)

    def exclude_top(self, probability: float, min_keep: int) -> None:
        """Drop all candidates of at least this probability but the least likely of them."""
        threshold = -math.inf
        if probability > 0:
            threshold = self.largest_logit() + self.log_total() + math.log(probability)
        self.n = kernels.exclude_top(self.ids, self.logits, self.n, threshold, min_keep)

    # --------------------------------------------------------------------------------- temperature and the draw

    def divide(self, temperature: float, signed: bool) -> None:
        """Divide the logits by ``temperature``, and shift them so that the largest is 0 unless ``signed``."""
        largest = self.largest_logit() if signed else 0.0
        kernels.divide(self.logits, self.n, temperature, self._scratch)
        shift = largest / temperature if temperature else 0.0
        if math.isfinite(shift):
            self.logits[: self.n] += shift

    def draw(self, uniform: float) -> tuple[int, float]:
        """Draw a candidate by its probability, from ``uniform`` in [0, 1); its token and its surprise in bits."""
        token = int(self.ids[kernels.draw(self.logits, self.n, uniform, self._number, self._scratch)])
        return token, float(self._number[0])
