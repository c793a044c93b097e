"""Every number that a private run tells is on a list with the reason why it may be told, and no key is told at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aggregator_service.domain.privacy.noised_sum import gaussian_sum
from aggregator_service.flow.sealed_rounds import SealedRound
from tests.support.events import read_events
from tests.support.participant import Tensors, create_run, enrol, update_body, wait_for_run
from tests.support.records import model_record, round_record, run_record
from tests.support.server import ServerProcess
from tests.support.vault import Vault
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

DECLARED = "the operator declared it before anyone trained"
PUBLIC = "who takes part, and how often, is public where a zeroed update is the neighbour"
COUNTER = "a number of the server's own: versions, rounds, entries, bytes of a noised model"
ACCOUNTED = "a function of the declared noise and of public counts"
NOISED = "released with noise that the budget pays for"
OWN = "told to the operator, who is trusted and has the update, or to the client that sent it"

MAY_BE_TOLD = {
    "run.spec.**": DECLARED,
    "run.num_rounds": DECLARED,
    "run.current_round": COUNTER,
    "run.latest_version": COUNTER,
    "round.number": COUNTER,
    "round.attempt": COUNTER,
    "round.base_version": COUNTER,
    "round.result_version": COUNTER,
    "round.quorum": DECLARED,
    "round.cohort_size": DECLARED,
    "round.num_tasks": PUBLIC,
    "round.num_updates": PUBLIC,
    "round.num_examples": PUBLIC,
    "round.epsilon": ACCOUNTED,
    "model.version": COUNTER,
    "model.round": COUNTER,
    "model.num_bytes": COUNTER,
    "model.num_parameters": DECLARED,
    "model.parent_version": COUNTER,
    "event.event_id": COUNTER,
    "event.data.round": COUNTER,
    "event.data.attempt": COUNTER,
    "event.data.base_version": COUNTER,
    "event.data.quorum": DECLARED,
    "event.data.cohort_size": DECLARED,
    "event.data.num_updates": PUBLIC,
    "event.data.num_examples": PUBLIC,
    "event.data.staleness": PUBLIC,
    "published.round": COUNTER,
    "published.version": COUNTER,
    "published.num_bytes": COUNTER,
    "published.num_parameters": DECLARED,
    "published.parent_version": COUNTER,
    "published.epsilon": ACCOUNTED,
    "privacy.target_epsilon": DECLARED,
    "privacy.delta": DECLARED,
    "privacy.noise_multiplier": DECLARED,
    "privacy.num_rounds": DECLARED,
    "privacy.max_participations": DECLARED,
    "privacy.min_separation": DECLARED,
    "privacy.epsilon_spent": ACCOUNTED,
    "privacy.epsilon_next": ACCOUNTED,
    "privacy.num_releases": COUNTER,
    "privacy.ledger_length": COUNTER,
    "ledger.sequence": COUNTER,
    "ledger.round": COUNTER,
    "ledger.attempt": COUNTER,
    "ledger.epsilon": ACCOUNTED,
    "ledger.epsilon_renyi": ACCOUNTED,
    "ledger.delta": DECLARED,
    "ledger.noise_multiplier": DECLARED,
    "ledger.num_participations": PUBLIC,
    "ledger.num_updates": PUBLIC,
    "text.sequence": COUNTER,
    "text.round": COUNTER,
    "text.attempt": COUNTER,
    "text.num_updates": PUBLIC,
    "text.charge.delta": DECLARED,
    "text.charge.epsilon": ACCOUNTED,
    "text.charge.epsilon_renyi": ACCOUNTED,
    "text.charge.noise_multiplier": DECLARED,
    "text.charge.num_participations": PUBLIC,
    "text.charge.num_releases": COUNTER,
    "text.noise.step": DECLARED,
    "text.noise.sensitivity": DECLARED,
    "text.noise.stddev": DECLARED,
    "text.noise.num_elements": DECLARED,
    "text.noise.clipping_norm": NOISED,
    "text.noise.next_clipping_norm": NOISED,
    "task.round": COUNTER,
    "task.attempt": COUNTER,
    "task.base_version": COUNTER,
    "task.model_num_bytes": COUNTER,
    "task.max_num_bytes": DECLARED,
    "task.training.**": DECLARED,
    "task.privacy.**": DECLARED,
    "task.privacy_claim.target_epsilon": DECLARED,
    "task.privacy_claim.delta": DECLARED,
    "task.privacy_claim.noise_multiplier": DECLARED,
    "task.privacy_claim.num_rounds": DECLARED,
    "task.privacy_claim.max_participations": DECLARED,
    "task.privacy_claim.min_separation": DECLARED,
    "task.privacy_claim.epsilon_spent": ACCOUNTED,
    "task.privacy_claim.epsilon_yours": ACCOUNTED,
    "task.privacy_claim.num_participations": PUBLIC,
    "task.privacy_claim.num_abandoned": PUBLIC,
    "task.privacy_claim.ledger_length": COUNTER,
    "receipt.round": COUNTER,
    "receipt.num_bytes": OWN,
    "contribution.num_bytes": OWN,
    "contribution.num_examples": PUBLIC,
    "contribution.weight": PUBLIC,
    "contribution.staleness": PUBLIC,
    "lineage.format": COUNTER,
    "lineage.version": COUNTER,
    "lineage.round": COUNTER,
    "lineage.parent_version": COUNTER,
    "lineage.num_updates": PUBLIC,
}
SIZE = 16


def numbers(what: str, told: Any) -> Iterator[str]:
    """Names every number in an answer."""
    if isinstance(told, dict):
        for name, value in told.items():
            yield from numbers(f"{what}.{name}", value)
    elif isinstance(told, list):
        for value in told:
            yield from numbers(what, value)
    elif isinstance(told, int | float) and not isinstance(told, bool):
        yield what


def may_be_told(name: str) -> bool:
    parts = name.split(".")
    return name in MAY_BE_TOLD or any(".".join(parts[:end]) + ".**" in MAY_BE_TOLD for end in range(1, len(parts)))


@pytest.mark.parametrize("kind", ["central_gaussian", "central_gaussian_adaptive", "central_blt"])
def test_every_number_that_is_told_is_on_the_list_with_its_reason(shared_operator: httpx.Client, kind: str) -> None:
    privacy: dict[str, Any] = {"kind": kind, "target_epsilon": 1e4, "delta": 1e-6}
    if kind == "central_gaussian_adaptive":
        privacy["count_stddev"] = 1.0
    model: Tensors = {"w": np.zeros(SIZE, dtype=np.float32)}
    run_id = create_run(
        shared_operator,
        model,
        num_rounds=2,
        round={"quorum": 2, "deadline_seconds": 3600},
        strategy={"weighting": "uniform"},
        privacy=privacy,
    )
    clients, told, bodies = [enrol(shared_operator, f"client-{number}") for number in range(2)], [], []
    for version in (1, 2):
        tasks = [client.claim(run_id, wait=20).json() for client in clients]
        for number, (client, task) in enumerate(zip(clients, tasks, strict=True)):
            secret = {"w": np.full(SIZE, 0.1234567 * (number + 1), dtype=np.float32)}
            bodies.append(update_body(secret, num_examples=4711471147 + number, metrics={"loss": 0.98765432}))
            receipt = client.put(task["task_id"], bodies[-1])
            told += [("task", task), ("receipt", receipt.json())]
        wait_for_run(shared_operator, run_id, version=version)
    path, anyone = f"/v1/runs/{run_id}", clients[0].http
    events = read_events(anyone, run_id)
    answers = {
        "run": anyone.get(path).json(),
        "round": anyone.get(f"{path}/rounds").json()["items"] + [anyone.get(f"{path}/rounds/1").json()],
        "model": anyone.get(f"{path}/models").json()["items"],
        "event": [event for event in events if event["type"] != "model.published"],
        "published": [event["data"] for event in events if event["type"] == "model.published"],
        "privacy": anyone.get(f"{path}/privacy").json(),
        "ledger": anyone.get(f"{path}/privacy/ledger").json()["items"],
        "contribution": shared_operator.get(f"{path}/rounds/1/updates").json()["items"],
    }
    assert anyone.get(f"{path}/rounds/1/updates").status_code == 403
    answers["text"] = [json.loads(entry["text"]) for entry in answers["ledger"]]
    exported = shared_operator.get(f"{path}/models/2/export").content
    header = json.loads(exported[8 : 8 + int.from_bytes(exported[:8], "little")])
    answers["lineage"] = [json.loads(value) for value in header["__metadata__"].values()]
    told += answers.items()
    listed = {name for what, answer in told for name in numbers(what, answer)}
    assert {name for name in listed if not may_be_told(name)} == set()
    # By a digest, or by a size, whoever guesses an update could tell whether it was that one.
    open_to_all = json.dumps([answer for what, answer in told if what not in ("receipt", "contribution")])
    digests = [member["digest"] for member in answers["contribution"]]
    assert len(digests) == 2
    assert not [digest for digest in digests if digest in open_to_all]
    assert not [body for body in bodies if f": {len(body)}" in open_to_all]
    assert not [text for text in ("471147114", "0.9876543", "0.1234567", "0.2469134") if text in open_to_all]
    assert answers["round"][0]["metrics"] == {}


def test_the_list_has_no_entry_that_is_never_told(shared_operator: httpx.Client) -> None:
    """An adaptive run tells all there is to tell, so what is on the list and not told is not there any more."""
    described = json.dumps(shared_operator.get("/openapi.json").json()["components"]["schemas"])
    ours = ("text", "lineage", "event", "published")
    fields = {name.split(".")[-1] for name in MAY_BE_TOLD if name.split(".")[0] not in ours} - {"**"}
    assert {field for field in fields if f'"{field}"' not in described} == set()


def test_no_text_that_is_made_of_a_sealed_round_or_its_noise_has_the_key() -> None:
    key = bytes(range(200, 232))
    noised = gaussian_sum(1.0, clipping_norm=1.0, num_elements=SIZE, key=key)
    sealed = SealedRound(run_record(), round_record(), model_record(), [], [], key)
    for said in (f"{noised} {sealed}", f"{noised!r} {sealed!r}"):
        assert repr(key)[2:-1] not in said
        assert "key=" not in said


def test_a_failed_release_logs_no_key_and_draws_no_second_one(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    server = ServerProcess(database_url, tmp_path, zygote=forking)
    server.start(FEDQUORUM_FAILPOINT="aggregation.model_written:1:error")
    vault, keys = Vault(database_url), set[bytes]()
    try:
        with server.http() as operator:
            model: Tensors = {"w": np.zeros(SIZE, dtype=np.float32)}
            privacy = {"kind": "central_gaussian", "target_epsilon": 8.0, "delta": 1e-6}
            run_id = create_run(
                operator, model, num_rounds=1, round={"quorum": 1}, strategy={"weighting": "uniform"}, privacy=privacy
            )
            client = enrol(operator)
            task = client.claim(run_id, wait=20).json()

            def has_failed() -> bool:
                keys.update(vault.keys().values())
                return '"level": "error"' in server.log

            assert client.put(task["task_id"], update_body(model, num_examples=1)).status_code == 201
            eventually(has_failed)
            keys.update(vault.keys().values())
            wait_for_run(operator, run_id, version=1)
            said = [operator.get(f"/v1/runs/{run_id}{path}").text for path in ("", "/events", "/privacy/ledger")]
        assert len(keys) == 1
        (key,) = keys
        assert "FailpointError" in server.log
        assert not [text for text in said if key.hex() in text]
        assert server.stop() == 0
        assert vault.where_kept(keys, tmp_path) == []
    finally:
        server.kill()
