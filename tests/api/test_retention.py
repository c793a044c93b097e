"""What a run's policy does not keep goes, what the run needs stays, and whoever asks is told which it was and why."""

import httpx
import pytest

from tests.support.learning import Course, begin, flat_body
from tests.support.participant import wait_for_run
from tests.support.refusals import assert_refused
from tests.support.waiting import eventually

NEWEST_TWO = {"kind": "newest", "count": 2}


def removed(course: Course) -> list[int]:
    """Lists the versions that are gone."""
    return [model["version"] for model in course.models() if model["removed_at"] is not None]


def refused_paths(course: Course, version: int) -> list[httpx.Response]:
    """Asks for a version in every way that needs its bytes."""
    path = f"/v1/runs/{course.run_id}/models/{version}"
    previous = {"kind": "version", "run_id": course.run_id, "version": version}
    return [
        course.operator.get(path),
        course.operator.get(f"{path}/export"),
        course.post("/rollback", json={"version": version}),
        course.operator.post("/v1/runs", json={"name": "next", "initial_model": previous}),
    ]


def test_old_versions_go_and_every_way_to_them_says_so(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, retention={"models": NEWEST_TWO})
    for number in range(5):
        course.train(float(number))
    before = course.models()
    eventually(lambda: removed(course) == [1, 2, 3])
    for answer in refused_paths(course, 2):
        assert_refused(answer, "removed", "version 2", "retention.models", before[2]["digest"])
    told = [{**model, "removed_at": None} for model in course.models()]
    assert told == [{**model, "removed_at": None} for model in before]
    assert [course.values(version)[0] for version in (0, 4, 5)] == [0.0, 6.0, 10.0]
    # A base that is gone is one that the server does not know: the answer is the whole model.
    whole = course.operator.get(f"/v1/runs/{course.run_id}/models/5", params={"base": 3})
    assert whole.status_code == 200
    assert whole.headers["etag"].strip('"') == before[5]["digest"]


def test_the_model_of_a_task_that_is_out_is_kept_however_old(shared_operator: httpx.Client) -> None:
    buffers = {"kind": "buffered", "buffer_size": 1, "concurrency": 2, "max_staleness": 20, "deadline_seconds": 3600}
    course = begin(shared_operator, num_clients=2, round=buffers, retention={"models": {"kind": "newest", "count": 1}})
    slow, fast = course.clients

    def answer_one(version: int) -> None:
        assert fast.put(course.claim(fast)["task_id"], flat_body(1.0)).status_code == 201
        wait_for_run(course.operator, course.run_id, version=version)

    answer_one(1)
    task = course.claim(slow)
    assert task["base_version"] == 1
    for version in (2, 3, 4):
        answer_one(version)
    eventually(lambda: removed(course) == [2, 3])
    assert slow.http.get(task["model_url"]).status_code == 200
    assert slow.put(task["task_id"], flat_body(1.0)).status_code == 201
    wait_for_run(course.operator, course.run_id, version=5)
    eventually(lambda: removed(course) == [1, 2, 3, 4])


def test_the_best_version_and_what_was_restored_are_kept(shared_operator: httpx.Client) -> None:
    evaluation = {"every": 1, "target": {"metric": "accuracy", "mode": "max", "value": 2}}
    course = begin(shared_operator, evaluation=evaluation, retention={"models": NEWEST_TWO})
    for accuracy in (0.9, 0.5, 0.4):
        course.train(1.0)
        course.evaluate(accuracy=accuracy)
    course.train(1.0)
    course.evaluate(accuracy=0.1)
    eventually(lambda: removed(course) == [2])
    assert course.post("/rollback", json={"version": 1}).status_code == 201
    course.train(1.0)
    course.evaluate(accuracy=0.2)
    course.train(1.0)
    eventually(lambda: removed(course) == [2, 3, 4])
    assert course.values(1) == course.values("best") == [1.0] * 3


def test_updates_go_once_their_round_is_a_model_and_their_receipts_stay(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, retention={"updates": {"kind": "until_published", "rounds": 1}})
    task = course.claim(course.clients[0])
    receipt = course.clients[0].put(task["task_id"], flat_body(1.0))
    assert receipt.status_code == 201
    wait_for_run(course.operator, course.run_id, version=1)
    course.train(1.0)

    def gone() -> list[bool]:
        items = [course.get(f"/rounds/{number}/updates")["items"][0] for number in (1, 2)]
        return [item["removed_at"] is not None for item in items]

    eventually(lambda: gone() == [True, False])
    again = course.clients[0].put(task["task_id"], flat_body(1.0))
    assert (again.status_code, again.json()) == (200, receipt.json())
    told = course.get("/rounds/1/updates")["items"][0]
    assert (told["digest"], told["weight"]) == (receipt.json()["digest"], 1)


@pytest.mark.parametrize(
    ("retention", "told"),
    [
        ({"models": {"kind": "newest", "count": 0}}, "retention.models"),
        ({"models": {"kind": "until_published"}}, "retention.models"),
        ({"updates": {"kind": "until_published", "rounds": -1}}, "retention.updates"),
        ({"events": {"kind": "keep"}}, "retention.events"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_name(
    shared_operator: httpx.Client, retention: dict[str, object], told: str
) -> None:
    answer = shared_operator.post("/v1/runs", json={"name": "run", "retention": retention})
    assert_refused(answer, "invalid-request", told)
