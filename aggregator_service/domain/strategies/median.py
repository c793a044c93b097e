"""The coordinate-wise median (Yin et al. 2018, "Byzantine-Robust Distributed Learning", arXiv 1803.01498)."""

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain.integer_mean import IntegerArray, rounded_mean
from aggregator_service.domain.sorted_rows import sorted_rows
from fl_protocol.dtypes import Float64Array, Values


def middle_of(num_updates: int) -> range:
    """Gives the ranks whose mean is the median: one of an odd number of values, two of an even one."""
    return range((num_updates - 1) // 2, num_updates // 2 + 1)


def median(rows: Values) -> Float64Array:
    """Gives each column's median of float rows [n, k] in float64, rounded once; overwrites `rows`."""
    low, *high = sorted_rows(rows, middle_of(len(rows)))
    result = low.astype(np.float64)
    for other in high:
        result += other
        result *= 0.5
    return result


def integer_median(rows: NDArray[np.int64]) -> IntegerArray:
    """Gives each column's median of integers up to 2^53 in magnitude, rounded half to even; overwrites `rows`."""
    middle = sorted_rows(rows, middle_of(len(rows)))
    return rounded_mean(np.add.reduce(middle), len(middle))
