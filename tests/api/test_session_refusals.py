"""What seats and sessions refuse: by whom it is sent, when, in which form, and after what."""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from fl_protocol.masking import keys, messages
from tests.support.masked import BYTES, MaskedClient, MaskedCohort, let_time_pass, masked_spec
from tests.support.participant import MEDIA_TYPE, create_run, enrol, small_model, update_body
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored

LOW_ORDER = bytes(32)


@pytest.fixture
def cohort(shared_operator: httpx.Client) -> MaskedCohort:
    """Three clients that have trained."""
    run_id = create_run(shared_operator, small_model(), **masked_spec(3))
    made = MaskedCohort.enrol(shared_operator, run_id, 3)
    made.claim()
    return made


@pytest.fixture(scope="module")
def stored(shared_server: ServerProcess) -> Iterator[Stored]:
    with Stored(shared_server.database_url) as database:
        yield database


def stranger(operator: httpx.Client, session_id: str) -> MaskedClient:
    return MaskedClient(enrol(operator, "stranger"), session_id=session_id)


def signed(client: MaskedClient, advertise: messages.Advertise) -> bytes:
    """Signs changed keys as their client would have."""
    message = messages.advertise_message(advertise, context=keys.context(client.manifest))
    return replace(advertise, signature=client.sign(message)).render()


def test_an_update_in_the_clear_is_refused_in_a_masked_run(cohort: MaskedCohort) -> None:
    client = cohort.clients[0]
    delta = {name: values * 0 for name, values in small_model().items()}
    answer = client.enrolled.put(client.task["task_id"], update_body(delta, num_examples=1))
    assert_refused(answer, "state-conflict", "/seat")


def test_a_run_without_masks_has_no_seats(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, small_model(), round={"quorum": 1})
    client = enrol(shared_operator, "plain")
    task = client.claim(run_id, wait=20).json()
    assert task["manifest"] is None
    where = f"/v1/tasks/{task['task_id']}/seat"
    assert_refused(client.http.put(where, content=bytes(176), headers=BYTES), "state-conflict", "/update")
    assert_refused(client.http.get(where), "state-conflict")
    assert shared_operator.get(f"/v1/runs/{run_id}/manifests").json()["items"] == []
    assert_refused(shared_operator.get(f"/v1/runs/{run_id}/manifests/1"), "not-found")


def test_an_identity_key_is_registered_once_and_by_its_client(cohort: MaskedCohort) -> None:
    client, other = cohort.clients[:2]
    assert_refused(client.put_seat(client.advertise()), "state-conflict", "identity-key")
    where = f"/v1/clients/{client.client_id}/identity-key"
    assert_refused(other.http.get(where), "not-found", "no identity key")
    assert_refused(other.http.put(where, json={"public_key": "00" * 32}), "forbidden")
    assert_refused(client.http.put(where, json={"public_key": "zz" * 32}), "invalid-request", "public_key")
    assert client.register().status_code == 201
    assert client.register().status_code == 200
    assert_refused(client.http.put(where, json={"public_key": "00" * 32}), "state-conflict", "new client")
    found = other.http.get(where).json()
    assert found["public_key"] == keys.identity_public_key(client.identity).hex()
    assert found["certificate"] is None


def test_advertised_keys_are_checked_before_a_seat_is_given(cohort: MaskedCohort) -> None:
    client, other = cohort.clients[:2]
    for one in (client, other):
        assert one.register().status_code == 201
    right = client.advertise()
    own = messages.parse_advertise(right)
    used = messages.parse_advertise(other.advertise())
    assert other.put_seat(used.render()).status_code == 201
    wrong = {
        "175 bytes": right[:-1],
        "client_id": signed(client, replace(own, client_id=used.client_id)),
        "identity_key": signed(client, replace(own, identity_key=used.identity_key)),
        "share_key": signed(client, replace(own, share_key=LOW_ORDER)),
        "mask_key: ": signed(client, replace(own, mask_key=LOW_ORDER)),
        "mask_key is the share key": signed(client, replace(own, mask_key=own.share_key)),
        "mask_key was advertised before": signed(client, replace(own, mask_key=used.share_key)),
        "signature": replace(own, share_key=os.urandom(32)).render(),
    }
    for named, data in wrong.items():
        assert_refused(client.put_seat(data), "invalid-message", named)
    assert_refused(client.put_seat(right + b"x"), "too-large")
    where = f"/v1/tasks/{client.task['task_id']}/seat"
    assert_refused(client.http.get(where), "not-found")
    assert_refused(other.http.put(where, content=right, headers=BYTES), "forbidden")
    as_tensors = client.http.put(where, content=right, headers={"Content-Type": MEDIA_TYPE})
    assert_refused(as_tensors, "unsupported-media-type")
    assert client.put_seat(right).status_code == 201
    again = client.put_seat(right)
    assert (again.status_code, again.json()["state"], again.json()["num_waiting"]) == (200, "waiting", 2)
    assert_refused(client.put_seat(client.advertise()), "equivocation")


def test_two_clients_with_one_identity_are_not_seated_together(cohort: MaskedCohort) -> None:
    first, second = cohort.clients[:2]
    second.identity = first.identity
    first.ask_for_seat()
    assert second.register().status_code == 201
    assert_refused(second.put_seat(second.advertise()), "invalid-message", "another client")


def phase_of(client: MaskedClient, what: str, message: bytes, changed: bytes) -> None:
    """Sends a message first, again, changed, and at another member's place."""
    assert_refused(client.put(what, message, index=1 - client.index), "forbidden", f"member {client.index}")
    wrong = {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(b'').digest()).decode()}:"}
    assert_refused(client.put(what, message, **wrong), "digest-mismatch")
    client.send(what, message)
    repeated = client.put(what, message)
    assert repeated.status_code == 200
    assert_refused(client.put(what, changed), "equivocation")


def test_every_phase_takes_its_own_messages_once(shared_operator: httpx.Client, cohort: MaskedCohort) -> None:
    cohort.seat()
    first, *others = cohort.clients
    odd = stranger(shared_operator, first.session_id)
    for what in ("", "/roster", "/certificates", "/survivors", "/consistency", "/transcript"):
        assert_refused(odd.http.get(f"/v1/sessions/{first.session_id}{what}"), "not-found")
    assert first.get("certificates").content == bytes(3 * 64)
    for what in (f"shares/{first.index}", "survivors", "consistency"):
        assert_refused(first.get(what), "phase-closed", "shares")
    for what in ("inputs", "consistency", "unmask"):
        assert_refused(first.put(what, bytes(8)), "phase-closed", "shares")
    shares = first.deal()
    for wrong in (b"", shares[:-162], shares + shares[-162:], shares[162:] + shares[:162]):
        assert_refused(first.put("shares", wrong), "invalid-message", "shares")
    assert_refused(odd.put("shares", shares, index=0), "not-found")
    phase_of(first, "shares", shares, os.urandom(len(shares)))
    cohort.phase(MaskedClient.send_shares, others)
    assert first.session()["num_messages"] == 0

    assert first.put("shares", shares).status_code == 200
    assert_refused(first.get(f"shares/{1 - first.index}"), "forbidden")
    masked = first.masked_input(cohort.ring)
    for wrong in (b"", masked[:-1], masked + b"x"):
        assert_refused(first.put("inputs", wrong), "invalid-message", f"instead of {len(masked)}")
    phase_of(first, "inputs", masked, os.urandom(len(masked)))
    cohort.phase(lambda client: client.send_input(cohort.ring), others)

    assert_refused(first.get(f"shares/{1 - first.index}"), "forbidden")
    signature = first.part.sign_survivors(first.get("survivors").content, signer=first.sign)
    for wrong in (b"", os.urandom(64), others[0].sign(b"x")):
        assert_refused(first.put("consistency", wrong), "invalid-message", "signature")
    phase_of(first, "consistency", signature, os.urandom(64))
    cohort.phase(MaskedClient.send_signature, others)

    answer = first.answer()
    both = bytearray(answer)
    both[4:5] = b"s"
    for wrong in (b"", answer[:-38], bytes(both), answer + answer[-38:]):
        assert_refused(first.put("unmask", wrong), "invalid-message", "unmask")
    phase_of(first, "unmask", answer, os.urandom(len(answer)))
    cohort.phase(MaskedClient.send_answer, others)

    assert first.leave("summing") == "done"
    assert first.put("unmask", answer).status_code == 200
    assert_refused(first.get(f"shares/{first.index}"), "phase-closed", "done")


def test_an_input_that_comes_too_late_is_refused_before_it_is_stored(
    shared_server: ServerProcess, shared_operator: httpx.Client, stored: Stored
) -> None:
    run_id = create_run(shared_operator, small_model(), **masked_spec(5))
    late = MaskedCohort.enrol(shared_operator, run_id, 5)
    late.claim()
    late.seat()
    late.phase(MaskedClient.send_shares)
    masked = late.clients[0].masked_input(late.ring)
    late.phase(lambda client: client.send_input(late.ring), late.clients[1:])
    let_time_pass(shared_server, run_id)
    assert late.clients[0].leave("input") == "consistency"
    before = stored.snapshot("blobs", "blob_chunks")
    for data in (masked, masked[:-1], os.urandom(1 << 20)):
        assert_refused(late.clients[0].put("inputs", data), "phase-closed", "consistency")
    assert stored.snapshot("blobs", "blob_chunks") == before
    assert_refused(late.clients[0].put("consistency", bytes(64)), "phase-closed", "dropped out")


def test_a_specification_that_cannot_be_masked_is_refused_by_the_fields_name(shared_operator: httpx.Client) -> None:
    refused = {
        "secure_aggregation.min_members": masked_spec(3, secure_aggregation={"min_members": 4}),
        "strategy.kind": masked_spec(3, strategy={"kind": "median"}),
        "algorithm.kind": masked_spec(3, algorithm={"kind": "scaffold", "num_clients": 3}),
    }
    for field, spec in refused.items():
        assert_refused(shared_operator.post("/v1/runs", json={"name": "test"} | spec), "invalid-request", field)
    assert json.loads(shared_operator.get("/v1/manifest-key").content)["key_id"]
