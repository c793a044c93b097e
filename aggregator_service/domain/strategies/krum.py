"""Krum and multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries", NeurIPS)."""

from collections.abc import Sequence

import numpy as np

from fl_protocol.dtypes import Float64Array


class KrumScores:
    """Scores updates by their nearest others, and again without those that were taken away."""

    def __init__(self, squared_distances: Float64Array, num_byzantine: int) -> None:
        others = squared_distances.copy()
        np.fill_diagonal(others, np.inf)
        self._order = np.argsort(others, axis=1, kind="stable")
        self._ascending = np.take_along_axis(others, self._order, axis=1)
        self._num_byzantine = num_byzantine
        self._is_left = np.ones(len(others), dtype=np.bool_)

    def scores(self) -> Float64Array:
        """Gives each remaining update's sum of squared distances to its nearest remaining others.

        It is infinity for those that were taken away. Of m updates the m - num_byzantine - 2 nearest count, and one
        where that is less.
        """
        num_left = int(np.count_nonzero(self._is_left))
        num_nearest = min(max(num_left - self._num_byzantine - 2, 1), num_left - 1)
        counted = self._is_left[self._order]
        counted[:, -1] = False  # each update itself, at infinity
        counted &= np.cumsum(counted, axis=1) <= num_nearest
        scores: Float64Array = np.where(counted, self._ascending, 0.0).sum(axis=1)
        scores[~self._is_left] = np.inf
        return scores

    def take_best(self) -> int:
        """Takes away the update with the smallest score, the first of several, and gives its number."""
        best = int(np.argmin(self.scores()))
        self._is_left[best] = False
        return best


def multi_krum(squared_distances: Float64Array, *, num_byzantine: int, num_selected: int) -> Sequence[int]:
    """Gives the numbers of the updates with the best scores, ascending; of equal scores the first ones."""
    scores = KrumScores(squared_distances, num_byzantine).scores()
    return sorted(np.argsort(scores, kind="stable")[:num_selected].tolist())
