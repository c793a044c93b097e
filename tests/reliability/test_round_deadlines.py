"""What time, operators and restarts do to a round: deadlines, attempts, pauses, evaluations, events and waits."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.events import read_events
from tests.support.participant import Participant, Tensors, create_run, enrol, unpack, update_body, wait_for_run
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

LONG = 3600
SOON = 1.5
"""Seconds until a deadline that a test lets pass: long enough for a few requests on a busy machine."""

Json = dict[str, Any]


def model() -> Tensors:
    return {"value": np.zeros(3, dtype=np.float32)}


def body(number: int, num_examples: int = 1) -> bytes:
    return update_body({"value": np.full(3, number, dtype=np.float32)}, num_examples=num_examples)


def begin(operator: httpx.Client, *, num_rounds: int = 1, **spec: Any) -> str:
    return create_run(operator, model(), num_rounds=num_rounds, round=spec.pop("round"), **spec)


def clients(operator: httpx.Client, number: int) -> list[Participant]:
    return [enrol(operator, f"client-{index}") for index in range(number)]


def claim(client: Participant, run_id: str, wait: float = 0) -> Json:
    """Claims a task that must be there, now or within the wait."""
    answer = client.claim(run_id, wait)
    assert answer.status_code in (200, 201), (answer.status_code, answer.text)
    task: Json = answer.json()
    return task


def refusal(answer: httpx.Response) -> tuple[int, str]:
    kind: str = answer.json()["type"]
    return answer.status_code, kind.removeprefix("/problems/")


def round_of(operator: httpx.Client, run_id: str, number: int = 1) -> Json:
    found: Json = operator.get(f"/v1/runs/{run_id}/rounds/{number}").json()
    return found


def run_of(operator: httpx.Client, run_id: str) -> Json:
    found: Json = operator.get(f"/v1/runs/{run_id}").json()
    return found


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def await_passing(deadline: str) -> None:
    """Waits until a deadline has passed; nothing may happen then, so there is nothing else to wait for."""
    time.sleep(max(0.0, (instant(deadline) - datetime.now(UTC)).total_seconds()) + 0.05)


def test_at_the_deadline_min_updates_are_enough(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 3, "min_updates": 2, "deadline_seconds": SOON})
    first, second, late = clients(shared_operator, 3)
    late_task = claim(late, run_id)
    for number, client in ((1, first), (5, second)):
        assert client.put(claim(client, run_id)["task_id"], body(number)).status_code == 201
    answer = wait_for_run(shared_operator, run_id, version=1)
    assert unpack(answer.content)["value"].tolist() == [3.0, 3.0, 3.0]
    round_ = round_of(shared_operator, run_id)
    assert (round_["state"], round_["attempt"], round_["num_updates"]) == ("completed", 1, 2)
    assert instant(round_["closed_at"]) >= instant(round_["deadline_at"])
    assert refusal(late.put(late_task["task_id"], body(9))) == (410, "round-closed")


def test_with_fewer_the_round_is_tried_again_with_a_fresh_cohort(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 2, "deadline_seconds": 2, "max_attempts": 5})
    early, late, third = clients(shared_operator, 3)
    early_task, late_task = claim(early, run_id), claim(late, run_id)
    assert early.put(early_task["task_id"], body(100)).status_code == 201
    eventually(lambda: round_of(shared_operator, run_id)["attempt"] == 2)
    assert refusal(late.put(late_task["task_id"], body(9))) == (410, "round-closed")
    again, other = claim(early, run_id), claim(third, run_id)
    assert again["task_id"] != early_task["task_id"]
    assert [(task["round"], task["attempt"], task["base_version"]) for task in (again, other)] == [(1, 2, 0)] * 2
    for client, task in ((early, again), (third, other)):
        assert client.put(task["task_id"], body(2)).status_code == 201
    # What was acknowledged for the abandoned attempt is no part of the model.
    assert unpack(wait_for_run(shared_operator, run_id, version=1).content)["value"].tolist() == [2.0, 2.0, 2.0]
    listed = shared_operator.get(f"/v1/runs/{run_id}/rounds").json()["items"]
    assert [(one["attempt"], one["state"], one["num_updates"]) for one in listed] == [
        (1, "abandoned", 1),
        (2, "completed", 2),
    ]


def test_after_the_last_attempt_the_run_fails_with_the_reason(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 2, "deadline_seconds": 0.2, "max_attempts": 3})
    (client,) = clients(shared_operator, 1)
    answer = shared_operator.get(f"/v1/runs/{run_id}/models/latest", params={"after": 0, "wait": 30})
    assert answer.status_code == 204
    run = run_of(shared_operator, run_id)
    assert (run["state"], run["latest_version"]) == ("failed", 0)
    assert "round 1 was abandoned 3 times: 0 of at least 2 updates" in run["reason"]
    assert run["finished_at"] is not None
    refused = client.claim(run_id)
    assert refusal(refused) == (410, "run-finished")
    assert run["reason"] in refused.json()["detail"]
    kinds = [event["type"] for event in read_events(shared_operator, run_id)]
    assert kinds.count("round.opened") == kinds.count("round.abandoned") == 3
    assert kinds[-1] == "run.state"


def test_more_are_asked_than_are_needed_and_the_slowest_are_told_so(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 2, "cohort_size": 3, "deadline_seconds": LONG})
    asked, outside = clients(shared_operator, 3), enrol(shared_operator, "outside")
    tasks = [claim(client, run_id) for client in asked]
    assert outside.claim(run_id).status_code == 204
    answers = [client.put(task["task_id"], body(1)) for client, task in zip(asked, tasks, strict=True)]
    assert [answer.status_code for answer in answers] == [201, 201, 410]
    assert refusal(answers[2]) == (410, "round-closed")
    assert asked[0].put(tasks[0]["task_id"], body(1)).json() == answers[0].json()
    round_ = round_of(shared_operator, run_id)
    assert (round_["num_tasks"], round_["num_updates"]) == (3, 2)


def test_a_task_given_up_frees_its_place(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 1, "deadline_seconds": LONG})
    first, second = clients(shared_operator, 2)
    task = claim(first, run_id)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.claim, run_id, 20)
        path = f"/v1/tasks/{task['task_id']}"
        assert [first.http.delete(path).status_code for _ in range(2)] == [204, 204]
        claimed = waiting.result()
    assert claimed.status_code == 201
    assert refusal(first.put(task["task_id"], body(1))) == (410, "round-closed")
    assert first.claim(run_id).status_code == 204
    assert second.put(claimed.json()["task_id"], body(1)).status_code == 201
    assert refusal(second.http.delete(f"/v1/tasks/{claimed.json()['task_id']}")) == (409, "already-submitted")
    wait_for_run(shared_operator, run_id, version=1)


def test_deadlines_stand_still_while_a_run_is_paused(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 2, "deadline_seconds": SOON, "max_attempts": 1})
    first, second, third = clients(shared_operator, 3)
    tasks = [claim(client, run_id) for client in (first, second)]
    assert shared_operator.post(f"/v1/runs/{run_id}/pause").json()["state"] == "paused"
    before = round_of(shared_operator, run_id)
    assert third.claim(run_id).status_code == 204
    await_passing(before["deadline_at"])
    # An update under way is still taken, and the time of the pause does not end the round.
    assert first.put(tasks[0]["task_id"], body(1)).status_code == 201
    assert round_of(shared_operator, run_id)["state"] == "collecting"
    assert shared_operator.post(f"/v1/runs/{run_id}/resume").json()["state"] == "running"
    after = round_of(shared_operator, run_id)
    assert after["state"] == "collecting"
    assert (instant(after["deadline_at"]) - instant(before["deadline_at"])).total_seconds() > SOON / 2
    assert second.put(tasks[1]["task_id"], body(3)).status_code == 201
    assert unpack(wait_for_run(shared_operator, run_id, version=1).content)["value"].tolist() == [2.0, 2.0, 2.0]


def test_a_round_that_fills_during_a_pause_goes_on_after_it(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, num_rounds=2, round={"quorum": 1, "deadline_seconds": LONG})
    (client,) = clients(shared_operator, 1)
    task = claim(client, run_id)
    shared_operator.post(f"/v1/runs/{run_id}/pause")
    assert client.put(task["task_id"], body(1)).status_code == 201
    wait_for_run(shared_operator, run_id, version=1)
    assert (run_of(shared_operator, run_id)["state"], client.claim(run_id).status_code) == ("paused", 204)
    shared_operator.post(f"/v1/runs/{run_id}/resume")
    assert client.put(claim(client, run_id)["task_id"], body(1)).status_code == 201
    wait_for_run(shared_operator, run_id, version=2)
    assert run_of(shared_operator, run_id)["state"] == "completed"


def test_stopping_a_run_abandons_its_round(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 2, "deadline_seconds": LONG})
    first, second = clients(shared_operator, 2)
    tasks = [claim(client, run_id) for client in (first, second)]
    assert first.put(tasks[0]["task_id"], body(1)).status_code == 201
    assert shared_operator.post(f"/v1/runs/{run_id}/stop").json()["state"] == "stopped"
    assert round_of(shared_operator, run_id)["state"] == "abandoned"
    assert refusal(second.put(tasks[1]["task_id"], body(1))) == (410, "round-closed")
    assert refusal(second.claim(run_id, 20)) == (410, "run-finished")
    last = read_events(shared_operator, run_id)[-1]
    assert (last["type"], last["data"]["state"]) == ("run.state", "stopped")


def test_an_acknowledged_update_counts_though_its_client_is_revoked(shared_operator: httpx.Client) -> None:
    run_id = begin(shared_operator, round={"quorum": 2, "deadline_seconds": LONG})
    revoked, other = clients(shared_operator, 2)
    assert revoked.put(claim(revoked, run_id)["task_id"], body(1)).status_code == 201
    assert shared_operator.delete(f"/v1/clients/{revoked.client_id}").status_code == 204
    assert refusal(revoked.claim(run_id)) == (401, "unauthenticated")
    assert other.put(claim(other, run_id)["task_id"], body(3)).status_code == 201
    assert unpack(wait_for_run(shared_operator, run_id, version=1).content)["value"].tolist() == [2.0, 2.0, 2.0]


def evaluate(client: Participant, task: Json, *, num_examples: int, loss: float) -> httpx.Response:
    report = {"num_examples": num_examples, "metrics": {"loss": loss}}
    return client.http.put(f"/v1/tasks/{task['task_id']}/evaluation", json=report)


def test_clients_evaluate_each_new_model_and_the_run_ends_after_the_last(shared_operator: httpx.Client) -> None:
    rounds = {"quorum": 2, "deadline_seconds": LONG}
    run_id = begin(shared_operator, num_rounds=2, round=rounds, evaluation={"every": 1})
    pair = clients(shared_operator, 2)
    for number in (1, 2):
        for client in pair:
            assert client.put(claim(client, run_id, 20)["task_id"], body(1)).status_code == 201
        wait_for_run(shared_operator, run_id, version=number)
        tasks = [claim(client, run_id) for client in pair]
        assert [(task["kind"], task["base_version"]) for task in tasks] == [("evaluate", number)] * 2
        assert run_of(shared_operator, run_id)["state"] == "running"
        receipts = [
            evaluate(client, task, num_examples=weight, loss=float(weight))
            for client, task, weight in zip(pair, tasks, (1, 3), strict=True)
        ]
        assert [answer.status_code for answer in receipts] == [201, 201]
        assert evaluate(pair[0], tasks[0], num_examples=1, loss=1.0).json() == receipts[0].json()
        assert round_of(shared_operator, run_id, number)["evaluation"] == {"loss": 2.5}
    assert run_of(shared_operator, run_id)["state"] == "completed"
    told = [event["data"] for event in read_events(shared_operator, run_id) if event["type"] == "evaluation.completed"]
    assert [(one["round"], one["version"], one["num_reports"], one["metrics"]) for one in told] == [
        (1, 1, 2, {"loss": 2.5}),
        (2, 2, 2, {"loss": 2.5}),
    ]


def test_an_evaluation_ends_at_its_deadline_with_what_has_arrived(shared_operator: httpx.Client) -> None:
    rounds = {"quorum": 2, "deadline_seconds": SOON}
    run_id = begin(shared_operator, round=rounds, evaluation={"every": 1})
    pair = clients(shared_operator, 2)
    tasks = [claim(client, run_id) for client in pair]
    for client, task in zip(pair, tasks, strict=True):
        assert client.put(task["task_id"], body(1)).status_code == 201
    wait_for_run(shared_operator, run_id, version=1)
    tasks = [claim(client, run_id) for client in pair]
    assert evaluate(pair[0], tasks[0], num_examples=5, loss=0.5).status_code == 201
    eventually(lambda: run_of(shared_operator, run_id)["state"] == "completed")
    assert round_of(shared_operator, run_id)["evaluation"] == {"loss": 0.5}
    assert refusal(evaluate(pair[1], tasks[1], num_examples=5, loss=0.5)) == (410, "round-closed")


def restart(server: ServerProcess) -> None:
    server.kill()
    server.start()


@pytest.fixture
def fixed_server(server: ServerProcess) -> ServerProcess:
    """A server that comes back on the same port, so that connections find it again."""
    server.port = int(server.url.rpartition(":")[2])
    return server


def test_a_restart_keeps_a_rounds_updates_and_its_deadline(fixed_server: ServerProcess) -> None:
    with fixed_server.http() as operator:
        run_id = begin(operator, round={"quorum": 2, "deadline_seconds": LONG})
        pair = clients(operator, 2)
        tasks = [claim(client, run_id) for client in pair]
        deadline = round_of(operator, run_id)["deadline_at"]
        receipt = pair[0].put(tasks[0]["task_id"], body(1)).json()
        restart(fixed_server)
        assert pair[0].put(tasks[0]["task_id"], body(1)).json() == receipt
        assert claim(pair[1], run_id) == tasks[1]
        assert pair[1].put(tasks[1]["task_id"], body(3)).status_code == 201
        assert round_of(operator, run_id)["deadline_at"] == deadline
        answer = wait_for_run(operator, run_id, version=1)
        assert unpack(answer.content)["value"].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("min_updates", "outcome"), [(1, ("completed", 1)), (2, ("collecting", 2))])
def test_a_deadline_that_passed_while_the_server_was_down_counts_after_the_restart(
    fixed_server: ServerProcess, min_updates: int, outcome: tuple[str, int]
) -> None:
    with fixed_server.http() as operator:
        rounds = {"quorum": 2, "min_updates": min_updates, "deadline_seconds": SOON, "max_attempts": 100}
        run_id = begin(operator, round=rounds)
        (client,) = clients(operator, 1)
        assert client.put(claim(client, run_id)["task_id"], body(1)).status_code == 201
        deadline = round_of(operator, run_id)["deadline_at"]
        fixed_server.kill()
        await_passing(deadline)
        fixed_server.start()
        eventually(lambda: _outcome(round_of(operator, run_id)) == outcome)
        first = operator.get(f"/v1/runs/{run_id}/rounds").json()["items"][0]
        assert instant(first["closed_at"]) >= instant(deadline)


def _outcome(round_: Json) -> tuple[str, int]:
    return round_["state"], min(round_["attempt"], 2)


def test_a_paused_run_is_still_paused_after_a_restart(fixed_server: ServerProcess) -> None:
    with fixed_server.http() as operator:
        run_id = begin(operator, round={"quorum": 1, "deadline_seconds": SOON, "max_attempts": 1})
        (client,) = clients(operator, 1)
        task = claim(client, run_id)
        operator.post(f"/v1/runs/{run_id}/pause")
        restart(fixed_server)
        await_passing(round_of(operator, run_id)["deadline_at"])
        assert (run_of(operator, run_id)["state"], round_of(operator, run_id)["state"]) == ("paused", "collecting")
        operator.post(f"/v1/runs/{run_id}/resume")
        assert client.put(task["task_id"], body(1)).status_code == 201
        wait_for_run(operator, run_id, version=1)


def test_an_evaluation_goes_on_after_a_restart(fixed_server: ServerProcess) -> None:
    with fixed_server.http() as operator:
        run_id = begin(operator, round={"quorum": 2, "deadline_seconds": LONG}, evaluation={"every": 1})
        pair = clients(operator, 2)
        for client in pair:
            assert client.put(claim(client, run_id)["task_id"], body(1)).status_code == 201
        wait_for_run(operator, run_id, version=1)
        tasks = [claim(client, run_id) for client in pair]
        assert evaluate(pair[0], tasks[0], num_examples=1, loss=0.0).status_code == 201
        restart(fixed_server)
        assert claim(pair[1], run_id) == tasks[1]
        assert evaluate(pair[1], tasks[1], num_examples=1, loss=1.0).status_code == 201
        assert round_of(operator, run_id)["evaluation"] == {"loss": 0.5}
        assert run_of(operator, run_id)["state"] == "completed"


def test_events_are_numbered_without_gaps_and_resume_at_any_of_them(fixed_server: ServerProcess) -> None:
    with fixed_server.http() as operator:
        run_id = begin(operator, num_rounds=2, round={"quorum": 1, "deadline_seconds": LONG})
        (client,) = clients(operator, 1)
        live: list[list[Json]] = []
        with fixed_server.http() as other:
            follower = threading.Thread(target=lambda: live.append(read_events(other, run_id)))
            follower.start()
            assert client.put(claim(client, run_id)["task_id"], body(1)).status_code == 201
            wait_for_run(operator, run_id, version=1)
            before = read_events(operator, run_id, limit=4)
            # Whoever read some events before a restart goes on behind the last of them.
            assert client.put(claim(client, run_id, 20)["task_id"], body(1)).status_code == 201
            follower.join(timeout=30)
        everything = live[0]
        assert [event["event_id"] for event in everything] == list(range(1, len(everything) + 1))
        assert everything[:4] == before
        restart(fixed_server)
        for last in range(len(everything) + 1):
            assert read_events(operator, run_id, after=last) == everything[last:]
        ended = operator.get(f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": str(len(everything))})
        assert ended.status_code == 204
    assert [event["type"] for event in everything] == [
        *("run.state", "model.published", "run.state", "round.opened"),
        *("update.accepted", "round.closed", "model.published", "round.opened"),
        *("update.accepted", "round.closed", "model.published", "run.state"),
    ]


def test_a_wait_ends_as_soon_as_a_version_is_published(servers: list[ServerProcess]) -> None:
    delays = []
    with servers[0].http() as operator, servers[-1].http() as watcher, ThreadPoolExecutor(1) as pool:
        run_id = begin(operator, num_rounds=3, round={"quorum": 1, "deadline_seconds": LONG})
        (client,) = clients(operator, 1)
        for version in (1, 2, 3):
            task = claim(client, run_id, 20)
            waiting = pool.submit(_timed_wait, watcher, run_id, version)
            eventually(lambda: "fedquorum_waiting_requests 1.0" in watcher.get("/metrics").text)
            assert client.put(task["task_id"], body(1)).status_code == 201
            acknowledged = time.monotonic()
            delays.append(waiting.result() - acknowledged)
    # A hint that got lost would cost a poll's 10 seconds each time; a busy machine may delay one or the other.
    assert min(delays) < 1, delays


def _timed_wait(watcher: httpx.Client, run_id: str, version: int) -> float:
    wait_for_run(watcher, run_id, version=version)
    return time.monotonic()
