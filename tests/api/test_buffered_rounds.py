"""A buffered run over HTTP: clients come when they like, and every buffer makes a model."""

from typing import Any

import httpx
import numpy as np

from tests.support.participant import Participant, Tensors, create_run, enrol, unpack, update_body, wait_for_run
from tests.support.refusals import assert_refused

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


def answer(client: Participant, run_id: str, value: float, wait: float = 20) -> dict[str, Any]:
    """Claims a task and answers it at once; gives the task."""
    task = claim(client, run_id, wait)
    accepted = send(client, task, value)
    assert accepted.status_code == 201, accepted.text
    return task


def test_an_update_beyond_the_maximum_staleness_is_refused_and_its_client_begins_afresh(
    shared_operator: httpx.Client,
) -> None:
    slow, fast = enrol(shared_operator), enrol(shared_operator)
    run_id = create_run(shared_operator, model_of(), num_rounds=3, round=buffered(1, max_staleness=1))
    late = claim(slow, run_id)
    answer(fast, run_id, 1.0)
    wait_for_run(shared_operator, run_id, version=1)
    assert slow.claim(run_id).json()["task_id"] == late["task_id"]
    answer(fast, run_id, 1.0)
    wait_for_run(shared_operator, run_id, version=2)
    assert_refused(
        send(slow, late, 1.0),
        "round-closed",
        "2 versions stale and round.max_staleness is 1: it comes from version 0 and round 3 is applied to version 2",
    )
    assert answer(slow, run_id, 1.0)["base_version"] == 2
    wait_for_run(shared_operator, run_id, version=3)
    assert value_of(shared_operator, run_id, 3) == 3.0


def test_a_task_that_outlasts_its_deadline_makes_room_for_another(shared_operator: httpx.Client) -> None:
    silent, waiting = enrol(shared_operator), enrol(shared_operator)
    rounds = buffered(2, concurrency=1, deadline_seconds=1)
    run_id = create_run(shared_operator, model_of(), num_rounds=1, round=rounds)
    late = claim(silent, run_id)
    assert waiting.claim(run_id).status_code == 204
    assert claim(waiting, run_id, wait=20)["task_id"] != late["task_id"]
    assert_refused(send(silent, late, 1.0), "round-closed", "taken back (its deadline")


def test_one_client_may_fill_a_buffer_by_itself(shared_operator: httpx.Client) -> None:
    alone = enrol(shared_operator)
    run_id = create_run(shared_operator, model_of(), num_rounds=2, round=buffered(3))
    for _ in range(2):
        for value in (1.0, 2.0, 6.0):
            answer(alone, run_id, value)
    wait_for_run(shared_operator, run_id, version=2)
    listed = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates", params={"limit": 2}).json()
    rest = {"limit": 2, "cursor": listed["next_cursor"]}
    others = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates", params=rest).json()["items"]
    assert {one["client_id"] for one in listed["items"] + others} == {alone.client_id}
    assert len({one["update_id"] for one in listed["items"] + others}) == 3
    assert value_of(shared_operator, run_id, 1) == 3.0


def test_where_a_client_could_outvote_others_it_counts_once_in_a_buffer(shared_operator: httpx.Client) -> None:
    first, second = enrol(shared_operator), enrol(shared_operator)
    rounds = buffered(2, staleness={"kind": "constant"})
    run_id = create_run(shared_operator, model_of(), num_rounds=2, round=rounds, strategy={"kind": "median"})
    answer(first, run_id, 1.0)
    assert first.claim(run_id).status_code == 204
    answer(second, run_id, 3.0)
    assert claim(first, run_id)["round"] == 2
    wait_for_run(shared_operator, run_id, version=1)
    assert value_of(shared_operator, run_id, 1) == 2.0


def test_places_are_few_and_one_that_is_given_up_is_offered_again(shared_operator: httpx.Client) -> None:
    first, second, third = (enrol(shared_operator) for _ in range(3))
    run_id = create_run(shared_operator, model_of(), num_rounds=2, round=buffered(2, concurrency=2))
    answer(first, run_id, 1.0)
    given_up = claim(second, run_id)
    claim(third, run_id)
    assert first.claim(run_id).status_code == 204
    assert second.http.delete(f"/v1/tasks/{given_up['task_id']}").status_code == 204
    assert_refused(send(second, given_up, 1.0), "round-closed", "was given up")
    again = claim(second, run_id)
    assert (again["round"], again["task_id"] != given_up["task_id"]) == (1, True)
    assert send(second, again, 3.0).status_code == 201
    assert claim(first, run_id)["round"] == 2
    wait_for_run(shared_operator, run_id, version=1)
    assert value_of(shared_operator, run_id, 1) == 2.0


def test_a_rollback_leaves_what_was_under_way_behind(shared_operator: httpx.Client) -> None:
    slow, fast, other = (enrol(shared_operator) for _ in range(3))
    run_id = create_run(shared_operator, model_of(), num_rounds=3, round=buffered(2))
    for version in (1, 2):
        answer(fast, run_id, 1.0)
        answer(other, run_id, 1.0)
        wait_for_run(shared_operator, run_id, version=version)
    late = claim(slow, run_id)
    answer(fast, run_id, 8.0)
    back = shared_operator.post(f"/v1/runs/{run_id}/rollback", json={"version": 1})
    assert (back.status_code, back.json()["version"]) == (201, 3), back.text
    assert_refused(send(slow, late, 1.0), "round-closed", "taken back (its deadline, a rollback")
    assert [answer(client, run_id, 1.0)["base_version"] for client in (slow, fast)] == [3, 3]
    wait_for_run(shared_operator, run_id, version=4)
    assert value_of(shared_operator, run_id, 4) == 2.0
    third = shared_operator.get(f"/v1/runs/{run_id}/rounds/3").json()
    assert (third["attempt"], third["base_version"], third["num_updates"]) == (2, 3, 2)
    assert shared_operator.get(f"/v1/runs/{run_id}").json()["state"] == "completed"


def test_evaluations_go_on_beside_the_training_and_a_target_ends_the_run(shared_operator: httpx.Client) -> None:
    trainer, judge = enrol(shared_operator), enrol(shared_operator)
    target = {"metric": "accuracy", "mode": "max", "value": 0.9}
    evaluation = {"every": 1, "cohort_size": 1, "target": target}
    run_id = create_run(shared_operator, model_of(), num_rounds=9, round=buffered(1), evaluation=evaluation)
    answer(trainer, run_id, 1.0)
    wait_for_run(shared_operator, run_id, version=1)
    asked = claim(judge, run_id)
    assert (asked["kind"], asked["base_version"]) == ("evaluate", 1)
    task = claim(trainer, run_id)
    assert task["kind"] == "train"
    report = {"num_examples": 10, "metrics": {"accuracy": 0.95}}
    assert judge.http.put(f"/v1/tasks/{asked['task_id']}/evaluation", json=report).status_code == 201
    run = shared_operator.get(f"/v1/runs/{run_id}").json()
    assert (run["state"], run["best_version"]) == ("completed", 1)
    assert "target reached" in run["reason"]
    assert_refused(send(trainer, task, 1.0), "round-closed")


def test_a_robust_strategy_decides_over_a_buffer(shared_operator: httpx.Client) -> None:
    clients = [enrol(shared_operator) for _ in range(3)]
    rounds = buffered(3, staleness={"kind": "constant"})
    run_id = create_run(shared_operator, model_of(), num_rounds=1, round=rounds, strategy={"kind": "median"})
    for client, value in zip(clients, (1.0, 100.0, 2.0), strict=True):
        answer(client, run_id, value)
    wait_for_run(shared_operator, run_id, version=1)
    assert value_of(shared_operator, run_id, 1) == 2.0


def test_who_may_take_part_is_a_matter_of_attributes_rest_and_exclusion(shared_operator: httpx.Client) -> None:
    north = [enrol(shared_operator, region="north") for _ in range(3)]
    south = enrol(shared_operator, region="south")
    selection = {"eligibility": {"region": ["north"]}, "min_separation": 1, "max_participations": 2}
    run_id = create_run(shared_operator, model_of(), num_rounds=9, round=buffered(1), selection=selection)
    assert south.claim(run_id).status_code == 204
    for number, client in enumerate((north[0], north[1], north[0], north[1]), start=1):
        answer(client, run_id, 1.0)
        wait_for_run(shared_operator, run_id, version=number)
        assert client.claim(run_id).status_code == 204
    assert [client.claim(run_id).status_code for client in north[:2]] == [204, 204]
    held = claim(north[2], run_id)
    path = f"/v1/runs/{run_id}/exclusions/{north[2].client_id}"
    assert shared_operator.put(path, json={"reason": "sends noise"}).status_code in (200, 201)
    assert_refused(send(north[2], held, 1.0), "round-closed", "taken back")
    assert_refused(north[2].claim(run_id), "forbidden", "sends noise")


def test_while_a_run_is_paused_updates_under_way_still_fill_its_buffers(shared_operator: httpx.Client) -> None:
    first, second, third = (enrol(shared_operator) for _ in range(3))
    run_id = create_run(shared_operator, model_of(), num_rounds=2, round=buffered(1))
    tasks = [claim(client, run_id) for client in (first, second)]
    assert shared_operator.post(f"/v1/runs/{run_id}/pause").status_code == 200
    assert third.claim(run_id).status_code == 204
    assert send(first, tasks[0], 1.0).status_code == 201
    wait_for_run(shared_operator, run_id, version=1)
    assert send(second, tasks[1], 1.0).json()["round"] == 2
    wait_for_run(shared_operator, run_id, version=2)
    assert shared_operator.post(f"/v1/runs/{run_id}/resume").status_code == 200
    assert shared_operator.get(f"/v1/runs/{run_id}").json()["state"] == "completed"


def test_a_combination_that_cannot_work_is_refused_when_the_run_is_created(shared_operator: httpx.Client) -> None:
    wrong = {"name": "test", "round": buffered(4), "selection": {"kind": "uniform"}}
    assert_refused(
        shared_operator.post("/v1/runs", json=wrong),
        "invalid-request",
        "selection.kind 'uniform' needs synchronous rounds: a buffer has no cohort to draw",
        "take 'open'",
    )
