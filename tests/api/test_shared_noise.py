"""Noise that clients share, over HTTP: what the sums hold, what the ledger says they cost, and when there is none."""

import asyncio
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client_sdk import (
    AggregatorClient,
    Participation,
    PrivacyPolicy,
    Progress,
    TrainedModel,
    TrainingTask,
    participate,
)
from client_sdk.privacy.history import PrivacyHistory
from client_sdk.session.progress import PrivacySpent, TaskClaimed
from fl_protocol.masking.ring import Int64Array
from fl_protocol.privacy.accounting import epsilon_spent
from fl_protocol.privacy.noised_update import noised_windows
from fl_protocol.privacy.shared_noise import shared_noise
from fl_protocol.privacy_claims import Trust
from fl_protocol.runs import RunSpec
from tests.support.masked import MaskedClient, MaskedCohort, read_spec, run_through
from tests.support.participant import MEDIA_TYPE, create_run, enrol, pack, unpack, wait_for_run
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess

pytestmark = pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)

SIZE = 20_000
PRIVACY = {"kind": "distributed_skellam", "target_epsilon": 8.0, "delta": 1e-6, "max_parameters": SIZE}


def spec_of(*, clients: int, survivors: int, rounds: int = 1, phase: float = 60.0) -> dict[str, Any]:
    return {
        "num_rounds": rounds,
        "round": {"quorum": survivors, "cohort_size": clients, "min_updates": survivors},
        "strategy": {"kind": "mean", "weighting": "uniform"},
        "secure_aggregation": {"kind": "pairwise", "min_members": 3, "phase_seconds": phase, "enrol_seconds": 60},
        "privacy": PRIVACY | {"min_survivors": survivors},
    }


def create(http: httpx.Client, **choices: Any) -> str:
    return create_run(http, {"w": np.zeros(SIZE, dtype=np.float32)}, **spec_of(**choices))


def create_draft(http: httpx.Client) -> str:
    made = http.post("/v1/runs", json={"name": "test"} | spec_of(clients=4, survivors=4))
    assert made.status_code == 201, made.text
    return str(made.json()["run_id"])


def noised(values: Iterable[float], spec: RunSpec) -> Int64Array:
    """Gives a client's vector before its masks."""
    window = np.array(list(values), dtype=np.float64)
    return np.concatenate(list(noised_windows(lambda: [window], shared_noise(spec), key=os.urandom(32))))


def seated(http: httpx.Client, run_id: str, clients: int) -> MaskedCohort:
    cohort = MaskedCohort.enrol(http, run_id, clients)
    for number, client in enumerate(cohort.clients):
        client.claim(run_id)
        client.vector = noised(np.full(SIZE, (number - 2) / 1000), cohort.spec)
    cohort.seat()
    cohort.phase(MaskedClient.send_shares)
    return cohort


def cost(spec: RunSpec, *sizes: int) -> float:
    counted = {size: sizes.count(size) for size in sizes}
    return epsilon_spent(spec, num_participations=len(sizes), num_rounds=len(sizes), sums=counted)


def ledger(http: httpx.Client, run_id: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = http.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]
    return entries


def test_a_sum_is_published_with_the_noise_of_those_who_stayed_and_is_charged_for_it(
    shared_operator: httpx.Client,
) -> None:
    run_id = create(shared_operator, clients=6, survivors=4, phase=1.5)
    cohort = seated(shared_operator, run_id, 6)
    spec = cohort.spec
    # What was left out is filled in and shown.
    assert getattr(spec.secure_aggregation, "min_members", None) == 4
    staying = cohort.clients[:5]
    cohort.phase(lambda client: client.send_input(cohort.ring), staying)
    assert staying[0].leave("input") == "consistency"
    cohort.phase(MaskedClient.send_signature, staying)
    for client in staying:
        if client.session()["state"] == "unmask":
            client.send_answer()
    published = unpack(wait_for_run(shared_operator, run_id, version=1).content)["w"].astype(np.float64)
    step = cohort.ring.step
    np.testing.assert_allclose(published, cohort.expected(staying) * step / 5, rtol=1e-6, atol=1e-7)
    noise = published * 5
    assert noise.std() == pytest.approx(shared_noise(spec).stddev * step * math.sqrt(5), rel=0.04)
    assert shared_operator.get(f"/v1/runs/{run_id}/rounds/1").json()["epsilon"] == cost(spec, 5)
    reserved, spent = ledger(shared_operator, run_id)
    assert (reserved["epsilon"], spent["epsilon"]) == (cost(spec, 4), cost(spec, 5))
    assert spent["epsilon"] < reserved["epsilon"] <= 8
    assert json.loads(spent["text"])["charge"]["smallest_sums"] == [[5, 1]]
    report = shared_operator.get(f"/v1/runs/{run_id}/privacy").json()
    assert (report["trust"], report["epsilon_spent"], report["kind"]) == (
        "clients",
        cost(spec, 5),
        "distributed_skellam",
    )
    assert "at least 0.9 of the clients in each sum" in report["sentence"]


def test_below_the_fewest_survivors_nothing_is_unmasked_and_nothing_is_spent(shared_operator: httpx.Client) -> None:
    run_id = create(shared_operator, clients=6, survivors=5, phase=1.5)
    cohort = seated(shared_operator, run_id, 6)
    # Enough for the masks, and too few for the noise.
    staying = cohort.clients[:4]
    cohort.phase(lambda client: client.send_input(cohort.ring), staying)
    assert staying[0].leave("input") == "aborted"
    session = staying[0].session()
    assert session["abort_code"] == "not_enough_clients"
    assert "5 are needed" in session["reason"]
    refused = staying[0].put("unmask", b"")
    assert refused.status_code == 410
    assert staying[0].seat().json()["state"] == "free"
    assert [entry["state"] for entry in ledger(shared_operator, run_id)] == ["reserved"]
    assert shared_operator.get(f"/v1/runs/{run_id}/privacy").json()["epsilon_spent"] == 0.0


def poisoned_session(http: httpx.Client, run_id: str) -> MaskedCohort:
    """Goes through a session of which one member makes the sum larger than any honest one is."""
    cohort = seated(http, run_id, 4)
    wrong = cohort.clients[0]
    wrong.vector = np.full_like(wrong.vector, 2 ** (cohort.ring.bits - 1) - 1)
    cohort.phase(lambda client: client.send_input(cohort.ring))
    cohort.phase(MaskedClient.send_signature)
    for client in cohort.clients:
        if client.session()["state"] == "unmask":
            client.send_answer()
    assert wrong.leave("summing") == "aborted"
    assert wrong.session()["abort_code"] == "range_check_failed"
    return cohort


def test_a_sum_that_is_unmasked_and_refused_is_charged_and_the_round_goes_on_while_the_budget_lasts(
    shared_operator: httpx.Client,
) -> None:
    run_id = create(shared_operator, clients=4, survivors=4, rounds=2)
    cohort = poisoned_session(shared_operator, run_id)
    reserved, spent, again = ledger(shared_operator, run_id)
    assert [entry["state"] for entry in (reserved, spent, again)] == ["reserved", "spent", "reserved"]
    assert (spent["epsilon"], spent["round"], spent["model_digest"]) == (cost(cohort.spec, 4), 1, None)
    assert again["epsilon"] == cost(cohort.spec, 4, 4)
    report = shared_operator.get(f"/v1/runs/{run_id}/privacy").json()
    assert report["epsilon_spent"] == cost(cohort.spec, 4)
    run = shared_operator.get(f"/v1/runs/{run_id}").json()
    assert (run["state"], run["latest_version"]) == ("running", 0)


def test_a_refused_sum_that_leaves_nothing_of_the_budget_ends_the_run(shared_operator: httpx.Client) -> None:
    run_id = create(shared_operator, clients=4, survivors=4)
    cohort = poisoned_session(shared_operator, run_id)
    states = [entry["state"] for entry in ledger(shared_operator, run_id)]
    assert states == ["reserved", "spent", "reserved", "void"]
    run = shared_operator.get(f"/v1/runs/{run_id}").json()
    assert (run["state"], run["latest_version"]) == ("completed", 0)
    assert f"could bring a client to epsilon {cost(cohort.spec, 4, 4):.6g}" in run["reason"]


def test_a_model_larger_than_the_noise_was_made_for_is_refused_when_it_is_uploaded(
    shared_operator: httpx.Client,
) -> None:
    run_id = create(shared_operator, clients=4, survivors=4)
    draft = create_draft(shared_operator)
    large = pack({"w": np.zeros(SIZE + 1, dtype=np.float32)})
    refused = shared_operator.put(f"/v1/runs/{draft}/models/0", content=large, headers={"Content-Type": MEDIA_TYPE})
    named = f"{SIZE + 1} parameters travel, and privacy.max_parameters {SIZE}"
    assert_refused(refused, "structure-mismatch", named)
    assert shared_operator.get(f"/v1/runs/{draft}/models").json()["items"] == []
    # The same by way of another run's model.
    previous = {"initial_model": {"kind": "version", "run_id": run_id, "version": 0}}
    spec = spec_of(clients=4, survivors=4, rounds=1, phase=60) | previous
    small = spec | {"privacy": spec["privacy"] | {"max_parameters": SIZE - 1}}
    answer = shared_operator.post("/v1/runs", json={"name": "test"} | small)
    assert_refused(answer, "structure-mismatch", f"privacy.max_parameters {SIZE - 1}")
    assert shared_operator.post("/v1/runs", json={"name": "test"} | spec).status_code == 201


def test_ten_rounds_cost_what_the_reference_table_says(shared_operator: httpx.Client) -> None:
    """Table 4.15: z 4, C 1, 2^24 parameters, 10 rounds, delta 1e-6. It has 100 clients; a sum's noise is the same."""
    spec = spec_of(clients=3, survivors=3, rounds=10)
    noise = {"noise_multiplier": 4.0, "clipping_norm": 1.0, "delta": 1e-6, "assumed_colluders": 0.0}
    privacy = spec["privacy"] | noise | {"target_epsilon": 4.1, "max_parameters": 2**24}
    run_id = create_run(shared_operator, {"w": np.zeros(8, dtype=np.float32)}, **spec | {"privacy": privacy})
    cohort = MaskedCohort.enrol(shared_operator, run_id, 3)
    for number in range(1, 11):
        for client in cohort.clients:
            client.claim(run_id)
            client.vector = noised(np.zeros(8), cohort.spec)
        run_through(cohort)
        wait_for_run(shared_operator, run_id, version=number)
    spent = ledger(shared_operator, run_id)[-1]
    assert spent["epsilon"] == pytest.approx(4.02023, rel=1e-5)
    assert shared_operator.get(f"/v1/runs/{run_id}/rounds/10").json()["epsilon"] == spent["epsilon"]


def train(task: TrainingTask) -> TrainedModel:
    # What is not a number counts as zeros, and is noised like anything else.
    return TrainedModel(tensors={"w": task.model["w"] + np.float32(np.nan)}, num_examples=1)


def test_clients_of_the_sdk_share_the_noise_and_compose_what_the_server_claims(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    run_id = create(shared_operator, clients=4, survivors=4, rounds=2)
    told: dict[str, list[Progress]] = {name: [] for name in "abcd"}

    def one(name: str) -> Participation:
        enrolled = enrol(shared_operator, name)

        async def take_part() -> Participation:
            async with AggregatorClient(shared_server.url, token=enrolled.token) as client:
                return await participate(
                    client,
                    run_id,
                    train,
                    client_id=enrolled.client_id,
                    state_dir=tmp_path / name,
                    policy=PrivacyPolicy(max_epsilon=8.0, min_cohort=4, trusted=(Trust.CLIENTS,)),
                    on_event=told[name].append,
                )

        return asyncio.run(take_part())

    with ThreadPoolExecutor(4) as pool:
        assert [done.num_updates for done in pool.map(one, told)] == [2] * 4
    spec = read_spec(shared_operator, run_id)
    for name, events in told.items():
        claims = [event.task.privacy_claim for event in events if isinstance(event, TaskClaimed)]
        spent = [event.epsilon for event in events if isinstance(event, PrivacySpent)]
        assert spent == pytest.approx([claim.epsilon_yours for claim in claims if claim is not None], rel=1e-9)
        assert spent == pytest.approx([cost(spec, 4), cost(spec, 4, 4)], rel=1e-9)
        assert PrivacyHistory(run_id, tmp_path / name).load().sums == {4: 2}
    published = unpack(wait_for_run(shared_operator, run_id, version=2).content)["w"]
    width = shared_noise(spec).stddev * shared_noise(spec).step
    assert published.std() == pytest.approx(width / math.sqrt(4) * math.sqrt(2), rel=0.04)
    assert ledger(shared_operator, run_id)[-1]["epsilon"] == cost(spec, 4, 4)
