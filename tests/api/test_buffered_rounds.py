"""A buffered run over HTTP: clients come when they like, and every buffer makes a model."""

from typing import Any

import httpx
import numpy as np

from tests.support.participant import Participant, Tensors, create_run, enrol, unpack, update_body, wait_for_run

LONG = 3600


def buffered(size: int, **changes: Any) -> dict[str, Any]:
    """Makes a RunSpec's round."""
    return {"kind": "buffered", "buffer_size": size, "deadline_seconds": LONG} | changes


def model_of(value: float = 0.0) -> Tensors:
    """Makes a model of one number."""
    return {"w": np.array([value], dtype=np.float32)}


def value_of(http: httpx.Client, run_id: str, version: int) -> float:
    """Reads the number of a version."""
    return float(unpack(http.get(f"/v1/runs/{run_id}/models/{version}").content)["w"][0])


def claim(client: Participant, run_id: str, wait: float = 0) -> dict[str, Any]:
    """Claims a new task."""
    answer = client.claim(run_id, wait)
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def send(client: Participant, task: dict[str, Any], value: float, num_examples: int = 1) -> httpx.Response:
    """Answers a task."""
    return client.put(task["task_id"], update_body(model_of(value), num_examples=num_examples))


def test_a_slow_clients_update_counts_later_and_less(shared_operator: httpx.Client) -> None:
    slow, fast = enrol(shared_operator), enrol(shared_operator)
    run_id = create_run(shared_operator, model_of(), num_rounds=4, round=buffered(1))
    late = claim(slow, run_id)
    for version in range(3):
        task = claim(fast, run_id, wait=20)
        assert (task["round"], task["base_version"]) == (version + 1, version)
        assert send(fast, task, 1.0).status_code == 201
        wait_for_run(shared_operator, run_id, version=version + 1)
    receipt = send(slow, late, 1.0)
    assert receipt.status_code == 201, receipt.text
    assert (late["base_version"], receipt.json()["round"]) == (0, 4)
    wait_for_run(shared_operator, run_id, version=4)
    assert value_of(shared_operator, run_id, 4) == 3.5
    (member,) = shared_operator.get(f"/v1/runs/{run_id}/rounds/4/updates").json()["items"]
    assert (member["client_id"], member["staleness"], member["weight"]) == (slow.client_id, 3, 1)
    assert shared_operator.get(f"/v1/runs/{run_id}").json()["state"] == "completed"
