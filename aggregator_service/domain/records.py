"""Plain values for what the database remembers; a store takes and gives these, never rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from aggregator_service.domain.standing import Standing
from fl_protocol.rounds import RoundState
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
class ModelRecord:
    """One published model version; `optimizer_blob_id` is the server optimizer's state after it, if it has any.

    A version that a rollback or a quarantine published again names the same bytes as `restored_from`, its parent.
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
    """One attempt at a round, with the evaluation of its result."""

    round_id: str
    run_id: str
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


class TaskState(StrEnum):
    """Whether a task still waits for its answer."""

    OPEN = "open"
    DONE = "done"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What one client was asked to do in one attempt at a round."""

    task_id: str
    run_id: str
    round_id: str
    client_id: str
    kind: TaskKind
    state: TaskState
    assigned_at: datetime


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """An accepted update; `max_abs` is the largest |delta| of each tensor, which fixes the sum's scale."""

    update_id: str
    task_id: str
    run_id: str
    round_id: str
    client_id: str
    digest: str
    num_bytes: int
    num_examples: int
    weight: int
    metrics: Mapping[str, float]
    max_abs: Mapping[str, float]
    blob_id: str
    accepted_at: datetime


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


class TokenKind(StrEnum):
    """What a bearer token allows."""

    OPERATOR = "operator"
    ENROLMENT = "enrolment"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A bearer token, known only by the SHA-256 of its text."""

    token_hash: str
    kind: TokenKind
    client_id: str | None
    max_uses: int | None
    uses: int
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event of a run; `event_id` counts from 1 without gaps."""

    run_id: str
    event_id: int
    type: str
    data: Mapping[str, object]
    created_at: datetime
