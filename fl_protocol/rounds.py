"""Round, Model, the record of who contributed, and the events of a run."""

from enum import StrEnum

from pydantic import JsonValue

from fl_protocol.messages import ResponseMessage, Timestamp


class RoundKind(StrEnum):
    """Whether a round asks a cohort and closes with it, or is a buffer that takes updates whenever they come."""

    SYNCHRONOUS = "synchronous"
    BUFFERED = "buffered"


class RoundState(StrEnum):
    """Where one attempt at a round stands; completed and abandoned are terminal."""

    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMPLETED = "completed"
    ABANDONED = "abandoned"


class StratumEvaluation(ResponseMessage):
    """What the clients of one stratum reported of a round's model: example-weighted means."""

    num_examples: int
    num_reports: int
    metrics: dict[str, float]


class Round(ResponseMessage):
    """One attempt at one round; metrics are example-weighted means of what clients reported.

    `evaluation_by_stratum` has an entry for each value of the attribute that the RunSpec's `evaluation.strata` names.
    `epsilon` is what a private run has cost with this round's model. Such a run keeps no metrics of its clients, and
    `num_examples` counts its updates.

    A buffered round is one buffer: `quorum` is its size, `cohort_size` the run's concurrency, `base_version` the model
    that it is applied to. At `deadline_at` tasks handed out at its opening are given up; it goes on until it is full.
    """

    kind: RoundKind = RoundKind.SYNCHRONOUS
    number: int
    attempt: int
    state: RoundState
    base_version: int
    result_version: int | None
    quorum: int
    cohort_size: int
    num_tasks: int
    num_updates: int
    num_examples: int
    opened_at: Timestamp
    deadline_at: Timestamp
    closed_at: Timestamp | None
    completed_at: Timestamp | None
    metrics: dict[str, float]
    evaluation: dict[str, float] | None
    expected_cohort: float | None = None
    evaluation_by_stratum: dict[str, StratumEvaluation] | None = None
    epsilon: float | None = None


class Contribution(ResponseMessage):
    """What the operator may know of one update: never a tensor.

    It was made from the model `staleness` versions before the round's base version. `weight`: what it weighs in the
    mean, known once the round is sealed; before that, what it would weigh by itself; never discounted by staleness.
    `local_steps` is told for FedNova only. One that is `skipped` has no tensors and counts as zero.
    """

    update_id: str
    client_id: str
    digest: str
    num_examples: int
    weight: int
    staleness: int = 0
    metrics: dict[str, float]
    num_bytes: int
    accepted_at: Timestamp
    local_steps: int | None = None
    skipped: bool = False


class EventType(StrEnum):
    """The types of the server-sent events of a run."""

    ROUND_OPENED = "round.opened"
    UPDATE_ACCEPTED = "update.accepted"
    ROUND_CLOSED = "round.closed"
    ROUND_ABANDONED = "round.abandoned"
    MODEL_PUBLISHED = "model.published"
    EVALUATION_COMPLETED = "evaluation.completed"
    RUN_STATE = "run.state"


class Event(ResponseMessage):
    """One server-sent event; `event_id` counts from 1 without gaps within the run."""

    event_id: int
    type: str
    created_at: Timestamp
    data: dict[str, JsonValue]
