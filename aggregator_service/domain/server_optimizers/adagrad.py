"""FedAdagrad (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2): the second moment is the sum of all squared deltas."""

import numpy as np

from aggregator_service.domain.server_optimizers import adaptive
from aggregator_service.domain.server_optimizers.states import States
from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.server_optimizers import AdagradServerOptimizer


def slots(spec: AdagradServerOptimizer) -> tuple[str, ...]:
    """Names the sum of squares, and the first moment where beta1 keeps anything of it."""
    return (adaptive.SECOND_MOMENT, adaptive.FIRST_MOMENT) if spec.beta1 > 0 else (adaptive.SECOND_MOMENT,)


def init(spec: AdagradServerOptimizer, num_elements: int) -> States:
    """Gives a sum of tau squared, and a first moment of zeros."""
    kept = (np.zeros(num_elements),) if spec.beta1 > 0 else ()
    return (adaptive.initial_second_moment(spec.tau, num_elements), *kept)


def step(
    spec: AdagradServerOptimizer, delta: Float64Array, *, base: Float64Array, rate: float, states: States
) -> tuple[Float64Array, States]:
    """Gives base + rate * m / (sqrt(v) + tau) with v = previous v + delta^2, and the new v and m."""
    v = states[0] + delta * delta
    if spec.beta1 == 0:
        return adaptive.step(base, delta, v=v, rate=rate, tau=spec.tau), (v,)
    m = adaptive.first_moment(states[1], delta, beta1=spec.beta1)
    return adaptive.step(base, m, v=v, rate=rate, tau=spec.tau), (v, m)
