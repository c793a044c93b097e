"""Bulyan over Krum (El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML)."""

from collections.abc import Sequence

import numpy as np

from aggregator_service.domain.sorted_rows import sorted_rows
from aggregator_service.domain.strategies.krum import KrumScores
from aggregator_service.domain.strategies.median import middle_of
from fl_protocol.dtypes import Float64Array, Values


def select(squared_distances: Float64Array, *, num_byzantine: int) -> Sequence[int]:
    """Gives the numbers of n - 2 num_byzantine updates, ascending: Krum's choice again and again among the rest."""
    krum = KrumScores(squared_distances, num_byzantine)
    return sorted(krum.take_best() for _ in range(len(squared_distances) - 2 * num_byzantine))


def mean_around_median(rows: Values, *, num_byzantine: int) -> Float64Array:
    """Gives each column's mean of all but the 2 num_byzantine values that are farthest from its median.

    Of two values equally far the smaller one stays. `rows` are [m, k] floats, m > 2 num_byzantine, and are overwritten.
    Sums run in float64 in ascending order.
    """
    num_left_out = 2 * num_byzantine
    num_kept = len(rows) - num_left_out
    ascending = sorted_rows(rows, range(len(rows)))
    middle = [ascending[rank].astype(np.float64) for rank in middle_of(len(rows))]
    median = middle[0] if len(middle) == 1 else (middle[0] + middle[1]) * 0.5
    # The values nearest the median are neighbours. Their run starts one rank higher for each pair of ranks
    # (rank, rank + num_kept) whose upper value is nearer; from a pair where it is not, it is not in any higher pair.
    upper_is_nearer = [ascending[rank + num_kept] - median < median - ascending[rank] for rank in range(num_left_out)]
    total = np.zeros(rows.shape[1])
    for rank, values in enumerate(ascending):
        added = values.astype(np.float64)
        if rank < num_left_out:
            added[upper_is_nearer[rank]] = 0.0
        if rank >= num_kept:
            added[~upper_is_nearer[rank - num_kept]] = 0.0
        total += added
    total /= num_kept
    return total
