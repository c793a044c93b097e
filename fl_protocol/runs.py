"""RunSpec, which declares a run, and Run, which reports it."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from fl_protocol.messages import Name, RequestMessage, ResponseMessage, Timestamp
from fl_protocol.specs.evaluation import EvaluationSpec
from fl_protocol.specs.protection import DenseEncoding, NoPrivacy, NoSecureAggregation
from fl_protocol.specs.rounds import RoundSpec
from fl_protocol.specs.selection import OpenSelection
from fl_protocol.specs.server_optimizers import SgdServerOptimizer
from fl_protocol.specs.strategies import MeanStrategy, Strategy, check_strategy
from fl_protocol.specs.training import TrainingSpec


class RunSpec(RequestMessage):
    """Declares a run: everything that decides its models but the data."""

    name: Name = "mnist"
    num_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    round: RoundSpec = RoundSpec(quorum=8, cohort_size=10, min_updates=8)
    selection: OpenSelection = OpenSelection()
    strategy: Strategy = MeanStrategy()
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

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        check_strategy(self.strategy, min_updates=self.round.min_updates, max_updates=self.round.quorum)
        return self


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
