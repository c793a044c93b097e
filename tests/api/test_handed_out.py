"""A short update to a task that was handed out lately needs no look-up: what holds when it is counted decides."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.federation import MODEL, update
from tests.support.participant import Participant, create_run, enrol, update_body
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored

LARGE = {"w": np.zeros(300_000, dtype=np.float32)}
"""An update of 1.2 MB is looked up before it is received."""


@pytest.fixture(scope="module")
def stored(shared_server: ServerProcess) -> Iterator[Stored]:
    with Stored(shared_server.database_url) as database:
        yield database


def claimed(operator: httpx.Client, model: Mapping[str, Any] = MODEL) -> tuple[str, Participant, str]:
    """Gives a run whose round waits for two, a client, and the task that it got."""
    run_id = create_run(operator, model, round={"quorum": 2, "cohort_size": 3})
    client = enrol(operator)
    return run_id, client, str(client.claim(run_id).json()["task_id"])


def num_updates(operator: httpx.Client, run_id: str) -> int:
    return int(operator.get(f"/v1/runs/{run_id}/rounds/1").json()["num_updates"])


@pytest.mark.parametrize("body", [update(), update_body(LARGE, num_examples=1)], ids=["short", "long"])
def test_a_token_that_was_revoked_after_the_claim_counts_nothing(
    shared_operator: httpx.Client, stored: Stored, body: bytes
) -> None:
    run_id, client, task_id = claimed(shared_operator, MODEL if len(body) < 1000 else LARGE)
    before = stored.counts()
    assert shared_operator.delete(f"/v1/clients/{client.client_id}").status_code == 204
    for _ in range(2):
        assert_refused(client.put(task_id, body), "unauthenticated", "revoked")
    assert stored.counts() == before
    assert num_updates(shared_operator, run_id) == 0


def test_a_token_that_expired_after_the_claim_counts_nothing(shared_operator: httpx.Client, stored: Stored) -> None:
    run_id, client, task_id = claimed(shared_operator)
    stored.change("UPDATE tokens SET expires_at = 1 WHERE client_id = :client", client=client.client_id)
    assert_refused(client.put(task_id, update()), "unauthenticated", "expired")
    assert num_updates(shared_operator, run_id) == 0


def test_who_sends_together_with_a_revoked_client_is_counted(shared_operator: httpx.Client) -> None:
    run_id, revoked, first = claimed(shared_operator)
    other = enrol(shared_operator, "other")
    second = str(other.claim(run_id).json()["task_id"])
    assert shared_operator.delete(f"/v1/clients/{revoked.client_id}").status_code == 204
    assert_refused(revoked.put(first, update()), "unauthenticated")
    assert other.put(second, update()).status_code == 201
    assert num_updates(shared_operator, run_id) == 1


def test_another_clients_token_does_not_answer_a_task_that_is_known(shared_operator: httpx.Client) -> None:
    run_id, client, task_id = claimed(shared_operator)
    other = enrol(shared_operator, "other")
    assert_refused(other.put(task_id, update()), "forbidden", "another client")
    assert_refused(httpx.put(f"{client.http.base_url}/v1/tasks/{task_id}/update", content=update()), "unauthenticated")
    assert num_updates(shared_operator, run_id) == 0


def test_an_update_that_was_counted_is_recognised_when_it_is_sent_again(shared_operator: httpx.Client) -> None:
    run_id, client, task_id = claimed(shared_operator)
    first, again = client.put(task_id, update()), client.put(task_id, update())
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert_refused(client.put(task_id, update(value=2.0)), "already-submitted")
    assert num_updates(shared_operator, run_id) == 1


def test_a_task_that_was_given_up_after_the_claim_is_refused(shared_operator: httpx.Client, stored: Stored) -> None:
    run_id, client, task_id = claimed(shared_operator)
    before = stored.counts()
    assert client.http.delete(f"/v1/tasks/{task_id}").status_code == 204
    assert_refused(client.put(task_id, update()), "round-closed", "given up")
    assert stored.counts() == before
    assert num_updates(shared_operator, run_id) == 0


def test_a_run_that_was_stopped_after_the_claim_takes_nothing(shared_operator: httpx.Client, stored: Stored) -> None:
    run_id, client, task_id = claimed(shared_operator)
    assert shared_operator.post(f"/v1/runs/{run_id}/stop").status_code == 200
    before = stored.counts()
    assert_refused(client.put(task_id, update()), "round-closed")
    assert stored.counts() == before


def test_a_client_that_was_excluded_after_the_claim_counts_nothing(shared_operator: httpx.Client) -> None:
    run_id, client, task_id = claimed(shared_operator)
    excluded = shared_operator.put(f"/v1/runs/{run_id}/exclusions/{client.client_id}", json={"reason": "test"})
    assert excluded.status_code in (200, 201, 204), excluded.text
    assert_refused(client.put(task_id, update()), "round-closed", "given up")
    assert num_updates(shared_operator, run_id) == 0
