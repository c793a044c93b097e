"""Helper mode over HTTP: the sum is the plain integers' sum, and each message has its time and its sender."""

import hashlib

import httpx
import numpy as np

from tests.support.helper_mode import HelperFederation, HelperParty, helper_spec
from tests.support.masked import flat
from tests.support.participant import create_run, small_model, unpack, wait_for_run


def federation(operator: httpx.Client, num_clients: int, num_helpers: int = 2, **changes) -> HelperFederation:
    helpers = [HelperParty(f"helper-{number}") for number in range(num_helpers)]
    run_id = create_run(operator, small_model(), **helper_spec(num_clients, helpers, **changes))
    made = HelperFederation.enrol(operator, run_id, num_clients, helpers)
    made.claim(examples=[100 * (1 + number) for number in range(num_clients)])
    return made


def report(operator: httpx.Client, run_id: str, number: int = 1):
    return operator.get(f"/v1/runs/{run_id}/rounds/{number}/mask-sum").json()


def test_the_sum_is_that_of_the_plain_integers(shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 4)
    made.contribute()
    made.check()
    made.answer()
    model = unpack(wait_for_run(shared_operator, made.run_id, version=1).content)
    told = report(shared_operator, made.run_id)
    assert told["state"] == "done"
    expected = made.expected()
    assert told["sum_digest"] == f"sha256:{hashlib.sha256(expected.astype('<i8').tobytes()).hexdigest()}"
    mean = expected[:-1] * made.ring.step / expected[-1]
    np.testing.assert_allclose(flat(model) - flat(small_model()), mean, atol=1e-6)
