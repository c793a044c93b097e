"""What a participant tells of its progress: plain values, one type for each thing that happens."""

from dataclasses import dataclass

from fl_protocol.privacy_claims import PrivacyUnit
from fl_protocol.promises import Promise
from fl_protocol.sessions import SessionState
from fl_protocol.specs.secure_aggregation import HelperTrust, IdentityTrust
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
class PromiseRead:
    """What the run promises about this client's data, told once, before anything is trained.

    This client has derived it from the run's specification, which each task must carry.
    """

    task: Task
    promise: Promise


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
    """The update is durable and will be counted exactly once; `num_sent_bytes` is its size on the way, compressed."""

    task: Task
    receipt: Receipt
    num_sent_bytes: int


@dataclass(frozen=True, slots=True)
class WaitingForSession:
    """The update is ready and waits for enough other clients of a masked round to be ready, too."""

    task: Task
    num_waiting: int


@dataclass(frozen=True, slots=True)
class SessionJoined:
    """A masked session has begun, its members were checked, and this client is one of them.

    The server learns the sum over those who stay unless more than `tolerated_colluders` of them tell it their secrets.
    `identity_trust` says who vouches that they are whom they seem to be.
    """

    task: Task
    session_id: str
    num_members: int
    threshold: int
    tolerated_colluders: int
    identity_trust: IdentityTrust


@dataclass(frozen=True, slots=True)
class SessionAdvanced:
    """This client has done its part of a phase of a masked session, and waits for the others."""

    task: Task
    session_id: str
    phase: SessionState


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """A masked session came to nothing for this client; `retry_seconds` later it asks for another, None if it does not.

    Nothing that it sent there can be read by anybody.
    """

    task: Task
    reason: str
    retry_seconds: float | None


@dataclass(frozen=True, slots=True)
class UpdateCounted:
    """The masked update is in a session's sum, by the transcript; `digest` and `num_bytes` are of what was sent."""

    task: Task
    session_id: str
    num_survivors: int
    digest: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class HelpersTrusted:
    """In a run of helper mode: nobody learns this client's update unless the server and all `helpers` work together.

    `known` are those whose sealing key this client was given by somebody else than the server. With `identity_trust`
    "pinned" each helper holds clients against a list of its own; with "server" it may believe the server, who then
    could invent all the others.
    """

    task: Task
    helpers: tuple[str, ...]
    known: tuple[str, ...]
    identity_trust: HelperTrust


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
    | PromiseRead
    | ModelPulled
    | TrainingFinished
    | UpdateClipped
    | PrivacySpent
    | UpdateAccepted
    | WaitingForSession
    | SessionJoined
    | SessionAdvanced
    | SessionFailed
    | UpdateCounted
    | HelpersTrusted
    | EvaluationAccepted
    | WorkRefused
    | TaskGivenUp
    | RunFinished
)
