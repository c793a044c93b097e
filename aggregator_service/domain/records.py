"""Plain values for what the database remembers; a store takes and gives these, never rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from aggregator_service.domain.standing import Standing
from fl_protocol.rounds import RoundKind, RoundState
from fl_protocol.runs import RunSpec, RunState
from fl_protocol.tasks import TaskKind


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run; `paused_at` is set while it is paused, `standing` is what its evaluations have come to."""

    run_id: str
    name: str
    state: RunState
    reason: str | None
    spec: RunSpec
    current_round: int
    latest_version: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    paused_at: datetime | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Stored bytes of tensors, by whose digest whoever gets them can check them."""

    blob_id: str
    digest: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One published model version; `optimizer_blob_id` is the server optimizer's state after it, if it has any.

    A version that a rollback or a quarantine published again names the same bytes as `restored_from`, its parent.
    The three `control_...` are set together: SCAFFOLD's server control variate after it, none while that is zero.
    """

    run_id: str
    version: int
    round: int
    digest: str
    num_bytes: int
    num_parameters: int
    blob_id: str
    optimizer_blob_id: str | None
    parent_version: int | None
    restored_from: int | None
    quarantined: bool
    created_at: datetime
    control_blob_id: str | None = None
    control_digest: str | None = None
    control_num_bytes: int | None = None

    @property
    def file(self) -> TensorFile:
        return TensorFile(self.blob_id, self.digest, self.num_bytes)

    @property
    def control(self) -> TensorFile | None:
        if self.control_blob_id is None or self.control_digest is None or self.control_num_bytes is None:
            return None
        return TensorFile(self.control_blob_id, self.control_digest, self.control_num_bytes)


class RenditionKind(StrEnum):
    """What was made of a version: its model or its control variate in zstd, or a delta from an earlier version."""

    ZSTD = "zstd"
    CONTROL_ZSTD = "control_zstd"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class RenditionKey:
    """Which rendition of which version; `base_version` is what a delta starts from, else -1."""

    run_id: str
    version: int
    kind: RenditionKind
    base_version: int = -1


@dataclass(frozen=True, slots=True)
class RenditionRecord:
    """A rendition that was looked for; `file` is None where it would not have been worth its bytes."""

    key: RenditionKey
    file: TensorFile | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StratumRecord:
    """What the clients of one stratum reported of a round's model."""

    num_examples: int
    num_reports: int
    metrics: Mapping[str, float]


class EvaluationState(StrEnum):
    """Whether clients are asked to evaluate the model that a round made."""

    NONE = "none"
    COLLECTING = "collecting"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One attempt at a round, with the evaluation of its result; a buffered one has no deadline of its own.

    `num_awaited` is set where secret coins choose the cohort: how many updates close the round, in place of `quorum`.
    """

    round_id: str
    run_id: str
    kind: RoundKind
    number: int
    attempt: int
    state: RoundState
    base_version: int
    result_version: int | None
    quorum: int
    cohort_size: int
    min_updates: int
    num_tasks: int
    num_updates: int
    num_examples: int
    opened_at: datetime
    deadline_at: datetime
    closed_at: datetime | None
    completed_at: datetime | None
    metrics: Mapping[str, float]
    evaluation_state: EvaluationState
    evaluation_deadline_at: datetime | None
    evaluation: Mapping[str, float] | None
    evaluation_by_stratum: Mapping[str, StratumRecord] | None
    num_awaited: int | None = None
    expected_cohort: float | None = None
    epsilon: float | None = None


class TaskState(StrEnum):
    """Whether a task still waits for its answer."""

    OPEN = "open"
    DONE = "done"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What one client was asked to do with one model; `deadline_at` is None where the round has the deadline.

    `round_id` names the attempt at a round that handed it out, `turn` counts the client's tasks of the kind in it.
    """

    task_id: str
    run_id: str
    round_id: str
    client_id: str
    kind: TaskKind
    state: TaskState
    base_version: int
    assigned_at: datetime
    deadline_at: datetime | None = None
    turn: int = 1


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """An accepted update; `max_abs` is the largest |delta| of each tensor, which fixes the sum's scale.

    `round_id` names the attempt that counts it, to whose base version its own is `staleness` versions behind.
    `local_steps` is what FedNova normalises by, None for other algorithms. Where it `counts_once` the attempt counts no
    other of the same client. One that is `skipped` has no tensors.
    """

    update_id: str
    task_id: str
    run_id: str
    round_id: str
    client_id: str
    digest: str
    num_bytes: int
    num_examples: int
    weight: int
    staleness: int
    metrics: Mapping[str, float]
    max_abs: Mapping[str, float]
    blob_id: str
    accepted_at: datetime
    local_steps: int | None = None
    counts_once: bool = True
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """An accepted evaluation report."""

    update_id: str
    task_id: str
    round_id: str
    client_id: str
    digest: str
    num_bytes: int
    num_examples: int
    metrics: Mapping[str, float]
    accepted_at: datetime


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """An enrolled client."""

    client_id: str
    name: str
    attributes: Mapping[str, str]
    created_at: datetime
    last_seen_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class AttendanceRecord:
    """What a run knows of a client: when it last asked the run for a task, and whether it is excluded from the run."""

    run_id: str
    client_id: str
    seen_at: datetime | None
    excluded_at: datetime | None
    exclusion_reason: str | None


@dataclass(frozen=True, slots=True)
class DrawRecord:
    """The secret key of an attempt's draw, and the places of each stratum once they are known (`""`: no strata)."""

    round_id: str
    key: bytes = field(repr=False)
    places: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A client that may be drawn, with its value of the attribute that tells strata apart (`""`: no strata)."""

    client_id: str
    stratum: str


class TokenKind(StrEnum):
    """What a bearer token allows."""

    OPERATOR = "operator"
    ENROLMENT = "enrolment"
    CLIENT = "client"
    HELPER = "helper"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A bearer token, known only by the SHA-256 of its text; a helper's is for one signing key's requests."""

    token_hash: str
    kind: TokenKind
    client_id: str | None
    max_uses: int | None
    uses: int
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime
    helper_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event of a run; `event_id` counts from 1 without gaps."""

    run_id: str
    event_id: int
    type: str
    data: Mapping[str, object]
    created_at: datetime
