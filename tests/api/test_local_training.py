"""Local training by round over HTTP: clients are told all of it, and what cannot be is refused by name."""

from typing import Any

import httpx
import pytest

from tests.support.participant import create_run, enrol, small_model
from tests.support.refusals import assert_refused


@pytest.mark.parametrize(
    ("training", "named"),
    [
        (
            {"schedule": {"kind": "cosine", "num_rounds": 3}},
            "training.schedule.num_rounds 3 ends before num_rounds 4; it must be at least that",
        ),
        (
            {"local_epochs_by_round": [{"from_round": 5, "local_epochs": 1}]},
            "training.local_epochs_by_round[0].from_round 5 never comes; it must be at most num_rounds 4",
        ),
        ({"schedule": {"kind": "step", "factor": 0.5}}, "training.schedule.every"),
        ({"early_stop": {"patience": 0}}, "training.early_stop.patience"),
        ({"max_gradient_norm": -1.0}, "training.max_gradient_norm"),
    ],
)
def test_local_training_that_cannot_be_is_refused(
    shared_operator: httpx.Client, training: dict[str, Any], named: str
) -> None:
    answer = shared_operator.post("/v1/runs", json={"name": "test", "num_rounds": 4, "training": training})
    assert_refused(answer, "invalid-request", named)


def test_clients_are_told_all_of_it(shared_operator: httpx.Client) -> None:
    training = {
        "local_epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.5,
        "proximal_mu": 0.0,
        "schedule": {"kind": "step", "every": 2, "factor": 0.5, "warmup_rounds": 1},
        "local_epochs_by_round": [{"from_round": 3, "local_epochs": 1}],
        "max_gradient_norm": 1.0,
        "early_stop": {"patience": 2, "min_delta": 0.01},
        "local_steps": None,
        "max_seconds": 4.5,
        "mine": {"further": [1, None]},
    }
    run_id = create_run(shared_operator, small_model(), round={"quorum": 1}, num_rounds=4, training=training)
    assert enrol(shared_operator).claim(run_id).json()["training"] == training
