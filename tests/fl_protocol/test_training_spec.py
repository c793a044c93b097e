"""Local training by round: what clients do in which round, and what is refused by name."""

import re

import pytest
from pydantic import ValidationError

from fl_protocol.runs import RunSpec
from fl_protocol.specs.training import TrainingSpec, local_epochs, local_learning_rate


def run_spec(**training):
    return RunSpec.model_validate({"num_rounds": 20, "training": training})


def test_a_training_without_schedules_is_the_same_in_every_round():
    training = run_spec(local_epochs=3, learning_rate=0.1, further={"key": [1]}).training
    assert [(local_epochs(training, at), local_learning_rate(training, at)) for at in (1, 20)] == [(3, 0.1)] * 2
    assert training.model_dump()["further"] == {"key": [1]}


def test_epochs_change_at_the_rounds_that_are_named():
    steps = [{"from_round": 3, "local_epochs": 2}, {"from_round": 5, "local_epochs": 1}]
    training = run_spec(local_epochs=4, local_epochs_by_round=steps).training
    assert [local_epochs(training, at) for at in range(1, 7)] == [4, 4, 2, 2, 1, 1]


def test_the_rate_follows_its_schedule():
    step = {"kind": "step", "every": 2, "factor": 0.5, "warmup_rounds": 1}
    training = run_spec(learning_rate=0.8, schedule=step).training
    assert [local_learning_rate(training, at) for at in range(1, 7)] == [0.4, 0.8, 0.8, 0.4, 0.4, 0.2]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"schedule": {"kind": "cosine", "num_rounds": 10}},
            "training.schedule.num_rounds 10 ends before num_rounds 20; it must be at least that",
        ),
        ({"schedule": {"warmup_rounds": 20}}, "training.schedule.warmup_rounds 20 does not end before num_rounds 20"),
        (
            {"local_epochs_by_round": [{"from_round": 5, "local_epochs": 1}, {"from_round": 5, "local_epochs": 2}]},
            "training.local_epochs_by_round[1].from_round 5 must be above 5, the one before it",
        ),
        (
            {"local_epochs_by_round": [{"from_round": 21, "local_epochs": 1}]},
            "training.local_epochs_by_round[0].from_round 21 never comes; it must be at most num_rounds 20",
        ),
        ({"local_epochs_by_round": [{"from_round": 1, "local_epochs": 1}]}, "greater than or equal to 2"),
        (
            {"local_steps": 10, "local_epochs": 2},
            "training.local_epochs counts epochs and training.local_steps 10 steps",
        ),
        ({"local_steps": 10, "early_stop": {}}, "training.early_stop counts epochs"),
        (
            {"local_steps": 10, "local_epochs_by_round": [{"from_round": 2, "local_epochs": 1}]},
            "training.local_epochs_by_round counts epochs",
        ),
        ({"max_seconds": 600}, "training.max_seconds 600 must be below round.deadline_seconds 600"),
        ({"local_steps": 0}, "greater than or equal to 1"),
        ({"max_gradient_norm": 0}, "greater than 0"),
        ({"early_stop": {"patience": 0}}, "greater than or equal to 1"),
        ({"early_stop": {"min_delta": -1}}, "greater than or equal to 0"),
        ({"schedule": {"kind": "linear"}}, "linear"),
    ],
)
def test_local_training_that_cannot_be_is_refused_by_name(training, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        run_spec(**training)


def test_a_clients_reading_of_a_task_keeps_what_it_does_not_know():
    document = '{"local_epochs": 2, "batch_size": 8, "learning_rate": 0.5, "proximal_mu": 0.0, "mine": null}'
    assert TrainingSpec.model_validate_json(document).model_dump()["mine"] is None
