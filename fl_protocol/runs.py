"""RunSpec, which declares a run, and Run, which reports it."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from fl_protocol.messages import Name, RequestMessage, ResponseMessage, Timestamp, kind_or
from fl_protocol.promises import Promise
from fl_protocol.specs.algorithms import Algorithm, FedAvgAlgorithm, check_algorithm
from fl_protocol.specs.buffering import check_buffering
from fl_protocol.specs.encodings import DenseEncoding, Encoding, check_encoding
from fl_protocol.specs.evaluation import EvaluationSpec, check_evaluation
from fl_protocol.specs.initial_model import PreviousModel, UploadedModel
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.specs.privacy import Privacy, check_privacy
from fl_protocol.specs.protection import NoPrivacy, NoSecureAggregation
from fl_protocol.specs.rounds import AnyRoundSpec, RoundSpec
from fl_protocol.specs.secure_aggregation import SecureAggregation, check_secure_aggregation, combined_by_strategy
from fl_protocol.specs.selection import OpenSelection, SelectionSpec, check_selection
from fl_protocol.specs.server_optimizers import ServerOptimizer, SgdServerOptimizer, check_server_optimizer
from fl_protocol.specs.skipping import NoSkipping, Skipping, check_skipping
from fl_protocol.specs.strategies import MeanStrategy, Strategy, check_strategy
from fl_protocol.specs.training import TrainingSpec, check_training

InitialModel = Annotated[
    Annotated[UploadedModel, Tag("upload")] | Annotated[PreviousModel, Tag("version")],
    Discriminator(kind_or("upload")),
]


class RunSpec(RequestMessage):
    """Declares a run: everything that decides its models but the data."""

    name: Name = "mnist"
    num_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    round: AnyRoundSpec = RoundSpec(quorum=8, cohort_size=10, min_updates=8)
    selection: SelectionSpec = OpenSelection()
    strategy: Strategy = MeanStrategy()
    server_optimizer: ServerOptimizer = SgdServerOptimizer()
    training: TrainingSpec = TrainingSpec()
    parameters: ParametersSpec = ParametersSpec()
    algorithm: Algorithm = FedAvgAlgorithm()
    evaluation: EvaluationSpec = EvaluationSpec()
    encoding: Encoding = DenseEncoding()
    skipping: Skipping = NoSkipping()
    privacy: Privacy = NoPrivacy()
    secure_aggregation: SecureAggregation = NoSecureAggregation()
    initial_model: InitialModel = UploadedModel()

    @field_validator("training")
    @classmethod
    def _bound_training(cls, training: TrainingSpec) -> TrainingSpec:
        size = len(training.model_dump_json())
        if size > 16_384:
            raise ValueError(f"training takes {size} bytes as JSON; at most 16384 are handed to clients")
        return training

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        check_buffering(self)
        check_server_optimizer(self.server_optimizer, num_rounds=self.num_rounds)
        check_training(self.training, num_rounds=self.num_rounds)
        check_algorithm(self.algorithm, round_=self.round, strategy=self.strategy, training=self.training)
        check_selection(self.selection, self.round, strategy=self.strategy, algorithm=self.algorithm)
        check_strategy(self.strategy, combined_by_strategy(self))
        check_evaluation(self.evaluation, self.round, num_rounds=self.num_rounds)
        check_privacy(self)
        check_secure_aggregation(self)
        check_encoding(self)
        check_skipping(self)
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
    """One model being trained over many rounds; `best_version` by the metric that its evaluation watches.

    `promise` says what of its clients' data is protected, and from whom.
    """

    run_id: str
    name: str
    state: RunState
    reason: str | None
    spec: RunSpec
    num_rounds: int
    current_round: int
    latest_version: int | None
    best_version: int | None = None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    promise: Promise | None = None
