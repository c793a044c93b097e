"""Stochastic gradient descent on the server; with momentum it is FedAvgM (Hsu et al. 2019, arXiv 1909.06335).

Nesterov's form is that of Sutskever et al. 2013 as deep-learning libraries write it: the step looks one momentum ahead.
"""

import numpy as np

from aggregator_service.domain.server_optimizers.states import States
from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.server_optimizers import SgdServerOptimizer


def slots(spec: SgdServerOptimizer) -> tuple[str, ...]:
    """Names the velocity, which is kept with momentum only."""
    return ("velocity",) if spec.momentum > 0 else ()


def init(spec: SgdServerOptimizer, num_elements: int) -> States:
    """Gives a velocity of zeros."""
    return tuple(np.zeros(num_elements) for _ in slots(spec))


def step(
    spec: SgdServerOptimizer, delta: Float64Array, *, base: Float64Array, rate: float, states: States
) -> tuple[Float64Array, States]:
    """Gives base + rate * (momentum * velocity + delta), and the new velocity: what is in the brackets.

    With `nesterov` the step is rate * (momentum * new velocity + delta).
    """
    if not states:
        return base + rate * delta, ()
    velocity = spec.momentum * states[0] + delta
    direction = spec.momentum * velocity + delta if spec.nesterov else velocity
    return base + rate * direction, (velocity,)
