"""What FedAdagrad, FedAdam and FedYogi share (Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2).

The aggregated delta is the pseudo-gradient, and points downhill. There is no bias correction, as in the paper: v starts
at tau squared instead of 0, so that the first steps are not divided by next to nothing.
"""

import numpy as np

from fl_protocol.dtypes import Float64Array

FIRST_MOMENT = "first_moment"
SECOND_MOMENT = "second_moment"


def initial_second_moment(tau: float, num_elements: int) -> Float64Array:
    """Gives v before the first round: the smallest that the paper allows."""
    return np.full(num_elements, tau * tau)


def first_moment(previous: Float64Array, delta: Float64Array, *, beta1: float) -> Float64Array:
    """Gives m = beta1 * previous + (1 - beta1) * delta."""
    return beta1 * previous + (1 - beta1) * delta


def step(base: Float64Array, m: Float64Array, *, v: Float64Array, rate: float, tau: float) -> Float64Array:
    """Gives base + rate * m / (sqrt(v) + tau)."""
    return base + rate * (m / (np.sqrt(v) + tau))
