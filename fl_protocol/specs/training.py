"""What clients are told about local training."""

import itertools
from typing import Annotated, Final

from pydantic import ConfigDict, Field, JsonValue

from fl_protocol.messages import RequestMessage
from fl_protocol.specs.schedules import MAX_ROUNDS, ConstantSchedule, Schedule, check_schedule, learning_rate

MAX_EPOCHS: Final = 1_000_000
MAX_STEPS: Final = 256
"""How often the number of local epochs may change in a run."""

LocalEpochs = Annotated[int, Field(ge=1, le=MAX_EPOCHS)]


class EpochsFromRound(RequestMessage):
    """The number of local epochs from one round on."""

    from_round: Annotated[int, Field(ge=2, le=MAX_ROUNDS)]
    local_epochs: LocalEpochs


class EarlyStop(RequestMessage):
    """A client's round ends once its training loss has not fallen by `min_delta` for `patience` epochs in a row."""

    patience: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 1
    min_delta: Annotated[float, Field(ge=0, le=1e30)] = 0.0


class TrainingSpec(RequestMessage):
    """What clients are told about local training; handed to them as it is, further keys included.

    `learning_rate` follows `schedule` over the rounds; `local_epochs` is replaced from the rounds on that
    `local_epochs_by_round` names; a step's gradient is scaled down to the norm `max_gradient_norm` if it is larger;
    `proximal_mu` above 0 is FedProx (Li et al. 2020). With `local_steps` a round has so many steps of the optimizer
    instead of epochs; after `max_seconds` it ends with the step that is under way.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    local_epochs: LocalEpochs = 1
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 0.05
    proximal_mu: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    schedule: Schedule = ConstantSchedule()
    local_epochs_by_round: Annotated[list[EpochsFromRound], Field(max_length=MAX_STEPS)] = Field(default=[])
    max_gradient_norm: Annotated[float, Field(gt=0, le=1e30)] | None = None
    early_stop: EarlyStop | None = None
    local_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    max_seconds: Annotated[float, Field(gt=0, le=366 * 86400)] | None = None


def local_learning_rate(training: TrainingSpec, round_number: int) -> float:
    """Gives the learning rate of clients in a round, numbered from 1."""
    return learning_rate(training.schedule, training.learning_rate, round_number)


def local_epochs(training: TrainingSpec, round_number: int) -> int:
    """Gives the number of epochs that clients train in a round, numbered from 1."""
    reached = [step.local_epochs for step in training.local_epochs_by_round if step.from_round <= round_number]
    return reached[-1] if reached else training.local_epochs


def check_training(training: TrainingSpec, *, num_rounds: int) -> None:
    """Raises ValueError, naming the field, for local training that cannot be that of a run of so many rounds."""
    check_schedule(training.schedule, training.learning_rate, field="training.schedule", num_rounds=num_rounds)
    rounds = [step.from_round for step in training.local_epochs_by_round]
    for index, (before, after) in enumerate(itertools.pairwise(rounds), start=1):
        if after <= before:
            raise ValueError(
                f"training.local_epochs_by_round[{index}].from_round {after} must be above {before}, the one before it"
            )
    if rounds and rounds[-1] > num_rounds:
        raise ValueError(
            f"training.local_epochs_by_round[{len(rounds) - 1}].from_round {rounds[-1]} never comes; "
            f"it must be at most num_rounds {num_rounds}"
        )
