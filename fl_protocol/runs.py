"""RunSpec, which declares a run, and Run, which reports it."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from fl_protocol.messages import Name, RequestMessage, ResponseMessage, Timestamp

MAX_COHORT_SIZE = 4096
"""The largest number of updates for which the integer sum keeps the bits that the contract promises."""

MAX_WEIGHT = 2**29
"""The largest weight whose product with a float32 is exact in float64 (24 + 29 = 53 bits)."""


class RoundSpec(RequestMessage):
    """How many updates close a round, how many clients are asked, and how long they have."""

    quorum: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = 8
    cohort_size: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = Field(default=0, validate_default=False)
    min_updates: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = Field(default=0, validate_default=False)
    deadline_seconds: Annotated[float, Field(ge=0.1, le=30 * 86400)] = 600
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 3

    @model_validator(mode="before")
    @classmethod
    def _default_to_quorum(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        quorum = values.get("quorum", 8)
        return {"cohort_size": quorum, "min_updates": quorum} | values

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.cohort_size < self.quorum:
            raise ValueError(f"cohort_size {self.cohort_size} must be at least quorum {self.quorum}")
        if self.min_updates > self.quorum:
            raise ValueError(f"min_updates {self.min_updates} must be at most quorum {self.quorum}")
        return self


class OpenSelection(RequestMessage):
    """Every client that asks is given a task until the cohort is full."""

    kind: Literal["open"] = "open"


class MeanStrategy(RequestMessage):
    """The weighted mean of the deltas (FedAvg), as an exact integer sum."""

    kind: Literal["mean"] = "mean"
    weighting: Literal["num_examples", "uniform"] = "num_examples"
    max_weight: Annotated[int, Field(ge=1, le=MAX_WEIGHT)] = 1_000_000
    max_abs_delta: Annotated[float, Field(gt=0, le=1e30)] = 1024.0


class SgdServerOptimizer(RequestMessage):
    """Steps along the mean delta; momentum above 0 gives FedAvgM (Hsu et al. 2019)."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainingSpec(RequestMessage):
    """What clients are told about local training; handed to them as it is, further keys included."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    local_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 0.05
    proximal_mu: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class EvaluationSpec(RequestMessage):
    """Evaluation by clients after every `every`-th round; 0 switches it off."""

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class DenseEncoding(RequestMessage):
    """Each tensor travels whole, in the model's own type."""

    kind: Literal["dense"] = "dense"


class NoPrivacy(RequestMessage):
    """No noise is added and no guarantee is given."""

    kind: Literal["none"] = "none"


class NoSecureAggregation(RequestMessage):
    """The operator can read each update."""

    kind: Literal["none"] = "none"


class RunSpec(RequestMessage):
    """Declares a run: everything that decides its models but the data."""

    name: Name = "mnist"
    num_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    round: RoundSpec = RoundSpec(quorum=8, cohort_size=10, min_updates=8)
    selection: OpenSelection = OpenSelection()
    strategy: MeanStrategy = MeanStrategy()
    server_optimizer: SgdServerOptimizer = SgdServerOptimizer()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    encoding: DenseEncoding = DenseEncoding()
    privacy: NoPrivacy = NoPrivacy()
    secure_aggregation: NoSecureAggregation = NoSecureAggregation()

    @field_validator("training")
    @classmethod
    def _bound_training(cls, training: TrainingSpec) -> TrainingSpec:
        size = len(training.model_dump_json())
        if size > 16_384:
            raise ValueError(f"training takes {size} bytes as JSON; at most 16384 are handed to clients")
        return training


class RunState(StrEnum):
    """Where a run stands; completed, stopped and failed are terminal."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


FINISHED_RUN_STATES = frozenset({RunState.COMPLETED, RunState.STOPPED, RunState.FAILED})


class Run(ResponseMessage):
    """One model being trained over many rounds."""

    run_id: str
    name: str
    state: RunState
    reason: str | None
    spec: RunSpec
    num_rounds: int
    current_round: int
    latest_version: int | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
