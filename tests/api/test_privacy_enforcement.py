"""What a private run enforces over HTTP: caps, budgets of clients that add the noise, and rounds without updates."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from scipy import stats

from fl_protocol.privacy import lattice
from tests.support.databases import SHARED_ON_SQLITE
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
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.vault import Vault, states
from tests.support.waiting import eventually

LONG = 3600
SIZE = 1_000_000
UNLIKELY = 1e-6
UNIFORM = {"weighting": "uniform"}
GAUSSIAN = {"kind": "central_gaussian", "target_epsilon": 8.0, "delta": 1e-6, "noise_multiplier": 2.0}
TINY: Tensors = {"w": np.zeros(4, dtype=np.float32)}


def send(client: Participant, task: dict[str, Any], delta: Tensors) -> None:
    answer = client.put(task["task_id"], update_body(delta, num_examples=1))
    assert answer.status_code == 201, answer.text


def claim(client: Participant, run_id: str) -> dict[str, Any]:
    answer = client.claim(run_id, wait=20)
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def state_of(operator: httpx.Client, run_id: str) -> str:
    state: str = operator.get(f"/v1/runs/{run_id}").json()["state"]
    return state


@pytest.fixture
def vault(shared_server: ServerProcess) -> Vault:
    return Vault(shared_server.database_url)


@SHARED_ON_SQLITE
@pytest.mark.parametrize(("num_asked", "num_answers"), [(3, 3), (10, 7)], ids=["all-answer", "three-of-ten-drop"])
def test_released_noise_has_the_declared_width_however_many_answer(
    shared_operator: httpx.Client, num_asked: int, num_answers: int
) -> None:
    deadline = LONG if num_asked == num_answers else 4
    rounds = {"quorum": num_asked, "min_updates": num_answers, "deadline_seconds": deadline}
    model: Tensors = {"w": np.zeros(SIZE, dtype=np.float32)}
    run_id = create_run(
        shared_operator, model, num_rounds=1, round=rounds, strategy=UNIFORM, privacy=GAUSSIAN | {"clipping_norm": 0.37}
    )
    clients = [enrol(shared_operator, f"client-{number}") for number in range(num_asked)]
    tasks = [claim(client, run_id) for client in clients]
    for client, task in list(zip(clients, tasks, strict=True))[:num_answers]:
        send(client, task, model)
    released = unpack(wait_for_run(shared_operator, run_id, version=1).content)["w"].astype(np.float64)
    (_, spent) = shared_operator.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]
    assert spent["num_updates"] == num_answers
    width = 2.0 * lattice.sensitivity(0.37, SIZE) * lattice.step(0.37)
    assert 0.74 <= width < 0.74 * (1 + 1e-4)
    statistic = float(np.sum((released * num_answers / width) ** 2))
    assert 2 * min(stats.chi2.cdf(statistic, SIZE), stats.chi2.sf(statistic, SIZE)) > UNLIKELY


def test_every_released_coordinate_is_a_whole_number_of_steps(shared_operator: httpx.Client) -> None:
    base = np.arange(20_000) / 2.0**10
    model: Tensors = {"w": base, "small": np.zeros(3, dtype=np.float32)}
    rounds = {"quorum": 3, "deadline_seconds": LONG}
    run_id = create_run(shared_operator, model, num_rounds=1, round=rounds, strategy=UNIFORM, privacy=GAUSSIAN)
    source = np.random.default_rng(11)
    for number in range(3):
        client = enrol(shared_operator, f"client-{number}")
        delta = {"w": source.standard_normal(base.size) * 1e-3, "small": np.zeros(3, dtype=np.float32)}
        send(client, claim(client, run_id), delta)
    released = unpack(wait_for_run(shared_operator, run_id, version=1).content)["w"]
    step = lattice.step(1.0)
    totals = np.rint((released - base) * 3 / step)
    # A float64 holds base + total / 3 steps to within 2^-48: far finer than a step of 2^-24.
    np.testing.assert_array_equal(base + totals / 3 * step, released)
    assert np.ptp(totals) > 2**24
    assert len(np.unique(totals % 16)) == 16


def test_a_round_without_an_update_is_given_up_and_costs_nothing(shared_operator: httpx.Client, vault: Vault) -> None:
    rounds = {"quorum": 1, "deadline_seconds": 0.1, "max_attempts": 3}
    run_id = create_run(shared_operator, TINY, num_rounds=1, round=rounds, strategy=UNIFORM, privacy=GAUSSIAN)
    eventually(lambda: state_of(shared_operator, run_id) == "failed")
    assert states(vault.entries(run_id)) == [
        (1, attempt, state) for attempt in (1, 2, 3) for state in ("reserved", "void")
    ]
    report = shared_operator.get(f"/v1/runs/{run_id}/privacy").json()
    assert (report["epsilon_spent"], report["num_releases"]) == (0.0, 0)
    models = shared_operator.get(f"/v1/runs/{run_id}/models").json()["items"]
    assert [model["version"] for model in models] == [0]
    vault.check_charged(run_id)


def test_updates_that_are_not_finite_are_zeros_and_zeros_say_nothing_of_the_norm(shared_operator: httpx.Client) -> None:
    rounds = {"quorum": 2, "deadline_seconds": LONG}
    adaptive = GAUSSIAN | {"kind": "central_gaussian_adaptive", "target_epsilon": 1e6, "noise_multiplier": 0.01}
    adaptive |= {"count_stddev": 0.006, "initial_clipping_norm": 1.0, "clip_learning_rate": 1.0}
    run_id = create_run(shared_operator, TINY, num_rounds=3, round=rounds, strategy=UNIFORM, privacy=adaptive)
    clients = [enrol(shared_operator, f"client-{number}") for number in range(2)]
    for version, sent in ((1, [np.nan, 1, 0, 0]), (2, [1, 0, 0, np.inf]), (3, [0, 0, 0, 0])):
        for client in clients:
            send(client, claim(client, run_id), {"w": np.array(sent, dtype=np.float32)})
        released = unpack(wait_for_run(shared_operator, run_id, version=version).content)["w"]
        assert 0 < np.abs(released).max() < 0.2
    entries = shared_operator.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]
    norms = [json.loads(entry["text"])["noise"]["next_clipping_norm"] for entry in entries if entry["state"] == "spent"]
    # Neither clipped nor not: a client's bit is half a count away from the world in which it sent zeros.
    assert norms == pytest.approx([1.0] * 3, rel=0.06)


@pytest.mark.parametrize("kind", ["open", "uniform", "poisson"])
@pytest.mark.parametrize(
    "limits", [{"max_participations": 1}, {"min_separation": 1}], ids=["most-participations", "separation"]
)
def test_a_client_that_may_not_take_part_gets_no_task_and_no_update_in(
    shared_operator: httpx.Client, kind: str, limits: dict[str, int]
) -> None:
    selection = {"kind": kind} | limits | ({"probability": 1.0} if kind == "poisson" else {})
    rounds = {"quorum": 1, "min_updates": 1, "deadline_seconds": LONG}
    # Of all clients of the module's server, these two alone.
    selection["eligibility"] = {"of": [f"{kind}-{'-'.join(limits)}"]}
    clients = [enrol(shared_operator, f"c-{number}", of=f"{kind}-{'-'.join(limits)}") for number in range(2)]
    run_id = create_run(
        shared_operator, TINY, num_rounds=3, round=rounds, selection=selection, strategy=UNIFORM, privacy=GAUSSIAN
    )
    tired, fresh = clients
    if kind == "poisson":
        # Everyone's coin comes up; the other one makes way.
        assert fresh.http.delete(f"/v1/tasks/{claim(fresh, run_id)['task_id']}").status_code == 204
    first = claim(tired, run_id)
    send(tired, first, TINY)
    wait_for_run(shared_operator, run_id, version=1)
    assert tired.claim(run_id, wait=0).status_code == 204
    other = update_body({"w": np.ones(4, dtype=np.float32)}, num_examples=1)
    assert_refused(tired.put(first["task_id"], other), "already-submitted")
    assert tired.put(first["task_id"], update_body(TINY, num_examples=1)).status_code == 200
    second = claim(fresh, run_id)
    assert_refused(tired.put(second["task_id"], other), "forbidden", "another client")
    assert tired.claim(run_id, wait=0).status_code == 204
    send(fresh, second, TINY)
    wait_for_run(shared_operator, run_id, version=2)
    again = tired.claim(run_id, wait=0 if "max_participations" in limits else 20)
    assert again.status_code == (204 if "max_participations" in limits else 201)
    counted = [
        member["client_id"]
        for number in (1, 2)
        for member in shared_operator.get(f"/v1/runs/{run_id}/rounds/{number}/updates").json()["items"]
    ]
    assert counted == [tired.client_id, fresh.client_id]


@pytest.mark.parametrize(
    "privacy",
    [
        {"kind": "local_laplace", "target_epsilon": 2.0},
        {"kind": "local_gaussian", "target_epsilon": 2.0, "delta": 1e-6},
    ],
    ids=lambda privacy: privacy["kind"],
)
def test_noise_of_clients_costs_each_update_that_arrived_also_in_an_abandoned_round(
    shared_operator: httpx.Client, privacy: dict[str, Any], vault: Vault
) -> None:
    rounds = {"quorum": 2, "deadline_seconds": 1.5, "max_attempts": 100}
    selection = {"max_participations": 2}
    run_id = create_run(
        shared_operator, TINY, num_rounds=3, round=rounds, selection=selection, strategy=UNIFORM, privacy=privacy
    )
    often, once = enrol(shared_operator, "often"), enrol(shared_operator, "once")
    task = claim(often, run_id)
    assert task["privacy_claim"]["epsilon_yours"] < 2.0
    send(often, task, TINY)
    eventually(lambda: (1, 1, "spent") in states(vault.entries(run_id)))
    alone = vault.entries(run_id)[1]
    assert (alone["charge"]["num_participations"], alone["num_updates"], alone["model_digest"]) == (1, 1, None)

    def together() -> bool:
        # A deadline may pass between the two; what arrived then is charged, too, and the run ends the earlier.
        for client in (often, once):
            answer = client.claim(run_id, wait=5)
            if answer.status_code == 201:
                client.put(answer.json()["task_id"], update_body(TINY, num_examples=1))
        return state_of(shared_operator, run_id) == "completed"

    eventually(together)
    entries = vault.entries(run_id)
    assert max(entry["charge"]["epsilon"] for entry in entries) <= 2.0
    spent = [entry["charge"] for entry in entries if entry["state"] == "spent"]
    assert spent[-1]["num_participations"] == 2
    arrived = vault.rows(
        "SELECT client_id, count(*) FROM updates WHERE run_id = :run_id GROUP BY client_id", run_id=run_id
    )
    assert dict(arrived)[often.client_id] == 2
    run = shared_operator.get(f"/v1/runs/{run_id}").json()
    assert "the privacy budget is exhausted" in run["reason"]
    assert_refused(often.claim(run_id), "run-finished", "privacy budget")
    assert vault.keys() == {}


def test_an_abandoned_round_costs_what_arrived_and_not_what_was_reserved(
    shared_operator: httpx.Client, vault: Vault
) -> None:
    rounds = {"quorum": 1, "deadline_seconds": LONG}
    privacy = {"kind": "local_laplace", "target_epsilon": 3.0}
    run_id = create_run(shared_operator, TINY, num_rounds=3, round=rounds, strategy=UNIFORM, privacy=privacy)
    first, other = enrol(shared_operator, "first"), enrol(shared_operator, "other")
    send(first, claim(first, run_id), TINY)
    wait_for_run(shared_operator, run_id, version=1)
    assert shared_operator.post(f"/v1/runs/{run_id}/pause").status_code == 200
    assert shared_operator.post(f"/v1/runs/{run_id}/stop").status_code == 200
    assert states(vault.entries(run_id)) == [(1, 1, "reserved"), (1, 1, "spent"), (2, 1, "reserved"), (2, 1, "void")]
    rounds = {"quorum": 2, "cohort_size": 2, "deadline_seconds": LONG}
    run_id = create_run(shared_operator, TINY, num_rounds=3, round=rounds, strategy=UNIFORM, privacy=privacy)
    for client in (first, other):
        send(client, claim(client, run_id), TINY)
    wait_for_run(shared_operator, run_id, version=1)
    third = enrol(shared_operator, "third")
    send(third, claim(third, run_id), TINY)
    assert shared_operator.post(f"/v1/runs/{run_id}/stop").status_code == 200
    entries = vault.entries(run_id)
    charges = [(entry["state"], entry["charge"]["num_participations"], entry["charge"]["epsilon"]) for entry in entries]
    # Round 2 could have been the second of `first`; it was the first of `third`, which left nothing dearer behind.
    assert [charge[:2] for charge in charges] == [("reserved", 1), ("spent", 1), ("reserved", 2), ("spent", 1)]
    assert charges[3][2] == charges[1][2] < charges[2][2]


def test_noise_of_clients_needs_rounds_that_can_be_counted(shared_operator: httpx.Client) -> None:
    for privacy in ({"kind": "local_laplace", "target_epsilon": 2.0}, GAUSSIAN | {"kind": "local_gaussian"}):
        spec = {"round": {"kind": "buffered", "buffer_size": 2}, "privacy": privacy}
        answer = shared_operator.post("/v1/runs", json=spec)
        assert_refused(answer, "invalid-request", privacy["kind"], "a client again", "round.kind 'synchronous'")


def test_privacy_of_examples_is_the_clients_own_account(shared_operator: httpx.Client, vault: Vault) -> None:
    privacy = {"kind": "example_dpsgd", "target_epsilon": 3.0, "delta": 1e-6}
    run_id = create_run(shared_operator, TINY, num_rounds=1, round={"quorum": 1}, privacy=privacy)
    client = enrol(shared_operator)
    send(client, claim(client, run_id), TINY)
    wait_for_run(shared_operator, run_id, version=1)
    report = client.http.get(f"/v1/runs/{run_id}/privacy").json()
    assert (report["unit"], report["trust"]) == ("example", "nobody")
    assert (report["epsilon_spent"], report["epsilon_next"], report["accountant"]) == (None, None, None)
    assert "the server cannot check it" in report["sentence"]
    assert client.http.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"] == []
    assert vault.entries(run_id) == []
    assert client.http.get(f"/v1/runs/{run_id}/rounds/1").json()["epsilon"] is None


def test_no_route_changes_a_runs_privacy(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, TINY, num_rounds=3, strategy=UNIFORM, privacy=GAUSSIAN)
    before = shared_operator.get(f"/v1/runs/{run_id}").json()["spec"]
    weaker = {"privacy": GAUSSIAN | {"target_epsilon": 800.0, "noise_multiplier": 0.01}, "spec": {"privacy": {}}}
    described = shared_operator.get("/openapi.json").json()["paths"]
    of_runs = {path: methods for path, methods in described.items() if path.startswith("/v1/runs/{run_id}")}
    assert of_runs
    for path, methods in of_runs.items():
        for method in ("put", "post", "patch", "delete"):
            filled = path.format(run_id=run_id, version=0, number=1, sequence=1, client_id="nobody")
            if method in methods and filled.endswith(("/stop", "/models/0")):
                continue
            shared_operator.request(method, filled, json=weaker)
    shared_operator.put(f"/v1/runs/{run_id}/models/0", json=weaker)
    shared_operator.put(f"/v1/runs/{run_id}/models/0", content=b"", headers={"Content-Type": MEDIA_TYPE})
    shared_operator.post(f"/v1/runs/{run_id}/stop", json=weaker)
    assert shared_operator.get(f"/v1/runs/{run_id}").json()["spec"] == before
