"""What a participant tells of its progress: plain values, one type for each thing that happens."""

from dataclasses import dataclass

from fl_protocol.tasks import EvaluationReport, Receipt, Task


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is no task now."""

    seconds: float


@dataclass(frozen=True, slots=True)
class TaskClaimed:
    """The server gave a task."""

    task: Task


@dataclass(frozen=True, slots=True)
class ModelPulled:
    """The round's global model is here and is what the task announced."""

    task: Task
    from_cache: bool


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The trainer returned; the update is on its way."""

    task: Task
    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class UpdateAccepted:
    """The update is durable and will be counted exactly once."""

    task: Task
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class EvaluationAccepted:
    """The evaluation is durable and will be counted exactly once."""

    task: Task
    report: EvaluationReport
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WorkRefused:
    """The work came too late or is there already; the participant goes on."""

    task: Task
    reason: str


@dataclass(frozen=True, slots=True)
class TaskGivenUp:
    """The task was handed back, so that another client can be asked."""

    task: Task
    reason: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is over; the last thing that a participant tells."""

    reason: str


Progress = (
    Waiting
    | TaskClaimed
    | ModelPulled
    | TrainingFinished
    | UpdateAccepted
    | EvaluationAccepted
    | WorkRefused
    | TaskGivenUp
    | RunFinished
)
