"""When clients evaluate the global model on their own data, and what follows from what they report."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fl_protocol.attributes import AttributeName
from fl_protocol.messages import MetricName, RequestMessage
from fl_protocol.specs.rounds import MAX_COHORT_SIZE, AnyRoundSpec

Mode = Literal["max", "min"]
"""Whether more of a metric is better, or less."""

MetricValue = Annotated[float, Field(ge=-1e300, le=1e300)]
MetricChange = Annotated[float, Field(ge=0, le=1e300)]


class TargetSpec(RequestMessage):
    """The run is completed as soon as an evaluation reaches the value."""

    metric: MetricName
    mode: Mode
    value: MetricValue


class EarlyStoppingSpec(RequestMessage):
    """The run is completed once `patience` evaluations in a row were no better than the best by more than `min_delta`.

    Source: Prechelt 1998, Early Stopping - But When?
    """

    metric: MetricName
    mode: Mode
    patience: Annotated[int, Field(ge=1, le=1_000_000)]
    min_delta: MetricChange = 0.0


class QuarantineSpec(RequestMessage):
    """A version whose evaluation is worse than the best by more than `max_fall` is left behind."""

    metric: MetricName
    mode: Mode
    max_fall: MetricChange


class EvaluationSpec(RequestMessage):
    """Evaluation by clients after every `every`-th round; 0 switches it off. What is null is the round's own."""

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    cohort_size: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] | None = None
    quorum: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] | None = None
    min_reports: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = 1
    deadline_seconds: Annotated[float, Field(ge=0.1, le=30 * 86400)] | None = None
    strata: AttributeName | None = None
    target: TargetSpec | None = None
    early_stopping: EarlyStoppingSpec | None = None
    quarantine: QuarantineSpec | None = None

    @property
    def watched(self) -> TargetSpec | EarlyStoppingSpec | QuarantineSpec | None:
        """The metric by which a version is the best: the target's, else early stopping's, else the quarantine's."""
        return self.target or self.early_stopping or self.quarantine


@dataclass(frozen=True, slots=True)
class EvaluationTerms:
    """How many clients evaluate a version, how many reports end it, how many it takes, and how long it may last."""

    cohort_size: int
    quorum: int
    min_reports: int
    deadline_seconds: float


def evaluation_terms(evaluation: EvaluationSpec, round_: AnyRoundSpec) -> EvaluationTerms:
    """Gives an evaluation's terms; those that it does not state are the round's, within its own cohort."""
    cohort_size = evaluation.cohort_size or round_.cohort_size
    return EvaluationTerms(
        cohort_size=cohort_size,
        quorum=evaluation.quorum or min(round_.quorum, cohort_size),
        min_reports=evaluation.min_reports,
        deadline_seconds=evaluation.deadline_seconds or round_.deadline_seconds,
    )


def check_evaluation(evaluation: EvaluationSpec, round_: AnyRoundSpec, *, num_rounds: int) -> None:
    """Raises ValueError naming the field of an evaluation that cannot work in such a run."""
    _check_terms(evaluation_terms(evaluation, round_))
    num_evaluations = num_rounds // evaluation.every if evaluation.every else 0
    for name in ("target", "early_stopping", "quarantine", "strata"):
        if getattr(evaluation, name) is not None and not num_evaluations:
            raise ValueError(
                f"evaluation.{name} needs evaluations, and evaluation.every {evaluation.every} makes none in "
                f"num_rounds {num_rounds}; every must be 1 to {num_rounds}"
            )
    stopping = evaluation.early_stopping
    if stopping is not None and stopping.patience >= num_evaluations:
        raise ValueError(
            f"evaluation.early_stopping.patience {stopping.patience} can never be used up in {num_evaluations} "
            f"evaluations (num_rounds {num_rounds}, every {evaluation.every}); it must be below {num_evaluations}"
        )
    if evaluation.quarantine is not None and num_evaluations < 2:
        raise ValueError(
            f"evaluation.quarantine compares evaluations, and evaluation.every {evaluation.every} makes only one in "
            f"num_rounds {num_rounds}; every must be at most {num_rounds // 2}"
        )
    _check_modes(evaluation)


def _check_terms(terms: EvaluationTerms) -> None:
    if terms.quorum > terms.cohort_size:
        raise ValueError(f"evaluation.quorum {terms.quorum} must be at most evaluation.cohort_size {terms.cohort_size}")
    if terms.min_reports > terms.quorum:
        raise ValueError(f"evaluation.min_reports {terms.min_reports} must be at most evaluation.quorum {terms.quorum}")


def _check_modes(evaluation: EvaluationSpec) -> None:
    modes: dict[str, Mode] = {}
    for part in (evaluation.target, evaluation.early_stopping, evaluation.quarantine):
        if part is not None and modes.setdefault(part.metric, part.mode) != part.mode:
            raise ValueError(f"evaluation gives metric {part.metric!r} both modes, 'max' and 'min'; choose one")
