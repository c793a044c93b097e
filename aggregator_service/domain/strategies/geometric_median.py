"""The geometric median of updates (RFA: Pillutla et al. 2022, "Robust Aggregation for Federated Learning", IEEE TSP).

Every iterate of the smoothed Weiszfeld algorithm is a weighted mean of the updates, so that its distance from each of
them follows from their inner products: however many iterations, the updates themselves are read only once before the
final mean.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from fl_protocol.dtypes import Float64Array

WEIGHT_BITS: Final = 29
"""The largest final weight is 2^29, the largest whose product with a float32 is exact in float64."""


def weights_of(
    inner_products: Float64Array, weights: Sequence[int], *, num_iterations: int, smoothing: float
) -> list[int]:
    """Gives each update's integer weight in the geometric median; 0 below 2^-30 of the largest.

    `inner_products` [n, n] may be around any centre; the nearer that is to the updates, the more precise it is. The
    start is the weighted mean. Sums are numpy's own and no matrix product, whose last bits depend on the machine.
    """
    shares = np.array(weights, dtype=np.float64)
    shares /= shares.sum()
    current = shares
    for _ in range(num_iterations):
        current = shares / np.maximum(_distances(inner_products, current), smoothing)
        current /= current.sum()
    quantised = np.rint(np.ldexp(current / current.max(), WEIGHT_BITS))
    return [int(weight) for weight in quantised]


def _distances(inner_products: Float64Array, weights: Float64Array) -> Float64Array:
    """Gives each update's distance from the mean with these weights, which add up to 1."""
    with_mean = (inner_products * weights).sum(axis=1)
    squares = inner_products.diagonal() - 2 * with_mean + (with_mean * weights).sum()
    distances: Float64Array = np.sqrt(np.maximum(squares, 0.0))
    return distances
