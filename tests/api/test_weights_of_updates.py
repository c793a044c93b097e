"""What updates weigh, seen in the model of a real server: strata alike, a largest share, a fixed denominator."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.federation import MODEL, claim_all, update
from tests.support.participant import Participant, create_run, enrol, unpack, wait_for_run

VALUES = (1.0, 2.0, 8.0)


def play(operator: httpx.Client, clients: Sequence[Participant], run_id: str, examples: Sequence[int]) -> float:
    """Lets clients send VALUES with so many examples, and gives what the model's zeros have become."""
    tasks = claim_all(clients, run_id)
    for client, value, number in zip(clients, VALUES, examples, strict=True):
        sent = client.put(tasks[client.client_id]["task_id"], update(number, value))
        assert sent.status_code == 201, sent.text
    values = unpack(wait_for_run(operator, run_id, version=1).content)["w"]
    assert values[0] == values[1]
    return float(values[0])


def weights(operator: httpx.Client, run_id: str, clients: Sequence[Participant]) -> list[int]:
    told = operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    by_client = {one["client_id"]: one["weight"] for one in told}
    return [by_client[client.client_id] for client in clients]


@pytest.mark.parametrize(
    ("strategy", "examples", "expected"),
    [
        ({"weighting": {"kind": "inverse_stratum_size", "attribute": "region"}}, [7, 900, 1], [1, 1, 2]),
        ({"max_share": 0.4}, [1, 1, 5], [3, 3, 4]),
        ({"max_weight": 50}, [10, 900, 40], [10, 50, 40]),
        (
            {"weighting": {"kind": "inverse_stratum_size", "attribute": "region"}, "max_share": 0.4},
            [1, 1, 1],
            [3, 3, 4],
        ),
    ],
    ids=["strata", "largest-share", "largest-weight", "strata-with-a-largest-share"],
)
def test_the_model_is_the_mean_by_the_weights_that_the_operator_sees(
    shared_operator: httpx.Client, strategy: Mapping[str, Any], examples: Sequence[int], expected: Sequence[int]
) -> None:
    clients = [enrol(shared_operator, f"client-{index}", region=region) for index, region in enumerate("nns")]
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round={"quorum": 3}, strategy=strategy)
    mean = sum(Fraction(value) * weight for value, weight in zip(VALUES, expected, strict=True)) / sum(expected)
    assert play(shared_operator, clients, run_id, examples) == float(np.float32(float(mean)))
    assert weights(shared_operator, run_id, clients) == list(expected)


def test_with_a_population_the_sum_has_a_fixed_denominator_and_who_gives_up_counts_as_zero(
    shared_operator: httpx.Client,
) -> None:
    clients = [enrol(shared_operator, f"client-{index}", region="fixed") for index in range(4)]
    selection = {"kind": "poisson", "probability": 1.0, "population": 5, "eligibility": {"region": ["fixed"]}}
    run_id = create_run(
        shared_operator,
        MODEL,
        num_rounds=1,
        round={"quorum": 1, "deadline_seconds": 3600},
        selection=selection,
        strategy={"weighting": "uniform"},
    )
    task = clients[3].claim(run_id).json()
    assert clients[3].http.delete(f"/v1/tasks/{task['task_id']}").status_code == 204
    # A mean of the three would be 11/3; the coins of 5 clients come up on average.
    assert play(shared_operator, clients[:3], run_id, [1, 100, 9]) == float(np.float32(11 / 5))
