"""A masked round by plain HTTP: the server learns the exact sum of those who stayed, and publishes its mean."""

import base64
import hashlib
import json
from typing import Any

import httpx
import numpy as np
import pytest

from fl_protocol.masking import keys
from tests.support.masked import MaskedClient, MaskedCohort, flat, let_time_pass, masked_spec, run_through
from tests.support.participant import create_run, small_model, unpack, wait_for_run
from tests.support.server import ServerProcess


def masked_run(operator: httpx.Client, num_clients: int, **changes: Any) -> MaskedCohort:
    """Creates and starts a masked run of one round and enrols its clients, who have trained."""
    run_id = create_run(operator, small_model(), **masked_spec(num_clients, **changes))
    return MaskedCohort.enrol(operator, run_id, num_clients)


def published_delta(operator: httpx.Client, run_id: str) -> np.ndarray:
    """Gives what the first round has changed."""
    return flat(unpack(wait_for_run(operator, run_id, version=1).content)) - flat(small_model())


def assert_sum_of(cohort: MaskedCohort, survivors: list[MaskedClient]) -> dict[str, Any]:
    """Holds a session's transcript against those who are said to have stayed: their exact sum, their inputs."""
    transcript: dict[str, Any] = survivors[0].get("transcript").json()
    total = cohort.expected(survivors)
    assert transcript["state"] == "done"
    assert transcript["sum_digest"] == f"sha256:{hashlib.sha256(total.astype('<i8').tobytes()).hexdigest()}"
    sent = {client.client_id: hashlib.sha256(client.sent["inputs"]).hexdigest() for client in survivors}
    found = {member["client_id"]: member["input_digest"] for member in transcript["members"] if member["survived"]}
    assert found == {client_id: f"sha256:{digest}" for client_id, digest in sent.items()}
    return transcript


def test_a_session_publishes_the_weighted_mean_of_updates_and_metrics(shared_operator: httpx.Client) -> None:
    declared = {"accuracy": {"max_abs": 1}, "loss": {"max_abs": 100}}
    reported = [{"accuracy": 0.5, "loss": 2.0}, {"accuracy": 1.0, "loss": 1e9}, {"loss": float("nan")}, {}, {}]
    cohort = masked_run(shared_operator, 5, secure_aggregation={"metrics": declared})
    cohort.claim(examples=[100, 200, 300, 400, 100_000], metrics=reported)
    run_through(cohort)
    assert cohort.clients[0].leave("summing") == "done"
    total = cohort.expected()
    assert total[-3] == 1 + 2 + 3 + 4 + 100
    mean = total[:-3] * cohort.ring.step / 110
    np.testing.assert_allclose(published_delta(shared_operator, cohort.run_id), mean, atol=1e-6)
    transcript = assert_sum_of(cohort, cohort.clients)
    assert transcript["total_weight"] == 110
    assert all(member["shared"] and member["signed"] for member in transcript["members"])
    assert_told(shared_operator, cohort)
    found = shared_operator.get(f"/v1/runs/{cohort.run_id}/rounds/1").json()["metrics"]
    # Clamped to what was declared; what is no number counts as zero, and so does what was not measured.
    expected = {"accuracy": (1 * 0.5 + 2 * 1.0) / 110, "loss": (1 * 2.0 + 2 * 100) / 110}
    assert found == pytest.approx(expected, abs=2**-16)


def assert_told(operator: httpx.Client, cohort: MaskedCohort) -> None:
    """Holds what the round, its updates and its sessions say against what was done; nothing there is of one client."""
    where = f"/v1/runs/{cohort.run_id}/rounds/1"
    round_, count = operator.get(where).json(), len(cohort.clients)
    assert (round_["state"], round_["num_updates"], round_["num_examples"]) == ("completed", count, count)
    listed = operator.get(f"{where}/updates").json()["items"]
    digests = {f"sha256:{hashlib.sha256(client.sent['inputs']).hexdigest()}" for client in cohort.clients}
    assert {update["digest"] for update in listed} == digests
    assert all(update["metrics"] == {} and update["weight"] == 1 for update in listed)
    exported = operator.get(f"/v1/runs/{cohort.run_id}/models/1/export").content
    lineage = json.loads(
        json.loads(exported[8 : 8 + int.from_bytes(exported[:8], "little")])["__metadata__"]["fedquorum.lineage"]
    )
    assert (lineage["num_updates"], lineage["updates"]) == (count, [])
    sessions = operator.get(f"{where}/sessions").json()
    assert [session["session_id"] for session in sessions["items"]] == [cohort.clients[0].session_id]
    assert cohort.clients[0].seat().json()["state"] == "spent"
    assert cohort.clients[0].enrolled.claim(cohort.run_id).status_code == 410


def test_clients_that_vanish_before_their_shares_or_their_input_are_left_out(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    cohort = masked_run(shared_operator, 10, round={"quorum": 8})
    cohort.claim(examples=[100 * number for number in range(1, 11)])
    cohort.seat()
    shared, stayed = cohort.clients[1:], cohort.clients[2:]
    cohort.phase(MaskedClient.send_shares, shared)
    let_time_pass(shared_server, cohort.run_id)
    assert stayed[0].leave("shares") == "input"
    cohort.phase(lambda client: client.send_input(cohort.ring), stayed)
    let_time_pass(shared_server, cohort.run_id)
    assert stayed[0].leave("input") == "consistency"
    cohort.phase(MaskedClient.send_signature, stayed)
    cohort.phase(MaskedClient.send_answer, stayed)
    transcript = assert_done(cohort, stayed)
    assert [member["shared"] for member in transcript["members"]].count(True) == 9
    mean = cohort.expected(stayed)[:-1] * cohort.ring.step / cohort.expected(stayed)[-1]
    np.testing.assert_allclose(published_delta(shared_operator, cohort.run_id), mean, atol=1e-6)
    assert cohort.clients[0].seat().status_code == 410


def test_survivors_that_vanish_before_signing_or_answering_are_still_in_the_sum(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    cohort = masked_run(shared_operator, 10)
    cohort.claim()
    cohort.seat()
    cohort.phase(MaskedClient.send_shares)
    cohort.phase(lambda client: client.send_input(cohort.ring))
    cohort.phase(MaskedClient.send_signature, cohort.clients[1:])
    let_time_pass(shared_server, cohort.run_id)
    assert cohort.clients[1].leave("consistency") == "unmask"
    cohort.phase(MaskedClient.send_answer, cohort.clients[2:])
    transcript = assert_done(cohort, cohort.clients)
    assert [member["signed"] for member in transcript["members"]].count(True) == 9


def assert_done(cohort: MaskedCohort, survivors: list[MaskedClient]) -> dict[str, Any]:
    survivors[0].leave("unmask")
    assert survivors[0].leave("summing") == "done"
    return assert_sum_of(cohort, survivors)


def test_a_round_adds_up_the_sums_of_several_sessions(shared_operator: httpx.Client) -> None:
    cohort = masked_run(shared_operator, 7, secure_aggregation={"target_members": 4})
    cohort.claim(examples=[100 * number for number in range(1, 8)])
    for client in cohort.clients:
        client.ask_for_seat()
    for client in cohort.clients:
        client.take_seat()
    groups = [cohort.clients[:4], cohort.clients[4:]]
    assert [{client.session_id for client in group} for group in groups] == [
        {groups[0][0].session_id},
        {groups[1][0].session_id},
    ]
    for group in groups:
        cohort.phase(MaskedClient.send_shares, group)
        cohort.phase(lambda client: client.send_input(cohort.ring), group)
        cohort.phase(MaskedClient.send_signature, group)
        cohort.phase(MaskedClient.send_answer, group)
    mean = cohort.expected()[:-1] * cohort.ring.step / cohort.expected()[-1]
    np.testing.assert_allclose(published_delta(shared_operator, cohort.run_id), mean, atol=1e-6)
    for group in groups:
        assert_sum_of(cohort, group)


def test_frozen_and_integer_tensors_stay_as_they_are(shared_operator: httpx.Client) -> None:
    model = small_model() | {"counter": np.array([7, 8], dtype=np.int64)}
    spec = masked_spec(3, parameters={"trainable": ["layer.*"]})
    run_id = create_run(shared_operator, model, **spec)
    cohort = MaskedCohort.enrol(shared_operator, run_id, 3)
    for client in cohort.clients:
        client.claim(run_id)
        client.vector = np.append(np.arange(42, dtype=np.int64) * 1000, 1)
    run_through(cohort)
    after = unpack(wait_for_run(shared_operator, run_id, version=1).content)
    assert after["counter"].tolist() == [7, 8]
    assert after["scale"] == 1.0
    moved = np.concatenate([(after[name] - model[name]).reshape(-1) for name in ("layer.weight", "layer.bias")])
    np.testing.assert_allclose(moved, np.arange(42) * 1000 * cohort.ring.step, atol=1e-6)


def test_manifests_are_signed_and_name_the_one_before(shared_operator: httpx.Client) -> None:
    cohort = masked_run(shared_operator, 3, num_rounds=2)
    cohort.claim()
    run_through(cohort)
    wait_for_run(shared_operator, cohort.run_id, version=1)
    log = shared_operator.get(f"/v1/runs/{cohort.run_id}/manifests").json()["items"]
    key = shared_operator.get("/v1/manifest-key").json()
    previous = None
    for sequence, entry in enumerate(log, start=1):
        answer = shared_operator.get(f"/v1/runs/{cohort.run_id}/manifests/{sequence}")
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        assert digest == entry["digest"]
        assert answer.headers["etag"] == f'"{digest}"'
        content = json.loads(answer.content)
        assert (content["previous_digest"], entry["previous_digest"]) == (previous, previous)
        assert (content["round"], content["attempt"], content["sequence"]) == (sequence, 1, sequence)
        assert_signed(answer, key)
        previous = digest
    assert len(log) == 2
    assert json.loads(cohort.clients[0].manifest)["model"]["digest"] == cohort.clients[0].task["model_digest"]
    task = cohort.clients[0].claim(cohort.run_id)
    assert task["manifest"] == {
        "url": f"/v1/runs/{cohort.run_id}/manifests/2",
        "sequence": 2,
        "digest": log[1]["digest"],
    }


def assert_signed(answer: httpx.Response, key: dict[str, str]) -> None:
    kind, key_id, signature = answer.headers["Manifest-Signature"].split(";")
    assert (kind, key_id) == ("ed25519", key["key_id"])
    message = b"flsa/v1/manifest\0" + answer.content
    assert keys.is_signed(bytes.fromhex(key["public_key"]), message, base64.b64decode(signature))
