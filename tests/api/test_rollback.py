"""A run goes back to an earlier version: history only grows, what is open ends, and all goes on from what was then."""

import httpx
import numpy as np
import pytest

from tests.support.events import read_events
from tests.support.learning import LONG, Course, begin, flat_body
from tests.support.participant import create_run, unpack, update_body, wait_for_run
from tests.support.refusals import assert_refused

ACCURACY = {"metric": "accuracy", "mode": "max"}
DELTAS = (0.25, -0.7, 0.1)


def roll_back(course: Course, version: int) -> dict[str, object]:
    """Goes back to a version and gives the one that was made of it."""
    answer = course.post("/rollback", json={"version": version})
    assert answer.status_code == 201, answer.text
    made: dict[str, object] = answer.json()
    return made


def digests(course: Course) -> list[str]:
    return [model["digest"] for model in course.models()]


def test_an_open_round_ends_and_the_history_grows(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, num_clients=2, round={"quorum": 2, "max_attempts": 1, "deadline_seconds": LONG})
    course.train(1.0, 1.0)
    course.train(2.0, 2.0)
    before = course.models()
    first, second = course.clients
    tasks = [course.claim(client) for client in course.clients]
    receipt = first.put(tasks[0]["task_id"], flat_body(50.0))
    assert receipt.status_code == 201

    made = roll_back(course, 1)
    shown = {name: made[name] for name in ("version", "round", "parent_version", "restored_from", "tags")}
    assert shown == {"version": 3, "round": 1, "parent_version": 1, "restored_from": 1, "tags": ["latest"]}
    assert [model | {"tags": []} for model in course.models()[:3]] == [model | {"tags": []} for model in before]
    assert [course.values(version) for version in (1, 2, 3, "latest")] == [[1.0] * 3, [3.0] * 3, [1.0] * 3, [1.0] * 3]

    # What was acknowledged stays acknowledged, though it counts nowhere; what comes only now is refused.
    again = first.put(tasks[0]["task_id"], flat_body(50.0))
    assert (again.status_code, again.json()) == (200, receipt.json())
    late = second.put(tasks[1]["task_id"], flat_body(50.0))
    assert_refused(late, "round-closed", "round 3")
    attempts = [(done["number"], done["attempt"], done["state"]) for done in course.get("/rounds")["items"]]
    assert attempts[2:] == [(3, 1, "abandoned"), (3, 2, "collecting")]

    # A run that allows one attempt goes on: an attempt from another version is not the same one again.
    task = course.claim(first)
    assert (task["round"], task["attempt"], task["base_version"]) == (3, 2, 3)
    course.train(4.0, 4.0)
    assert course.values("latest") == [5.0] * 3
    told = read_events(shared_operator, course.run_id, limit=20)
    happened = [event["type"] for event in told if event["type"] != "update.accepted"]
    begun = ["round.opened", "round.closed", "model.published"]
    assert happened[:12] == [
        *["run.state", "model.published", "run.state"],
        *(begun * 2),
        *["round.opened", "round.abandoned", "model.published"],
    ]
    assert [event["data"]["rolled_back_to"] for event in told if "rolled_back_to" in event["data"]] == [1]


@pytest.mark.parametrize(
    "optimizer",
    [{"kind": "adam"}, {"kind": "yogi"}, {"momentum": 0.9, "nesterov": True}, {"kind": "adagrad"}],
    ids=["adam", "yogi", "nesterov", "adagrad"],
)
def test_the_optimizer_goes_on_from_the_state_it_had(
    shared_operator: httpx.Client, optimizer: dict[str, object]
) -> None:
    course = begin(shared_operator, server_optimizer=optimizer)
    for delta in DELTAS:
        course.train(delta)
    roll_back(course, 1)
    course.train(DELTAS[1])
    course.train(DELTAS[2])
    roll_back(course, 0)
    for delta in DELTAS:
        course.train(delta)
    # From a version that was published again one can go back to as well.
    roll_back(course, 4)
    course.train(DELTAS[1])
    found = digests(course)
    first = found[:4]
    assert len(set(first)) == 4
    assert found == [*first, *first[1:], *first, first[1], first[2]]


def test_the_best_version_and_the_patience_are_those_of_then(shared_operator: httpx.Client) -> None:
    stopping = ACCURACY | {"patience": 2}
    course = begin(shared_operator, evaluation={"every": 1, "early_stopping": stopping})
    for accuracy in (0.5, 0.9, 0.8):
        course.train(1.0)
        course.evaluate(accuracy=accuracy)
    assert course.run["best_version"] == 2
    roll_back(course, 1)
    assert course.run["best_version"] == 1
    course.train(1.0)
    # One more that did not help would have been the second; after the rollback it is the first.
    run = course.evaluate(accuracy=0.4)
    assert (run["state"], run["best_version"]) == ("running", 1)
    roll_back(course, 0)
    assert course.run["best_version"] is None
    assert_refused(shared_operator.get(f"/v1/runs/{course.run_id}/models/best"), "not-found", "nobody reported")


def test_an_open_evaluation_ends_without_a_result(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, num_clients=2, evaluation={"every": 1, "cohort_size": 2, "quorum": 2})
    course.train(1.0)
    tasks = [course.claim(client, "evaluate") for client in course.clients]
    assert course.report(course.clients[0], tasks[0], accuracy=0.5).status_code == 201
    roll_back(course, 0)
    assert_refused(course.report(course.clients[1], tasks[1], accuracy=0.5), "round-closed")
    assert course.get("/rounds/1")["evaluation"] is None
    assert course.claim(course.clients[1])["base_version"] == 2


def test_a_paused_run_stays_paused(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator)
    course.train(1.0)
    assert course.post("/pause").status_code == 200
    roll_back(course, 0)
    assert (course.run["state"], course.run["latest_version"]) == ("paused", 2)
    assert course.get("/rounds/2")["state"] == "abandoned"
    assert course.clients[0].claim(course.run_id).status_code == 204
    assert course.post("/resume").status_code == 200
    assert course.claim(course.clients[0])["base_version"] == 2


def test_a_repeated_request_with_its_key_goes_back_once(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator)
    course.train(1.0)
    key = {"Idempotency-Key": "back-to-the-start"}
    made = [course.post("/rollback", json={"version": 0}, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json() == made[1].json()
    assert course.run["latest_version"] == 2
    assert_refused(course.post("/rollback", json={"version": 1}, headers=key), "idempotency-key-reused")
    assert roll_back(course, 0)["version"] == 3


def test_control_variates_begin_anew_on_both_sides(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, algorithm={"kind": "scaffold", "num_clients": 2})
    client = course.clients[0]

    def contribute(control: float) -> dict[str, object]:
        task = course.claim(client)
        values = {name: np.full(3, number, "f4") for name, number in (("value", 1.0), ("control:value", control))}
        assert client.put(task["task_id"], update_body(values, num_examples=1)).status_code == 201
        wait_for_run(shared_operator, course.run_id, version=task["base_version"] + 1)
        return task

    contribute(2.0)
    second = contribute(4.0)
    assert second["counted_update"] is not None
    roll_back(course, 1)
    third = contribute(8.0)
    assert (third["base_version"], third["control_variate"], third["counted_update"]) == (3, None, None)
    answer = shared_operator.get(f"/v1/runs/{course.run_id}/models/4/control-variate")
    assert unpack(answer.content)["control:value"].tolist() == [4.0] * 3
    assert_refused(
        shared_operator.get(f"/v1/runs/{course.run_id}/models/3/control-variate"),
        "not-found",
        "version 3 has no control variate; those that a round of a SCAFFOLD run made have one",
    )
    assert contribute(1.0)["counted_update"] is not None


def test_what_cannot_be_gone_back_to_is_refused(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, num_rounds=2)
    course.train(1.0)
    history = digests(course)
    refused = course.post("/rollback", json={"version": 2})
    assert_refused(refused, "not-found", "the run has no model version 2; the newest is 1")
    for body, named in (
        ({"version": -1}, "version: Input should be greater than or equal to 0"),
        ({"version": "latest"}, "version: Input should be a valid integer"),
        ({"version": True}, "version: Input should be a valid integer"),
        ({}, "version: Field required"),
        ({"version": 0, "reason": "x"}, "reason: Extra inputs are not permitted"),
    ):
        assert_refused(course.post("/rollback", json=body), "invalid-request", named)
    assert digests(course) == history
    course.train(1.0)
    ended = course.post("/rollback", json={"version": 0})
    assert_refused(ended, "state-conflict", "the run is completed and cannot be rolled back", "of kind 'version'")
    draft = create_run(shared_operator, {"value": np.zeros(3, np.float32)}, start=False)
    answer = shared_operator.post(f"/v1/runs/{draft}/rollback", json={"version": 0})
    assert_refused(answer, "state-conflict", "the run is a draft; it has nothing to go back from")
    unknown = shared_operator.post(f"/v1/runs/run_{'0' * 32}/rollback", json={"version": 0})
    assert_refused(unknown, "not-found", "there is no run")
