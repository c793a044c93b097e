"""How the aggregated delta becomes a step of the global model."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or
from fl_protocol.specs.schedules import ConstantSchedule, Schedule, check_schedule

LearningRate = Annotated[float, Field(gt=0, le=1000)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""How much of a moving average is kept from round to round."""
Adaptivity = Annotated[float, Field(ge=1e-9, le=1000)]
"""The paper's tau: added to the root of the second moment, whose first value is tau squared."""


class SgdServerOptimizer(RequestMessage):
    """Steps along the mean delta; momentum above 0 gives FedAvgM (Hsu et al. 2019), `nesterov` looks ahead."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 1.0
    momentum: Decay = 0.0
    nesterov: bool = False
    schedule: Schedule = ConstantSchedule()


class AdagradServerOptimizer(RequestMessage):
    """FedAdagrad (Reddi et al. 2021): divides by the root of the sum of all squared deltas."""

    kind: Literal["adagrad"]
    learning_rate: LearningRate = 0.01
    beta1: Decay = 0.0
    tau: Adaptivity = 1e-3
    schedule: Schedule = ConstantSchedule()


class AdamServerOptimizer(RequestMessage):
    """FedAdam (Reddi et al. 2021): divides by the root of a moving average of squared deltas; no bias correction."""

    kind: Literal["adam"]
    learning_rate: LearningRate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Adaptivity = 1e-3
    schedule: Schedule = ConstantSchedule()


class YogiServerOptimizer(RequestMessage):
    """FedYogi (Reddi et al. 2021): as adam, but the second moment moves by at most a share of the squared delta."""

    kind: Literal["yogi"]
    learning_rate: LearningRate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Adaptivity = 1e-3
    schedule: Schedule = ConstantSchedule()


AnyServerOptimizer = SgdServerOptimizer | AdagradServerOptimizer | AdamServerOptimizer | YogiServerOptimizer

ServerOptimizer = Annotated[
    Annotated[SgdServerOptimizer, Tag("sgd")]
    | Annotated[AdagradServerOptimizer, Tag("adagrad")]
    | Annotated[AdamServerOptimizer, Tag("adam")]
    | Annotated[YogiServerOptimizer, Tag("yogi")],
    Discriminator(kind_or("sgd")),
]
"""The field's type in a RunSpec: an optimizer that does not say its `kind` is sgd."""


def check_server_optimizer(optimizer: AnyServerOptimizer, *, num_rounds: int) -> None:
    """Raises ValueError, naming the field, for an optimizer that cannot serve a run of so many rounds."""
    if isinstance(optimizer, SgdServerOptimizer) and optimizer.nesterov and optimizer.momentum == 0:
        raise ValueError("server_optimizer.nesterov needs server_optimizer.momentum above 0; it is 0")
    check_schedule(
        optimizer.schedule, optimizer.learning_rate, field="server_optimizer.schedule", num_rounds=num_rounds
    )
