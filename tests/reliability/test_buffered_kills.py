"""SIGKILL at every named point of a buffered run: nothing is lost or counted twice, and the bits are the same."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.chaos import (
    Fault,
    KillAfter,
    KillAt,
    PersistentClient,
    carry_out,
    check_nothing_is_left_over,
    taking_part,
)
from tests.support.databases import POSTGRES_IN_SOAK
from tests.support.insistent import Insistent
from tests.support.ledger import WEIGHTS, Ledger, digest_of
from tests.support.participant import (
    MEDIA_TYPE,
    Participant,
    Tensors,
    create_run,
    enrol,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.server import ServerProcess, free_port
from tests.support.zygote import Zygote

NUM_ROUNDS = 6
LARGE = 1_100_000
"""Parameters of a model whose bytes are written ahead of the transaction that names them (more than 4 MiB)."""
PLAN = (
    # In the order in which the driver comes by: uploads of the first buffers, then what makes a model of one.
    "intake.received:2",
    "intake.before_commit:2",
    "intake.after_commit:2",
    "aggregation.started:1",
    "aggregation.halfway:1",
    "aggregation.model_written:1",
    "publication.in_transaction:1",
    "publication.after_commit:1",
)
FAST, SLOW = 0, (1, 2, 3)
PERIOD = 3
"""A slow client sends what it made from the model three versions ago, which FedBuff's default discounts by a half."""


def delta_of(client: int, version: int, turn: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Gives what a client sends: numbers that float32 holds exactly and that float32 sums would round."""
    values = np.random.default_rng([client, version, turn]).integers(-(2**20), 2**20, 7)
    return (values / 2.0**12).astype(np.float32)


@dataclass
class Course:
    """A run of one fast and three slow clients, driven so that who counts where is the same each time."""

    driver: Insistent
    operator: httpx.Client
    clients: list[Participant]
    run_id: str
    held: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    expected: list[Tensors] = field(default_factory=lambda: [{"w": np.zeros(7, dtype=np.float32)}])
    receipts: dict[int, dict[str, int]] = field(default_factory=dict)

    def claim(self, client: int) -> None:
        """Takes a task on the newest model, whether or not the answer to an earlier claim was lost."""
        path = f"/v1/runs/{self.run_id}/tasks"
        answer = self.driver.send(self.clients[client].http, "POST", path, params={"wait": 10})
        assert answer.status_code in (200, 201), answer.text
        self.held[client] = answer.json()

    def send(self, client: int, turn: int, *, num_examples: int) -> tuple[Fraction, np.ndarray[Any, Any]]:
        """Answers the task held, and gives what it adds and with which weight."""
        task = self.held.pop(client)
        delta = delta_of(client, task["base_version"], turn)
        answer = self.driver.send(
            self.clients[client].http,
            "PUT",
            f"/v1/tasks/{task['task_id']}/update",
            content=update_body({"w": delta}, num_examples=num_examples),
            headers={"Content-Type": MEDIA_TYPE},
        )
        receipt, newest = answer.json(), len(self.expected) - 1
        assert receipt["round"] == newest + 1
        self.receipts.setdefault(receipt["round"], {})[receipt["update_id"]] = newest - task["base_version"]
        return num_examples * (Fraction(1) if newest == task["base_version"] else Fraction(1, 2)), delta

    def buffer(self, version: int) -> None:
        """Fills the buffer that makes the model after a version, with one update by a slow client."""
        slow = SLOW[version % len(SLOW)]
        sent = []
        for turn, (client, num_examples) in enumerate([(FAST, 1), (slow, 2), (FAST, 1)]):
            if client == FAST or client not in self.held:
                self.claim(client)
            sent.append(self.send(client, turn, num_examples=num_examples))
            if client == slow:
                self.claim(slow)
        self.expected.append(self._step([(weight / 4, delta) for weight, delta in sent]))
        path = f"/v1/runs/{self.run_id}/models/latest"
        reached = {"after": version, "wait": 30}
        assert self.driver.send(self.operator, "GET", path, params=reached).status_code == 200

    def _step(self, shares: list[tuple[Fraction, np.ndarray[Any, Any]]]) -> Tensors:
        base = self.expected[-1]["w"]
        moved = [sum(share * Fraction(float(delta[at])) for share, delta in shares) for at in range(base.size)]
        exact = [Fraction(float(value)) + move for value, move in zip(base, moved, strict=True)]
        return {"w": np.array([float(value) for value in exact], dtype=np.float32)}

    def digests(self) -> list[str]:
        """Holds each model against exact arithmetic and each buffer against the receipts; gives the models' digests."""
        digests = []
        for version, expected in enumerate(self.expected):
            body = self.operator.get(f"/v1/runs/{self.run_id}/models/{version}").content
            np.testing.assert_array_equal(unpack(body)["w"], expected["w"])
            digests.append(digest_of(body))
        for number, receipts in self.receipts.items():
            listed = self.operator.get(f"/v1/runs/{self.run_id}/rounds/{number}/updates").json()["items"]
            assert {update["update_id"]: update["staleness"] for update in listed} == receipts
            assert len(listed) == 3
        assert self.operator.get(f"/v1/runs/{self.run_id}").json()["state"] == "completed"
        return digests


def live(driver: Insistent, operator: httpx.Client) -> Course:
    """Takes a run from its start to its end."""
    rounds = {"kind": "buffered", "buffer_size": 3, "deadline_seconds": 3600}
    clients = [enrol(operator) for _ in range(4)]
    model: Tensors = {"w": np.zeros(7, dtype=np.float32)}
    course = Course(driver, operator, clients, create_run(operator, model, num_rounds=NUM_ROUNDS, round=rounds))
    for version in range(NUM_ROUNDS):
        course.buffer(version)
    return course


@POSTGRES_IN_SOAK
def test_kills_change_no_bit_of_a_run_with_stale_updates(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking)
    driver = Insistent(server, list(PLAN))
    driver.begin()
    try:
        with server.http() as operator:
            killed = live(driver, operator)
            assert driver.num_deaths == len(PLAN)
            digests = killed.digests()
            assert sum(age == PERIOD for ages in killed.receipts.values() for age in ages.values()) == NUM_ROUNDS - 3
            assert digests == live(driver, operator).digests()
        assert '"level": "error"' not in server.log, server.log[-4000:]
    finally:
        server.kill()


@POSTGRES_IN_SOAK
def test_kills_amid_large_uploads_lose_nothing(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking)
    faults = ["intake.chunks_stored:1", "intake.chunks_stored:2", "aggregation.halfway:1", "intake.chunks_stored:2"]
    driver = Insistent(server)
    driver.begin()
    ramp = np.arange(LARGE, dtype=np.float32) % 1000
    expected = np.zeros(LARGE, dtype=np.float32)
    try:
        with server.http() as operator:
            clients = [enrol(operator) for _ in range(2)]
            rounds = {"kind": "buffered", "buffer_size": 2, "deadline_seconds": 3600}
            run_id = create_run(operator, {"w": expected}, num_rounds=2, round=rounds)
            server.kill()
            driver.faults = list(faults)
            driver.begin()
            course = Course(driver, operator, clients, run_id)
            for version in range(2):
                for client, (weight, factor) in enumerate([(1, 1.0), (3, -0.5)]):
                    course.claim(client)
                    task = course.held.pop(client)
                    delta = ramp * np.float32(factor / (version + 1))
                    path = f"/v1/tasks/{task['task_id']}/update"
                    body = update_body({"w": delta}, num_examples=weight)
                    headers = {"Content-Type": MEDIA_TYPE}
                    driver.send(clients[client].http, "PUT", path, content=body, headers=headers)
                    expected = expected + delta * np.float32(weight / 4)
                reached = {"after": version, "wait": 30}
                driver.send(operator, "GET", f"/v1/runs/{run_id}/models/latest", params=reached)
            assert driver.num_deaths == len(faults)
            found = unpack(operator.get(f"/v1/runs/{run_id}/models/2").content)["w"]
            np.testing.assert_array_equal(found, expected)
        assert '"level": "error"' not in server.log, server.log[-4000:]
        check_nothing_is_left_over(database_url)
    finally:
        server.kill()


@dataclass
class Roamer(PersistentClient):
    """A client that comes when it likes; `acknowledged` has what it was promised, by the update's id."""

    acknowledged: dict[str, tuple[int, np.ndarray[Any, Any]]] = field(default_factory=dict)

    def answer(self, task: dict[str, Any]) -> None:
        """Answers a task; an update that has become too old may be refused, but never one that was acknowledged."""
        delta = delta_of(self.number, task["base_version"], len(self.acknowledged))
        content = update_body({"w": delta}, num_examples=WEIGHTS[self.number])
        path = f"/v1/tasks/{task['task_id']}/update"
        answer = self.send("PUT", path, content=content, headers={"Content-Type": MEDIA_TYPE})
        self.num_replays += answer.status_code == 200
        if answer.status_code == 410:
            return
        assert answer.status_code in (200, 201), answer.text
        receipt = answer.json()
        assert receipt["digest"] == digest_of(content)
        self.acknowledged[receipt["update_id"]] = (receipt["round"], delta)


def check_buffers(operator: httpx.Client, run_id: str, clients: Sequence[Roamer]) -> None:
    """Holds each buffer against what the clients were promised, and each model against what its buffer makes it."""
    promised = {update_id: held for client in clients for update_id, held in client.acknowledged.items()}
    numbers = {client.participant.client_id: client.number for client in clients}
    model, seen = np.zeros(7, dtype=np.float32), set()
    for number in range(1, 1 + max(round_ for round_, _ in promised.values())):
        path = f"/v1/runs/{run_id}/rounds/{number}"
        buffer, listed = operator.get(path).json(), operator.get(f"{path}/updates").json()["items"]
        assert {one["update_id"] for one in listed} == {name for name, held in promised.items() if held[0] == number}
        assert not seen & {one["update_id"] for one in listed}
        seen |= {one["update_id"] for one in listed}
        if buffer["state"] != "completed":
            continue
        assert (buffer["attempt"], buffer["result_version"], len(listed)) == (1, number, 3)
        total = sum(WEIGHTS[numbers[one["client_id"]]] for one in listed)
        exact = [Fraction(float(value)) for value in model]
        for one in listed:
            share = Fraction(WEIGHTS[numbers[one["client_id"]]], total * (1 + one["staleness"]))
            exact = [
                value + share * Fraction(float(d))
                for value, d in zip(exact, promised[one["update_id"]][1], strict=True)
            ]
        model = unpack(operator.get(f"/v1/runs/{run_id}/models/{number}").content)["w"]
        np.testing.assert_array_max_ulp(model, np.array([float(value) for value in exact], dtype=np.float32), maxulp=1)


def survive(database_url: str, folder: Path, *, plan: Sequence[Fault], forking: Zygote) -> None:
    """Lets a server die by a plan while clients come and go as they like."""
    server = ServerProcess(database_url, folder, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator:
            staleness = {"kind": "hinge", "slope": 1, "threshold": 0}
            rounds = {"kind": "buffered", "buffer_size": 3, "max_staleness": 2, "staleness": staleness}
            model: Tensors = {"w": np.zeros(7, dtype=np.float32)}
            run_id = create_run(operator, model, num_rounds=100_000, round=rounds)
            with taking_part(operator, run_id, Ledger(), kind=Roamer) as (clients, jobs):
                server.kill()
                carry_out(server, plan, forking=forking, jobs=jobs)
                server.zygote = forking
                server.start()
                newest = operator.get(f"/v1/runs/{run_id}").json()["latest_version"]
                wait_for_run(operator, run_id, version=newest + 2)
                assert operator.post(f"/v1/runs/{run_id}/stop").status_code == 200
                for job in jobs:
                    job.result()
            check_buffers(operator, run_id, [client for client in clients if isinstance(client, Roamer)])
        assert '"level": "error"' not in server.log, server.log[-4000:]
    finally:
        server.kill()


def crowded_plan(num_kills: int) -> list[Fault]:
    """Plans kills at named points and at random instants."""
    source = random.Random(20_261_126)
    names = [fault.split(":")[0] for fault in PLAN]
    points: list[Fault] = [KillAt(source.choice(names), source.randint(1, 5)) for _ in range(num_kills)]
    return [KillAfter(source.uniform(0.0, 0.4)) if source.random() < 0.4 else point for point in points]


@POSTGRES_IN_SOAK
def test_kills_amid_a_crowd_lose_nothing(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    survive(database_url, tmp_path, plan=crowded_plan(5), forking=forking)


@pytest.mark.soak
def test_200_kills_amid_a_crowd_lose_nothing(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    survive(database_url, tmp_path, plan=crowded_plan(200), forking=forking)
