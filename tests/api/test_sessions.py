"""A masked round by plain HTTP: whole sessions, and every rule by which one refuses."""

import httpx
import numpy as np

from tests.support.masked import MaskedCohort, flat, masked_spec, run_through
from tests.support.participant import create_run, small_model, unpack, wait_for_run


def published_delta(http: httpx.Client, run_id: str) -> np.ndarray:
    """Gives what the first round has changed."""
    model = unpack(wait_for_run(http, run_id, version=1).content)
    return flat(model) - flat(small_model())


def test_a_session_of_five_publishes_the_mean_of_their_updates(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, small_model(), **masked_spec(5))
    cohort = MaskedCohort.enrol(shared_operator, run_id, 5)
    cohort.claim(examples=[100, 200, 300, 400, 100_000])
    run_through(cohort)
    assert cohort.clients[0].leave("summing") == "done"
    total = cohort.expected()
    mean = total[:-1] * cohort.ring.step / total[-1]
    np.testing.assert_allclose(published_delta(shared_operator, run_id), mean, atol=1e-6)
