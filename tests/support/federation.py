"""Plain clients that are asked one after another, so that what selection decides is the only thing that varies."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from tests.support.participant import Participant, create_run, enrol, update_body, wait_for_run

MODEL = {"w": np.zeros(2, dtype=np.float32)}


def update(num_examples: int = 1, value: float = 1.0) -> bytes:
    """Makes an update of the small model."""
    return update_body({"w": np.full(2, value, dtype=np.float32)}, num_examples=num_examples)


def federation(operator: httpx.Client, strata: Mapping[str, int]) -> dict[str, list[Participant]]:
    """Enrols so many clients of each region."""
    return {
        region: [enrol(operator, f"{region}-{index}", region=region) for index in range(number)]
        for region, number in strata.items()
    }


def draft(operator: httpx.Client, clients: Sequence[Participant], **spec: Any) -> str:
    """Creates a run and lets clients be seen by it before it is started."""
    run_id = create_run(operator, MODEL, start=False, **spec)
    for client in clients:
        assert client.claim(run_id).status_code == 204
    return run_id


def start(operator: httpx.Client, run_id: str) -> None:
    """Starts a run."""
    started = operator.post(f"/v1/runs/{run_id}/start")
    assert started.status_code == 200, started.text


def claim_all(clients: Sequence[Participant], run_id: str) -> dict[str, Mapping[str, Any]]:
    """Lets every client ask once; gives the tasks of those who got one, by client."""
    tasks = {}
    for client in clients:
        answer = client.claim(run_id)
        assert answer.status_code in (200, 201, 204), answer.text
        if answer.status_code != 204:
            tasks[client.client_id] = answer.json()
    return tasks


def answer_all(clients: Sequence[Participant], tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Lets every client that holds a task send an update, which must be accepted."""
    for client in clients:
        if client.client_id in tasks:
            sent = client.put(tasks[client.client_id]["task_id"], update())
            assert sent.status_code == 201, sent.text


def play(operator: httpx.Client, clients: Sequence[Participant], run_id: str, *, round_number: int) -> set[str]:
    """Plays one round of instant clients to its model; gives who took part."""
    tasks = claim_all(clients, run_id)
    answer_all(clients, tasks)
    wait_for_run(operator, run_id, version=round_number)
    return set(tasks)


def round_of(operator: httpx.Client, run_id: str, number: int = 1) -> dict[str, Any]:
    """Gives the newest attempt at a round."""
    found: dict[str, Any] = operator.get(f"/v1/runs/{run_id}/rounds/{number}").json()
    return found
