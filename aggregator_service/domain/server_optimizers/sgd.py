"""Stochastic gradient descent on the server; with momentum it is FedAvgM (Hsu et al. 2019, arXiv 1909.06335).

The velocity is kept in float64, whatever the model's type: the model is the only thing that is rounded to its own type,
once a round. An element always goes through the same two operations in the same order, so any tiling gives the same
bits.
"""

import numpy as np

from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.server_optimizers import SgdServerOptimizer


def has_state(spec: SgdServerOptimizer) -> bool:
    """Tells whether a velocity is kept from round to round; without momentum there is none."""
    return spec.momentum > 0


def init(num_elements: int) -> Float64Array:
    """Gives the velocity before the first step: zeros."""
    return np.zeros(num_elements, dtype=np.float64)


def velocity(spec: SgdServerOptimizer, mean: Float64Array, *, previous: Float64Array | None) -> Float64Array:
    """Gives momentum * previous + mean, or the mean itself where no state is kept."""
    if previous is None:
        return mean
    return spec.momentum * previous + mean


def step(spec: SgdServerOptimizer, base: Float64Array, *, velocity: Float64Array) -> Float64Array:
    """Gives base + learning_rate * velocity in float64, one tile of one tensor; the caller rounds it once."""
    with np.errstate(over="ignore", invalid="ignore"):
        return base + spec.learning_rate * velocity
