"""What a participant tells of its progress: plain values, one type for each thing that happens."""

from dataclasses import dataclass

from fl_protocol.privacy_claims import PrivacyUnit
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
class UpdateClipped:
    """What a private run's update measured before it was clipped, None if it held NaN or infinity and became zero.

    Only this client is told: the norm is a fact about its data.
    """

    task: Task
    norm: float | None


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """A private run's update is about to leave: what this client has then spent in the run, by its own count.

    `unit` says of whom: of the client with all its data, or of each single example (`example_dpsgd`).
    """

    task: Task
    epsilon: float
    delta: float
    unit: PrivacyUnit


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
    | UpdateClipped
    | PrivacySpent
    | UpdateAccepted
    | EvaluationAccepted
    | WorkRefused
    | TaskGivenUp
    | RunFinished
)
