"""FedYogi (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2), after Yogi (Zaheer et al. 2018)."""

import numpy as np

from aggregator_service.domain.server_optimizers import adaptive
from aggregator_service.domain.server_optimizers.states import States
from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.server_optimizers import YogiServerOptimizer


def slots(_spec: YogiServerOptimizer) -> tuple[str, ...]:
    """Names the first and the second moment."""
    return (adaptive.FIRST_MOMENT, adaptive.SECOND_MOMENT)


def init(spec: YogiServerOptimizer, num_elements: int) -> States:
    """Gives a first moment of zeros and a second one of tau squared."""
    return np.zeros(num_elements), adaptive.initial_second_moment(spec.tau, num_elements)


def step(
    spec: YogiServerOptimizer, delta: Float64Array, *, base: Float64Array, rate: float, states: States
) -> tuple[Float64Array, States]:
    """Gives base + rate * m / (sqrt(v) + tau), and the new m and v.

    v = previous v - (1 - beta2) * delta^2 * sign(previous v - delta^2): never negative, because it falls by less than
    delta^2 and only where it is larger than that.
    """
    m = adaptive.first_moment(states[0], delta, beta1=spec.beta1)
    square = delta * delta
    v = states[1] - (1 - spec.beta2) * square * np.sign(states[1] - square)
    return adaptive.step(base, m, v=v, rate=rate, tau=spec.tau), (m, v)
