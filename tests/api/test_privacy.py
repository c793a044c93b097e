"""A private run over HTTP: what it publishes, what it charges, what it shows and what it never tells."""

import hashlib
import json
import math
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.participant import (
    Participant,
    Tensors,
    create_run,
    enrol,
    pack,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess

LONG = 3600
SIZE = 20_000
GAUSSIAN = {"kind": "central_gaussian", "target_epsilon": 8.0, "delta": 1e-6, "clipping_norm": 1.0}
UNIFORM = {"weighting": "uniform"}


def model(size: int = SIZE) -> Tensors:
    return {"w": np.zeros(size, dtype=np.float32), "steps": np.array(7, dtype=np.int64)}


def private(**changes: Any) -> dict[str, Any]:
    """Declares a run of three clients a round."""
    spec: dict[str, Any] = {
        "num_rounds": 3,
        "round": {"quorum": 3, "deadline_seconds": LONG},
        "strategy": UNIFORM,
        "privacy": GAUSSIAN,
    }
    return spec | changes


def send_all(clients: list[Participant], run_id: str, updates: list[Tensors], **told: Any) -> list[dict[str, Any]]:
    tasks = [client.claim(run_id, wait=20).json() for client in clients]
    for client, task, update in zip(clients, tasks, updates, strict=True):
        sent = client.put(task["task_id"], update_body(update, num_examples=1, **told))
        assert sent.status_code == 201, sent.text
    return tasks


@pytest.fixture
def clients(shared_operator: httpx.Client) -> list[Participant]:
    return [enrol(shared_operator, f"client-{number}") for number in range(3)]


def zeros(size: int = SIZE) -> Tensors:
    return {"w": np.zeros(size, dtype=np.float32)}


def privacy_of(operator: httpx.Client, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = operator.get(f"/v1/runs/{run_id}/privacy").json()
    return found


def test_the_noise_is_what_was_declared_and_the_noise_multiplier_is_shown(
    shared_operator: httpx.Client, clients: list[Participant]
) -> None:
    selection = {"max_participations": 3}
    run_id = create_run(shared_operator, model(), **private(selection=selection))
    spec = shared_operator.get(f"/v1/runs/{run_id}").json()["spec"]["privacy"]
    # sqrt(3) * 0.65294: table 4.14 of the specification for one participation at epsilon 8 and delta 1e-6.
    assert spec["noise_multiplier"] == pytest.approx(math.sqrt(3) * 0.65294, rel=1e-4)
    send_all(clients, run_id, [zeros()] * 3)
    published = unpack(wait_for_run(shared_operator, run_id, version=1).content)
    noise = published["w"].astype(np.float64) * 3
    assert published["steps"] == 7
    assert noise.std() == pytest.approx(spec["noise_multiplier"], rel=0.03)
    assert abs(noise.mean()) < 5 * spec["noise_multiplier"] / math.sqrt(SIZE)


def test_an_update_is_clipped_and_one_that_is_not_finite_counts_as_zero(
    shared_operator: httpx.Client, shared_server: ServerProcess, clients: list[Participant]
) -> None:
    loud = GAUSSIAN | {"target_epsilon": 1e6, "noise_multiplier": 0.01}
    run_id = create_run(shared_operator, model(4), **private(privacy=loud, num_rounds=1))
    huge = {"w": np.array([3e38, 0, 0, 0], dtype=np.float32)}
    broken = {"w": np.array([0, np.nan, 0, np.inf], dtype=np.float32)}
    small = {"w": np.array([0, 0.5, 0, 0], dtype=np.float32)}
    send_all(clients, run_id, [huge, broken, small])
    published = unpack(wait_for_run(shared_operator, run_id, version=1).content)["w"]
    np.testing.assert_allclose(published, np.array([1, 0.5, 0, 0]) / 3, atol=0.05)
    assert '"updates_counted_as_zero"' in shared_server.log


def test_a_run_shows_its_cost_round_by_round_and_ends_when_the_budget_does(
    shared_operator: httpx.Client, clients: list[Participant]
) -> None:
    chosen = GAUSSIAN | {"noise_multiplier": 1.0, "target_epsilon": 8.0, "delta": 1e-5}
    run_id = create_run(shared_operator, model(), **private(privacy=chosen, num_rounds=10))
    before = privacy_of(shared_operator, run_id)
    assert (before["epsilon_spent"], before["unit"], before["trust"]) == (0.0, "client", "server")
    assert before["epsilon_next"] == pytest.approx(4.377178, rel=1e-6)
    epsilons = []
    for version in (1, 2):
        send_all(clients, run_id, [zeros()] * 3)
        wait_for_run(shared_operator, run_id, version=version)
        epsilons.append(shared_operator.get(f"/v1/runs/{run_id}/rounds/{version}").json()["epsilon"])
    assert epsilons == pytest.approx([4.377178, 6.572], rel=1e-3)
    run = shared_operator.get(f"/v1/runs/{run_id}").json()
    assert run["state"] == "completed"
    assert "privacy budget is exhausted" in run["reason"]
    assert "8" in run["reason"]
    assert_refused(clients[0].claim(run_id), "run-finished", "privacy budget")
    assert privacy_of(shared_operator, run_id)["epsilon_spent"] == epsilons[-1]


def test_the_ledger_is_a_chain_that_anyone_can_check(shared_operator: httpx.Client, clients: list[Participant]) -> None:
    run_id = create_run(shared_operator, model(), **private(num_rounds=2))
    for version in (1, 2):
        send_all(clients, run_id, [zeros()] * 3)
        published = wait_for_run(shared_operator, run_id, version=version)
    listed = clients[0].http.get(f"/v1/runs/{run_id}/privacy/ledger", params={"limit": 3}).json()
    rest = {"limit": 3, "cursor": listed["next_cursor"]}
    entries = listed["items"] + clients[0].http.get(f"/v1/runs/{run_id}/privacy/ledger", params=rest).json()["items"]
    assert [(entry["round"], entry["state"]) for entry in entries] == [
        (1, "reserved"), (1, "spent"), (2, "reserved"), (2, "spent"),
    ]  # fmt: skip
    head = json.loads(entries[0]["text"])["previous_hash"]
    for entry in entries:
        assert json.loads(entry["text"])["previous_hash"] == head
        head = hashlib.sha256(b"fedquorum/ledger/v1\0" + entry["text"].encode()).hexdigest()
        assert head == entry["entry_hash"]
    assert privacy_of(shared_operator, run_id)["ledger_head"] == head
    assert entries[-1]["model_digest"] == published.headers["etag"].strip('"')
    assert entries[-1]["epsilon_renyi"] >= entries[-1]["epsilon"]


def test_nothing_that_clients_say_of_their_data_is_kept_or_told(
    shared_operator: httpx.Client, clients: list[Participant]
) -> None:
    run_id = create_run(shared_operator, model(), **private(num_rounds=1))
    tasks = [client.claim(run_id).json() for client in clients]
    for client, task in zip(clients, tasks, strict=True):
        body = update_body(zeros(), num_examples=4711471147, metrics={"loss": 0.98765432})
        assert client.put(task["task_id"], body).status_code == 201
    wait_for_run(shared_operator, run_id, version=1)
    said = [
        shared_operator.get(f"/v1/runs/{run_id}{path}").text
        for path in ("", "/rounds", "/rounds/1/updates", "/models", "/events", "/privacy", "/privacy/ledger")
    ]
    assert not [text for text in said if "4711471147" in text or "0.9876543" in text]
    assert shared_operator.get(f"/v1/runs/{run_id}/rounds/1").json()["metrics"] == {}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strategy": {}}, ["privacy.kind 'central_gaussian'", "strategy.weighting 'uniform'"]),
        ({"strategy": {"kind": "median"}}, ["strategy.kind 'mean'"]),
        ({"evaluation": {"every": 1}}, ["evaluation.every 1"]),
        ({"algorithm": {"kind": "fednova"}}, ["algorithm.kind 'fednova'"]),
        ({"round": {"kind": "buffered"}}, ["round.kind 'synchronous'"]),
        ({"privacy": GAUSSIAN | {"delta": 0.01}, "round": {"quorum": 100}}, ["privacy.delta 0.01", "100 clients"]),
        ({"privacy": GAUSSIAN | {"noise_multiplier": 0.5, "target_epsilon": 1.0}}, ["spends epsilon", "no round"]),
        ({"privacy": {"kind": "central_gaussian", "delta": 1e-6}}, ["target_epsilon"]),
        ({"privacy": {"kind": "laplace", "scale": 0.01}}, ["privacy"]),
    ],
)
def test_a_run_that_could_not_keep_its_promise_is_refused_when_it_is_created(
    shared_operator: httpx.Client, changes: dict[str, Any], named: list[str]
) -> None:
    answer = shared_operator.post("/v1/runs", json={"name": "test"} | private(**changes))
    assert_refused(answer, "invalid-request", *named)


def test_an_adaptive_clip_finds_the_norm_and_says_it_in_the_ledger(
    shared_operator: httpx.Client, clients: list[Participant]
) -> None:
    adaptive = {
        "kind": "central_gaussian_adaptive",
        "target_epsilon": 1e6,
        "delta": 1e-6,
        "noise_multiplier": 0.02,
        "count_stddev": 0.05,
        "initial_clipping_norm": 0.5,
        "clip_learning_rate": 1.0,
    }
    run_id = create_run(shared_operator, model(16), **private(privacy=adaptive, num_rounds=8))
    update = {"w": np.full(16, 0.5, dtype=np.float32)}
    for version in range(1, 9):
        send_all(clients, run_id, [update] * 3)
        wait_for_run(shared_operator, run_id, version=version)
    entries = shared_operator.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]
    norms = [json.loads(entry["text"])["noise"]["clipping_norm"] for entry in entries if entry["state"] == "spent"]
    # All updates have norm 2: the clip grows by about e^0.5 while they are clipped, and falls once they are not.
    assert norms[0] == 0.5
    assert norms[1] == pytest.approx(0.5 * math.exp(0.5), rel=0.2)
    assert 1.0 < norms[-1] < 4.0


def test_correlated_noise_takes_back_in_later_rounds_what_earlier_ones_added(
    shared_operator: httpx.Client, clients: list[Participant]
) -> None:
    correlated = {"kind": "central_blt", "target_epsilon": 1e6, "delta": 1e-6, "noise_multiplier": 1.0}
    selection = {"min_separation": 0, "max_participations": 6}
    run_id = create_run(
        shared_operator, model(), **private(privacy=correlated, num_rounds=6, selection=selection, name="blt")
    )
    models = [np.zeros(SIZE)]
    for version in range(1, 7):
        send_all(clients, run_id, [zeros()] * 3)
        found = unpack(wait_for_run(shared_operator, run_id, version=version).content)["w"]
        models.append(found.astype(np.float64) * 3)
    entries = shared_operator.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]
    spent = [json.loads(entry["text"]) for entry in entries if entry["state"] == "spent"]
    stddev = spent[0]["noise"]["stddev"] * spent[0]["noise"]["step"]
    steps = np.diff(models, axis=0)
    assert steps[0].std() == pytest.approx(stddev, rel=0.03)
    # Independent noise would add up to sqrt(6) of one round's; successive rounds are anticorrelated.
    assert models[-1].std() < 0.9 * math.sqrt(6) * stddev
    assert np.corrcoef(steps[0], steps[1])[0, 1] < -0.1
    assert {entry["charge"]["epsilon"] for entry in spent} == {spent[0]["charge"]["epsilon"]}


def test_a_run_without_privacy_says_so(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, model(), num_rounds=1)
    report = privacy_of(shared_operator, run_id)
    assert (report["kind"], report["epsilon_spent"], report["unit"]) == ("none", None, None)
    assert "sees every update" in report["sentence"]
    assert shared_operator.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"] == []
    assert pack(model())
