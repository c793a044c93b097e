"""The coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning", arXiv 1803.01498)."""

import numpy as np

from aggregator_service.domain.sorted_rows import sorted_rows
from fl_protocol.dtypes import Float64Array, Values


def trimmed_mean(rows: Values, *, num_trimmed: int) -> Float64Array:
    """Gives each column's mean without its num_trimmed largest and its num_trimmed smallest values.

    `rows` are [n, k] floats, n > 2 * num_trimmed, and are overwritten. Sums run in float64 in ascending order.
    """
    kept = sorted_rows(rows, range(num_trimmed, len(rows) - num_trimmed))
    total = np.zeros(rows.shape[1])
    for row in kept:
        total += row
    total /= len(kept)
    return total
