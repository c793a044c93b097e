"""What a run does with its evaluations: their cohort, strata, the target, patience, quarantine, the best version."""

import httpx

from tests.support.events import read_events
from tests.support.learning import LONG, begin, flat_body
from tests.support.participant import wait_for_run
from tests.support.refusals import assert_refused
from tests.support.waiting import eventually

ACCURACY = {"metric": "accuracy", "mode": "max"}


def test_an_evaluation_has_a_cohort_a_quorum_and_a_deadline_of_its_own(shared_operator: httpx.Client) -> None:
    terms = {"every": 1, "cohort_size": 3, "quorum": 2, "deadline_seconds": 100}
    course = begin(shared_operator, num_clients=4, evaluation=terms)
    course.train(1.0)
    tasks = [course.claim(client, "evaluate") for client in course.clients[:3]]
    # The cohort is full: the fourth is asked to train.
    assert course.claim(course.clients[3])["kind"] == "train"
    opened, completed = tasks[0]["deadline_at"], course.get("/rounds/1")["completed_at"]
    seconds = int(opened[17:19]) + 60 * int(opened[14:16]) - int(completed[17:19]) - 60 * int(completed[14:16])
    assert seconds % 3600 == 100
    sent = [
        course.report(client, task, num_examples=weight, loss=float(weight))
        for client, task, weight in zip(course.clients, tasks, (1, 3, 9), strict=False)
    ]
    assert [answer.status_code for answer in sent] == [201, 201, 410]
    assert_refused(sent[2], "round-closed")
    round_ = course.get("/rounds/1")
    assert (round_["evaluation"], round_["evaluation_by_stratum"]) == ({"loss": 2.5}, None)


def test_too_few_reports_by_the_deadline_are_no_evaluation(shared_operator: httpx.Client) -> None:
    terms = {"every": 1, "cohort_size": 3, "min_reports": 2, "deadline_seconds": 1.5}
    spec = {"round": {"quorum": 3, "deadline_seconds": LONG}, "num_rounds": 1}
    target = ACCURACY | {"value": 0.5}
    course = begin(shared_operator, num_clients=3, evaluation=terms | {"quorum": 3, "target": target}, **spec)
    course.train(1.0, 1.0, 1.0)
    task = course.claim(course.clients[0], "evaluate")
    assert course.report(course.clients[0], task, accuracy=0.9).status_code == 201
    eventually(lambda: course.run["state"] == "completed")
    assert course.get("/rounds/1")["evaluation"] is None
    assert (course.run["reason"], course.run["best_version"]) == (None, None)
    told = [event["data"] for event in read_events(shared_operator, course.run_id)]
    assert [data["num_reports"] for data in told if "num_reports" in data] == [1]


def test_each_stratum_has_its_own_means(shared_operator: httpx.Client) -> None:
    regions = [{"region": "north"}, {"region": "north", "kind": "x"}, {"region": "süd"}, {"kind": "y"}]
    evaluation = {"every": 1, "cohort_size": 4, "quorum": 4, "strata": "region"}
    course = begin(shared_operator, attributes=regions, evaluation=evaluation)
    course.train(1.0)
    tasks = [course.claim(client, "evaluate") for client in course.clients]
    for client, task, weight in zip(course.clients, tasks, (1, 3, 4, 8), strict=True):
        assert course.report(client, task, num_examples=weight, loss=float(weight)).status_code == 201
    round_ = course.get("/rounds/1")
    assert round_["evaluation"] == {"loss": (1 + 9 + 16 + 64) / 16}
    assert round_["evaluation_by_stratum"] == {
        "": {"num_examples": 8, "num_reports": 1, "metrics": {"loss": 8.0}},
        "north": {"num_examples": 4, "num_reports": 2, "metrics": {"loss": 2.5}},
        "süd": {"num_examples": 4, "num_reports": 1, "metrics": {"loss": 4.0}},
    }


def test_who_is_not_eligible_evaluates_nothing(shared_operator: httpx.Client) -> None:
    own = {"region": "north"}
    course = begin(
        shared_operator,
        attributes=[own, {"region": "south"}, {}, own],
        selection={"eligibility": {"region": ["north"]}, "max_participations": 1},
        evaluation={"every": 1, "cohort_size": 3, "quorum": 2},
        num_rounds=1,
    )
    course.train(1.0)
    for stranger in course.clients[1:3]:
        assert stranger.claim(course.run_id).status_code == 204
    # Who has trained as often as it may is still asked what the result is worth.
    for member in (course.clients[0], course.clients[3]):
        task = course.claim(member, "evaluate")
        assert course.report(member, task, loss=1.0).status_code == 201
    eventually(lambda: course.run["state"] == "completed")


def test_a_run_is_completed_when_its_target_is_reached(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, evaluation={"every": 1, "target": ACCURACY | {"value": 0.9}})
    course.train(1.0)
    assert course.evaluate(accuracy=0.89)["state"] == "running"
    course.train(1.0)
    # The next round is open by now; with the target reached it is not needed any more.
    assert course.get("/rounds/3")["state"] == "collecting"
    run = course.evaluate(accuracy=0.9)
    assert (run["state"], run["reason"]) == ("completed", "target reached: accuracy 0.9 >= 0.9 at version 2")
    assert (run["latest_version"], run["best_version"]) == (2, 2)
    assert course.get("/rounds/3")["state"] == "abandoned"
    assert_refused(course.clients[0].claim(course.run_id), "run-finished")
    assert course.tags() == {2: ["latest", "best"]}


def test_a_run_that_no_longer_learns_is_completed_with_the_reason(shared_operator: httpx.Client) -> None:
    stopping = {"metric": "loss", "mode": "min", "patience": 2, "min_delta": 0.1}
    course = begin(shared_operator, evaluation={"every": 1, "early_stopping": stopping})
    for loss in (1.0, 0.95, 0.92):
        course.train(1.0)
        run = course.evaluate(loss=loss)
    reason = "stopped early: in 2 evaluations loss was not better by more than 0.1 than 1 at version 1"
    assert (run["state"], run["reason"], run["best_version"]) == ("completed", reason, 3)


def test_a_run_that_was_paused_meanwhile_is_completed_when_it_is_resumed(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, evaluation={"every": 1, "target": ACCURACY | {"value": 0.9}})
    course.train(1.0)
    task = course.claim(course.clients[0], "evaluate")
    assert course.post("/pause").status_code == 200
    assert course.report(course.clients[0], task, accuracy=1.0).status_code == 201
    assert course.run["state"] == "paused"
    assert course.post("/resume").json()["state"] == "completed"


def test_a_version_that_falls_too_far_is_left_behind(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, evaluation={"every": 1, "quarantine": ACCURACY | {"max_fall": 0.1}})
    course.train(1.0)
    # No round opens before the version is known to be good.
    assert course.run["current_round"] == 1
    course.evaluate(accuracy=0.8)
    course.train(2.0)
    run = course.evaluate(accuracy=0.69)
    assert (run["state"], run["latest_version"], run["best_version"], run["current_round"]) == ("running", 3, 1, 3)
    assert [course.values(version) for version in (1, 2, 3, "latest", "best")] == [
        [1.0] * 3,
        [3.0] * 3,
        [1.0] * 3,
        [1.0] * 3,
        [1.0] * 3,
    ]
    bad, again = course.models()[2:]
    assert (bad["parent_version"], bad["restored_from"], bad["tags"]) == (1, None, ["quarantined"])
    assert (again["parent_version"], again["restored_from"], again["tags"]) == (1, 1, ["latest"])
    assert again["digest"] == course.models()[1]["digest"]
    assert course.get("/rounds/3")["base_version"] == 3
    told = [event["data"] for event in read_events(shared_operator, course.run_id, limit=14)]
    assert [data["quarantined"] for data in told if "quarantined" in data] == [False, True]
    assert [data["rolled_back_to"] for data in told if "rolled_back_to" in data] == [1]
    course.train(4.0)
    assert course.evaluate(accuracy=0.75)["best_version"] == 1
    assert course.values("latest") == [5.0] * 3


def test_the_last_round_may_be_left_behind_too(shared_operator: httpx.Client) -> None:
    evaluation = {"every": 1, "quarantine": ACCURACY | {"max_fall": 0}}
    course = begin(shared_operator, num_rounds=2, evaluation=evaluation)
    course.train(1.0)
    course.evaluate(accuracy=0.5)
    course.train(1.0)
    run = course.evaluate(accuracy=0.4)
    assert (run["state"], run["latest_version"]) == ("completed", 3)
    assert course.values("latest") == [1.0] * 3


def test_only_what_was_judged_good_is_gone_back_to(shared_operator: httpx.Client) -> None:
    """With an evaluation every second round the version in between may be what made the fall."""
    course = begin(shared_operator, evaluation={"every": 2, "quarantine": ACCURACY | {"max_fall": 0.1}})
    for delta in (1.0, 1.0):
        course.train(delta)
    course.evaluate(accuracy=0.9)
    for delta in (10.0, 10.0):
        course.train(delta)
    course.evaluate(accuracy=0.1)
    assert (course.models()[-1]["restored_from"], course.values("latest")) == (2, [2.0] * 3)


def test_there_is_no_best_version_before_an_evaluation(shared_operator: httpx.Client) -> None:
    course = begin(shared_operator, evaluation={"every": 1, "target": ACCURACY | {"value": 0.9}})
    answer = shared_operator.get(f"/v1/runs/{course.run_id}/models/best")
    assert_refused(answer, "not-found", "nobody reported 'accuracy' yet")
    course.train(1.0)
    course.evaluate(accuracy=0.1)
    answer = shared_operator.get(f"/v1/runs/{course.run_id}/models/best")
    assert (answer.headers["model-version"], answer.headers["cache-control"]) == ("1", "public, no-cache")


def test_a_late_answer_for_a_version_left_behind_is_refused(shared_operator: httpx.Client) -> None:
    evaluation = {"every": 1, "cohort_size": 2, "quorum": 1, "quarantine": ACCURACY | {"max_fall": 0.1}}
    course = begin(shared_operator, num_clients=2, evaluation=evaluation)
    first, second = course.clients
    course.train(1.0)
    course.evaluate(accuracy=0.9)
    course.train(1.0)
    late = course.claim(second, "evaluate")
    course.evaluate(accuracy=0.1)
    assert_refused(course.report(second, late, accuracy=0.9), "round-closed")
    task = course.claim(first)
    assert task["base_version"] == 3
    assert first.put(task["task_id"], flat_body(1.0)).status_code == 201
    wait_for_run(shared_operator, course.run_id, version=4)
