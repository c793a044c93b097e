"""The server optimizer that a spec names, as one function of a tile."""

import numpy as np

from aggregator_service.domain.server_optimizers import adagrad, adam, sgd, yogi
from aggregator_service.domain.server_optimizers.states import States
from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.schedules import learning_rate
from fl_protocol.specs.server_optimizers import (
    AdagradServerOptimizer,
    AdamServerOptimizer,
    AnyServerOptimizer,
    SgdServerOptimizer,
    YogiServerOptimizer,
)


def slots(spec: AnyServerOptimizer) -> tuple[str, ...]:
    """Names the arrays that the optimizer keeps from round to round, in the order in which they are stored."""
    match spec:
        case SgdServerOptimizer():
            return sgd.slots(spec)
        case AdagradServerOptimizer():
            return adagrad.slots(spec)
        case AdamServerOptimizer():
            return adam.slots(spec)
        case YogiServerOptimizer():
            return yogi.slots(spec)


def init(spec: AnyServerOptimizer, num_elements: int) -> States:
    """Gives the arrays before the first round."""
    match spec:
        case SgdServerOptimizer():
            return sgd.init(spec, num_elements)
        case AdagradServerOptimizer():
            return adagrad.init(spec, num_elements)
        case AdamServerOptimizer():
            return adam.init(spec, num_elements)
        case YogiServerOptimizer():
            return yogi.init(spec, num_elements)


def step_tile(
    spec: AnyServerOptimizer, round_number: int, *, delta: Float64Array, base: Float64Array, states: States
) -> tuple[Float64Array, States]:
    """Gives the new values of one tile of one tensor, not yet rounded to the model's type, and the new states.

    `round_number` counts from 1 and decides the learning rate; another attempt at a round has the same one. What
    overflows becomes infinite or NaN; the caller looks.
    """
    rate = learning_rate(spec.schedule, spec.learning_rate, round_number)
    with np.errstate(over="ignore", invalid="ignore"):
        match spec:
            case SgdServerOptimizer():
                return sgd.step(spec, delta, base=base, rate=rate, states=states)
            case AdagradServerOptimizer():
                return adagrad.step(spec, delta, base=base, rate=rate, states=states)
            case AdamServerOptimizer():
                return adam.step(spec, delta, base=base, rate=rate, states=states)
            case YogiServerOptimizer():
                return yogi.step(spec, delta, base=base, rate=rate, states=states)
