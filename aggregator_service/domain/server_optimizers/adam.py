"""FedAdam (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2): a moving average of squared deltas."""

import numpy as np

from aggregator_service.domain.server_optimizers import adaptive
from aggregator_service.domain.server_optimizers.states import States
from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.server_optimizers import AdamServerOptimizer


def slots(_spec: AdamServerOptimizer) -> tuple[str, ...]:
    """Names the first and the second moment."""
    return (adaptive.FIRST_MOMENT, adaptive.SECOND_MOMENT)


def init(spec: AdamServerOptimizer, num_elements: int) -> States:
    """Gives a first moment of zeros and a second one of tau squared."""
    return np.zeros(num_elements), adaptive.initial_second_moment(spec.tau, num_elements)


def step(
    spec: AdamServerOptimizer, delta: Float64Array, *, base: Float64Array, rate: float, states: States
) -> tuple[Float64Array, States]:
    """Gives base + rate * m / (sqrt(v) + tau), and the new m and v = beta2 * previous v + (1 - beta2) * delta^2."""
    m = adaptive.first_moment(states[0], delta, beta1=spec.beta1)
    v = spec.beta2 * states[1] + (1 - spec.beta2) * (delta * delta)
    return adaptive.step(base, m, v=v, rate=rate, tau=spec.tau), (m, v)
