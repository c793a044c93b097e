"""Central noise on top of masked sums: on the ring's grid, for the sensitivity that rounding at random has."""

import json
import math
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.masked import MaskedCohort, masked_spec, run_through
from tests.support.participant import create_run, unpack, wait_for_run

SIZE = 20_000
BUDGET = {"target_epsilon": 8.0, "delta": 1e-6, "clipping_norm": 1.0}
GAUSSIAN = BUDGET | {"kind": "central_gaussian"}
BLT = BUDGET | {"kind": "central_blt"}


def noised_rounds(
    operator: httpx.Client, num_rounds: int, **changes: Any
) -> tuple[MaskedCohort, list[np.ndarray], list[dict[str, Any]]]:
    """Runs rounds of three clients whose updates are all zero; gives the noise of each sum, and what was released."""
    model = {"w": np.zeros(SIZE, dtype=np.float64), "steps": np.array(7, dtype=np.int64)}
    spec = masked_spec(3, num_rounds=num_rounds, strategy={"weighting": "uniform"}, **changes)
    run_id = create_run(operator, model, **spec)
    cohort = MaskedCohort.enrol(operator, run_id, 3)
    noise, before = [], np.zeros(SIZE)
    for version in range(1, num_rounds + 1):
        for client in cohort.clients:
            client.claim(run_id)
            client.vector = np.zeros(SIZE, dtype=np.int64)
        run_through(cohort)
        published = unpack(wait_for_run(operator, run_id, version=version).content)
        assert published["steps"] == 7
        noise.append((published["w"] - before) * 3 / cohort.ring.step)
        before = published["w"]
    ledger = operator.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]
    spent = [json.loads(entry["text"])["noise"] for entry in ledger if entry["state"] == "spent"]
    return cohort, noise, spent


def test_noise_lies_on_the_rings_grid_and_is_what_the_ledger_says(shared_operator: httpx.Client) -> None:
    cohort, (noise,), (released,) = noised_rounds(shared_operator, 1, privacy=GAUSSIAN)
    multiplier = shared_operator.get(f"/v1/runs/{cohort.run_id}").json()["spec"]["privacy"]["noise_multiplier"]
    sensitivity = math.ceil(1.0 / cohort.ring.step * (1 + 2**-40)) + math.ceil(math.sqrt(SIZE))
    assert released["step"] == cohort.ring.step
    assert released["sensitivity"] == sensitivity
    assert released["stddev"] == pytest.approx(multiplier * sensitivity)
    np.testing.assert_allclose(noise, np.rint(noise), atol=1e-3)
    assert noise.std() == pytest.approx(multiplier * sensitivity, rel=0.03)
    assert abs(noise.mean()) < 5 * noise.std() / math.sqrt(SIZE)


def test_correlated_noise_remembers_what_it_has_added_to_masked_sums(shared_operator: httpx.Client) -> None:
    _, noise, released = noised_rounds(shared_operator, 2, privacy=BLT, selection={"max_participations": 2})
    assert released[0]["step"] == released[1]["step"]
    # The second round takes back a part of what the first one added.
    assert np.corrcoef(noise[0], noise[1])[0, 1] < -0.05
