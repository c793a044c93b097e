"""An evaluation that cannot work is refused when the run is created, by the field's name and the bound."""

import json

import pytest
from pydantic import ValidationError

from fl_protocol.runs import RunSpec
from fl_protocol.specs.evaluation import EvaluationTerms, evaluation_terms

TARGET = {"metric": "accuracy", "mode": "max", "value": 0.9}
STOPPING = {"metric": "loss", "mode": "min", "patience": 3}
QUARANTINE = {"metric": "accuracy", "mode": "max", "max_fall": 0.1}


def spec(**fields):
    return RunSpec.model_validate_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"evaluation": {"target": TARGET}}, "evaluation.target needs evaluations, and evaluation.every 0"),
        ({"evaluation": {"strata": "region"}}, "evaluation.strata needs evaluations, and evaluation.every 0"),
        (
            {"num_rounds": 10, "evaluation": {"every": 11, "early_stopping": STOPPING}},
            (
                "evaluation.early_stopping needs evaluations, and evaluation.every 11 makes none in num_rounds 10; "
                "every must be 1 to 10"
            ),
        ),
        (
            {"num_rounds": 10, "evaluation": {"every": 3, "early_stopping": STOPPING}},
            (
                "evaluation.early_stopping.patience 3 can never be used up in 3 evaluations (num_rounds 10, every 3); "
                "it must be below 3"
            ),
        ),
        (
            {"num_rounds": 10, "evaluation": {"every": 6, "quarantine": QUARANTINE}},
            (
                "evaluation.quarantine compares evaluations, and evaluation.every 6 makes only one in num_rounds 10; "
                "every must be at most 5"
            ),
        ),
        (
            {"round": {"quorum": 8}, "evaluation": {"every": 1, "quorum": 9}},
            "evaluation.quorum 9 must be at most evaluation.cohort_size 8",
        ),
        (
            {"round": {"quorum": 8}, "evaluation": {"every": 1, "cohort_size": 4, "min_reports": 5}},
            "evaluation.min_reports 5 must be at most evaluation.quorum 4",
        ),
        (
            {"evaluation": {"every": 1, "target": TARGET, "quarantine": QUARANTINE | {"mode": "min"}}},
            "evaluation gives metric 'accuracy' both modes",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name_and_bound(fields, says):
    with pytest.raises(ValidationError, match="1 validation error") as refused:
        spec(**fields)
    assert says in str(refused.value)


def test_what_can_just_work_is_accepted():
    spec(num_rounds=12, evaluation={"every": 3, "early_stopping": STOPPING})
    spec(num_rounds=10, evaluation={"every": 5, "quarantine": QUARANTINE})
    spec(num_rounds=10, evaluation={"every": 10, "target": TARGET})
    # Without anything that depends on them, evaluations that never come were always accepted.
    spec(num_rounds=10, evaluation={"every": 11})


def test_terms_that_are_not_given_are_the_rounds():
    rounds = {"quorum": 8, "cohort_size": 12, "deadline_seconds": 60}
    run = spec(round=rounds, evaluation={"every": 1})
    assert evaluation_terms(run.evaluation, run.round) == EvaluationTerms(12, 8, 1, 60)
    run = spec(round=rounds, evaluation={"every": 1, "cohort_size": 4, "min_reports": 2, "deadline_seconds": 5})
    assert evaluation_terms(run.evaluation, run.round) == EvaluationTerms(4, 4, 2, 5)
    run = spec(round=rounds, evaluation={"every": 1, "quorum": 2, "cohort_size": 100})
    assert evaluation_terms(run.evaluation, run.round) == EvaluationTerms(100, 2, 1, 60)


def test_the_contracts_evaluation_stays_what_it_was():
    assert spec(evaluation={"every": 0}) == spec()
    assert spec(initial_model={"kind": "upload"}) == spec(initial_model={}) == spec()
