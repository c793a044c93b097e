"""Races for what there is only one of: the last place of a quorum or a cohort, a task's update, a token's last use."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.events import read_events
from tests.support.participant import MEDIA_TYPE, Participant, create_run, enrol, small_model, update_body, wait_for_run
from tests.support.racing import at_once, held_back, spread
from tests.support.server import ServerProcess

NUM_RACERS = 10
NUM_TWINS = 10
LONG = 3600


def body_of(number: int) -> bytes:
    """Writes an update that tells its sender."""
    delta = {name: np.full_like(values, number + 1) for name, values in small_model().items()}
    return update_body(delta, num_examples=number + 1)


def slug(answer: httpx.Response) -> str:
    """Gives the problem type of a refusal."""
    kind: str = answer.json()["type"]
    return kind.removeprefix("/problems/")


@dataclass
class Racer:
    """A client that has its update at the finish line in every round; `won` are the rounds that counted it."""

    number: int
    client: Participant
    run_id: str
    num_rounds: int
    won: dict[int, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)

    def race(self, barrier: threading.Barrier) -> None:
        """Races in every round of the run."""
        body = body_of(self.number)
        for number in range(1, self.num_rounds + 1):
            task = self._claim(number)
            # Everybody's last byte is sent once everybody's other bytes are on their way: all are checked by then.
            answer = self.client.http.put(
                f"/v1/tasks/{task['task_id']}/update",
                content=held_back(body, barrier),
                headers={"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body))},
            )
            if answer.status_code == 201:
                self.won[number] = answer.json()["update_id"]
            else:
                assert (answer.status_code, slug(answer)) == (410, "round-closed"), answer.text
                self.lost.append(number)

    def _claim(self, number: int) -> dict[str, Any]:
        while (answer := self.client.claim(self.run_id, wait=20)).status_code == 204:
            pass
        task: dict[str, Any] = answer.json()
        assert (answer.status_code, task["round"], task["attempt"]) == (201, number, 1), answer.text
        return task


# Two quorums make 200 races on each database in the soak, and as many with two servers.
@pytest.mark.parametrize("num_rounds", [10, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.parametrize("quorum", [1, 4])
def test_ten_clients_race_for_the_last_place_of_a_quorum(
    servers: list[ServerProcess], quorum: int, num_rounds: int
) -> None:
    with servers[0].http() as operator:
        rounds = {"quorum": quorum, "cohort_size": NUM_RACERS, "deadline_seconds": LONG}
        run_id = create_run(operator, small_model(), num_rounds=num_rounds, round=rounds)
        clients = spread(servers, NUM_RACERS)
        racers = [Racer(number, client, run_id, num_rounds) for number, client in enumerate(clients)]
        at_once(Racer.race, racers)
        wait_for_run(operator, run_id, version=num_rounds)
        wins = Counter(number for racer in racers for number in racer.won)
        assert wins == dict.fromkeys(range(1, num_rounds + 1), quorum)
        check_rounds(operator, run_id, racers, quorum=quorum)
        check_closed_once(operator, run_id, num_rounds)


def check_rounds(operator: httpx.Client, run_id: str, racers: list[Racer], *, quorum: int) -> None:
    """Each round counts exactly those who were told so."""
    listed = operator.get(f"/v1/runs/{run_id}/rounds", params={"limit": 1000}).json()["items"]
    assert [(round_["number"], round_["attempt"]) for round_ in listed] == [
        (number, 1) for number in range(1, racers[0].num_rounds + 1)
    ]
    for round_ in listed:
        number = round_["number"]
        winners = {racer.client.client_id: racer for racer in racers if number in racer.won}
        members = operator.get(f"/v1/runs/{run_id}/rounds/{number}/updates").json()["items"]
        assert {member["client_id"]: member["update_id"] for member in members} == {
            client_id: racer.won[number] for client_id, racer in winners.items()
        }
        assert (round_["state"], round_["num_updates"], round_["num_tasks"]) == ("completed", quorum, NUM_RACERS)
        assert round_["num_examples"] == sum(racer.number + 1 for racer in winners.values())


def check_closed_once(operator: httpx.Client, run_id: str, num_rounds: int) -> None:
    """The events, which are numbered without a gap, tell of one closing and one model a round."""
    events = read_events(operator, run_id)
    assert [event["event_id"] for event in events] == list(range(1, len(events) + 1))
    counts = Counter(event["type"] for event in events)
    assert counts["round.opened"] == counts["round.closed"] == num_rounds
    assert counts["model.published"] == num_rounds + 1
    assert counts["round.abandoned"] == 0


@dataclass
class Twins:
    """A client with two connections, to two servers where there are two, in a run that waits for nobody else."""

    operator: httpx.Client
    client: Participant
    connections: list[httpx.Client]
    run_id: str

    def put(self, *bodies: bytes) -> list[httpx.Response]:
        """Puts two bodies for one task at the same instant; gives the answers by their status."""
        task_id = self.client.claim(self.run_id, wait=20).json()["task_id"]

        def put_one(index: int, barrier: threading.Barrier) -> httpx.Response:
            return self.connections[index].put(
                f"/v1/tasks/{task_id}/update",
                content=held_back(bodies[index], barrier),
                headers={"Content-Type": MEDIA_TYPE},
            )

        return sorted(at_once(put_one, range(len(bodies))), key=lambda answer: answer.status_code)

    def check_counted_once(self, accepted: httpx.Response) -> None:
        """The receipt's round counts this update and no other."""
        receipt = accepted.json()
        path = f"/v1/runs/{self.run_id}/rounds/{receipt['round']}"
        (member,) = self.operator.get(f"{path}/updates").json()["items"]
        assert self.operator.get(path).json()["num_updates"] == 1
        assert (member["update_id"], member["digest"]) == (receipt["update_id"], receipt["digest"])


@pytest.fixture
def twins(servers: list[ServerProcess]) -> Iterator[Twins]:
    """A client that sends everything twice."""
    with servers[0].http() as operator:
        rounds = {"quorum": 1, "deadline_seconds": LONG}
        run_id = create_run(operator, small_model(), num_rounds=NUM_TWINS + 1, round=rounds)
        client = enrol(operator)
        with servers[0].http(client.token) as first, servers[-1].http(client.token) as second:
            yield Twins(operator, client, [first, second], run_id)


def test_twin_uploads_of_the_same_bytes_get_the_same_receipt(twins: Twins) -> None:
    for number in range(NUM_TWINS):
        replayed, accepted = twins.put(body_of(number), body_of(number))
        assert (replayed.status_code, accepted.status_code) == (200, 201)
        assert replayed.json() == accepted.json()
        twins.check_counted_once(accepted)


def test_of_twin_uploads_of_different_bytes_one_is_counted(twins: Twins) -> None:
    for number in range(NUM_TWINS):
        accepted, refused = twins.put(body_of(number), body_of(number + 1))
        assert (accepted.status_code, refused.status_code, slug(refused)) == (201, 409, "already-submitted")
        twins.check_counted_once(accepted)


def test_the_last_use_of_an_enrolment_token_makes_one_client(servers: list[ServerProcess]) -> None:
    for _ in range(10):
        with servers[0].http() as operator:
            made = operator.post("/v1/enrolment-tokens", json={"max_uses": 1, "expires_in_seconds": 60})
        token = made.json()["token"]

        def enrol_one(index: int, barrier: threading.Barrier, token: str = token) -> int:
            with servers[index % len(servers)].http(token) as http:
                barrier.wait()
                return http.post("/v1/clients", json={"name": f"racer-{index}", "attributes": {}}).status_code

        assert Counter(at_once(enrol_one, range(6))) == {201: 1, 403: 5}


def test_claims_that_race_for_the_last_places_of_a_cohort_fill_it_exactly(servers: list[ServerProcess]) -> None:
    clients = spread(servers, NUM_RACERS)
    for cohort_size in (1, 2, 5, 9) * 3:
        with servers[0].http() as operator:
            rounds = {"quorum": 1, "cohort_size": cohort_size, "deadline_seconds": LONG}
            run_id = create_run(operator, small_model(), num_rounds=1, round=rounds)

            def claim(client: Participant, barrier: threading.Barrier, run_id: str = run_id) -> int:
                barrier.wait()
                return client.claim(run_id).status_code

            assert Counter(at_once(claim, clients)) == {201: cohort_size, 204: NUM_RACERS - cohort_size}
            assert operator.get(f"/v1/runs/{run_id}/rounds/1").json()["num_tasks"] == cohort_size
