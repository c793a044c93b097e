"""A run that a test drives step by step: rounds of chosen deltas, evaluations of chosen values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from tests.support.participant import Participant, Tensors, create_run, enrol, unpack, update_body, wait_for_run

LONG = 3600

Json = dict[str, Any]


def flat_model() -> Tensors:
    """Makes a model of one tensor of zeros."""
    return {"value": np.zeros(3, dtype=np.float32)}


def flat_body(number: float, num_examples: int = 1) -> bytes:
    """Writes an update that adds a number to each element."""
    return update_body({"value": np.full(3, number, dtype=np.float32)}, num_examples=num_examples)


@dataclass
class Course:
    """One run and its clients, of which the first ones train and all evaluate."""

    operator: httpx.Client
    run_id: str
    clients: Sequence[Participant]

    @property
    def run(self) -> Json:
        """The run as it is now."""
        return self.get("")

    def get(self, path: str) -> Json:
        """Reads something of the run."""
        answer = self.operator.get(f"/v1/runs/{self.run_id}{path}")
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    def post(self, path: str, **request: Any) -> httpx.Response:
        """Steers the run."""
        return self.operator.post(f"/v1/runs/{self.run_id}{path}", **request)

    def claim(self, client: Participant, kind: str = "train") -> Json:
        """Claims a task that must come."""
        answer = client.claim(self.run_id, wait=20)
        assert answer.status_code in (200, 201), (answer.status_code, answer.text)
        task: Json = answer.json()
        assert task["kind"] == kind, task
        return task

    def train(self, *deltas: float) -> Json:
        """Lets the first clients contribute to a round, and waits for its model; gives the run after it."""
        before = self.run["latest_version"]
        tasks = [self.claim(client) for client, _ in zip(self.clients, deltas, strict=False)]
        for client, task, delta in zip(self.clients, tasks, deltas, strict=False):
            assert client.put(task["task_id"], flat_body(delta)).status_code == 201
        wait_for_run(self.operator, self.run_id, version=before + 1)
        return self.run

    def report(self, client: Participant, task: Json, *, num_examples: int = 1, **metrics: float) -> httpx.Response:
        """Sends what a client measured."""
        report = {"num_examples": num_examples, "metrics": metrics}
        return client.http.put(f"/v1/tasks/{task['task_id']}/evaluation", json=report)

    def evaluate(self, **metrics: float) -> Json:
        """Lets the first client report, which completes an evaluation of one; gives the run after it."""
        task = self.claim(self.clients[0], "evaluate")
        assert self.report(self.clients[0], task, **metrics).status_code == 201
        return self.run

    def values(self, version: int | str) -> list[float]:
        """Gives the tensor of a version."""
        answer = self.operator.get(f"/v1/runs/{self.run_id}/models/{version}")
        assert answer.status_code == 200, answer.text
        values: list[float] = unpack(answer.content)["value"].tolist()
        return values

    def models(self) -> list[Json]:
        """Lists the versions."""
        items: list[Json] = self.get("/models")["items"]
        return items

    def tags(self) -> dict[int, list[str]]:
        """Gives what stands out about the versions that do."""
        return {model["version"]: model["tags"] for model in self.models() if model["tags"]}


def begin(
    operator: httpx.Client, *, num_clients: int = 1, attributes: Sequence[Mapping[str, str]] = (), **spec: Any
) -> Course:
    """Starts a run with clients of its own; a round takes one update unless the spec says otherwise."""
    spec = {"round": {"quorum": 1, "deadline_seconds": LONG}, "num_rounds": 20} | spec
    run_id = create_run(operator, flat_model(), **spec)
    own = [*attributes, *[{}] * (num_clients - len(attributes))]
    clients = [enrol(operator, f"client-{number}", **held) for number, held in enumerate(own)]
    return Course(operator, run_id, clients)
