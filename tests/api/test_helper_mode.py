"""Helper mode over HTTP (S32): the sum is the plain integers' sum, and each message has its time and its sender."""

import base64
import hashlib
import json
import math
import os
from typing import Any

import httpx
import numpy as np
import pytest

from fl_protocol.masking import ring
from fl_protocol.masking.ring import pack, to_words
from tests.api.test_masked_secrecy import CHI_SQUARE_255, assert_nothing_of, chi_square
from tests.support.helper_mode import HelperFederation, HelperParty, helper_spec
from tests.support.masked import BYTES, flat, let_worker_look
from tests.support.participant import MEDIA_TYPE, create_run, enrol, small_model, unpack, update_body, wait_for_run
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored
from tests.support.vestiges import everything_kept, log_end


def federation(operator: httpx.Client, num_clients: int, num_helpers: int = 2, **changes: Any) -> HelperFederation:
    helpers = [HelperParty(f"helper-{number}") for number in range(num_helpers)]
    run_id = create_run(operator, small_model(), **helper_spec(num_clients, helpers, **changes))
    made = HelperFederation.enrol(operator, run_id, num_clients, helpers)
    made.claim(examples=[100 * (1 + number) for number in range(num_clients)])
    return made


def report(operator: httpx.Client, run_id: str, number: int = 1) -> dict[str, Any]:
    answer = operator.get(f"/v1/runs/{run_id}/rounds/{number}/mask-sum")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def digest_of(expected: Any) -> str:
    return f"sha256:{hashlib.sha256(expected.astype('<i8').tobytes()).hexdigest()}"


def let_deadlines_pass(server: ServerProcess, made: HelperFederation, table: str) -> None:
    """Lets a deadline be over now, however slow the machine."""
    with Stored(server.database_url) as stored:
        stored.change(f"UPDATE {table} SET deadline_at = 0 WHERE run_id = :a", a=made.run_id)
    with server.http() as operator:
        let_worker_look(operator, made.run_id)


@pytest.mark.parametrize(("num_helpers", "dropouts"), [(1, 0), (3, 4)])
def test_the_sum_is_that_of_the_plain_integers_whoever_drops_out(
    shared_server: ServerProcess, shared_operator: httpx.Client, num_helpers: int, dropouts: int
) -> None:
    made = federation(shared_operator, 7, num_helpers, round={"min_updates": 3})
    left = made.clients[dropouts:]
    made.contribute(left)
    if dropouts:
        let_deadlines_pass(shared_server, made, "rounds")
    made.check()
    made.answer()
    model = unpack(wait_for_run(shared_operator, made.run_id, version=1).content)
    told, expected = report(shared_operator, made.run_id), made.expected(left)
    assert (told["state"], told["sum_digest"]) == ("done", digest_of(expected))
    assert told["total_weight"] == expected[-1]
    mean = expected[:-1] * made.ring.step / expected[-1]
    np.testing.assert_allclose(flat(model) - flat(small_model()), mean, atol=1e-6)
    digests = {one["client_id"]: one["vector_digest"] for one in told["contributors"]}
    assert digests == {
        one.client.client_id: f"sha256:{hashlib.sha256(one.message[64 + 80 * num_helpers :]).hexdigest()}"
        for one in left
    }
    counted = shared_operator.get(f"/v1/runs/{made.run_id}/rounds/1/updates").json()["items"]
    assert {one["client_id"] for one in counted} == set(digests)


def test_a_contribution_is_taken_once_and_only_as_its_client_signed_it(shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 3)
    first, second, third = made.clients
    for wrong in (first.message[:-1], first.message + b"x", b""):
        assert_refused(first.put(wrong), "invalid-message", "bytes instead of")
    for at in (0, 64, len(first.message) - 1):
        spoiled = bytearray(first.message)
        spoiled[at] ^= 1
        assert_refused(first.put(bytes(spoiled)), "invalid-message", "signature")
    assert_refused(second.put(first.message), "invalid-message", "signature")
    announced = f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"
    assert_refused(first.put(**{"Content-Digest": announced}), "digest-mismatch")
    receipt = first.put()
    assert receipt.status_code == 201
    again = first.put()
    assert (again.status_code, again.json()) == (200, receipt.json())
    assert_refused(first.put(first.message_for(made.spec, made.ring)), "already-submitted")
    third.client.task = first.client.task
    assert_refused(third.put(), "forbidden")


def test_other_doors_are_closed_and_name_the_right_one(shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 3)
    client = made.clients[0].client
    task_id = client.task["task_id"]
    body = update_body({name: values * 0 for name, values in small_model().items()}, num_examples=1)
    update = client.http.put(f"/v1/tasks/{task_id}/update", content=body, headers={"Content-Type": MEDIA_TYPE})
    assert_refused(update, "state-conflict", "/contribution")
    assert_refused(client.put_seat(bytes(176)), "state-conflict", "/contribution")
    plain = create_run(shared_operator, small_model(), num_rounds=1, round={"quorum": 1})
    other = enrol(shared_operator, "plain")
    task = other.claim(plain, wait=20).json()
    url = f"/v1/tasks/{task['task_id']}/contribution"
    assert_refused(other.http.put(url, content=b"", headers=BYTES), "state-conflict", "not 'helper'")


def test_a_client_without_an_identity_is_told_to_register_one(shared_operator: httpx.Client) -> None:
    helpers = [HelperParty("helper")]
    run_id = create_run(shared_operator, small_model(), **helper_spec(3, helpers))
    made = HelperFederation.enrol(shared_operator, run_id, 1, helpers)
    made.clients[0].client.claim(run_id)
    assert_refused(made.clients[0].put(b""), "state-conflict", "identity-key")


def test_a_late_contribution_is_refused(shared_server: ServerProcess, shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 4, round={"min_updates": 3})
    made.contribute(made.clients[:3])
    let_deadlines_pass(shared_server, made, "rounds")
    made.helpers[0].pending()
    assert_refused(made.clients[3].put(), "round-closed")


def test_helpers_see_their_own_requests_alone_and_answer_in_turn(shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 3)
    first, second = made.helpers
    assert first.pending(wait=0) == []
    made.contribute()
    (asked,), (other,) = first.pending(), second.pending()
    assert (asked["helper"], asked["num_members"], asked["phase"]) == (0, 3, "checking")
    for method, what in (("GET", ""), ("PUT", "/mask-sum"), ("PUT", "/verdict")):
        url = f"/v1/helper-requests/{other['request_id']}{what}"
        content = {"json": {}} if what == "/verdict" else {"content": b"", "headers": BYTES}
        answer = first.web.request(method, url, **({} if method == "GET" else content))
        assert_refused(answer, "not-found")
    request = first.read(asked["request_id"])
    told = first.mask_sum(request, made.ring, made.num_elements)
    assert_refused(first.put(asked["request_id"], told), "phase-closed")
    assert first.verdict(asked["request_id"]).status_code == 204
    assert first.verdict(asked["request_id"]).status_code == 204
    assert first.pending(wait=0) == []
    assert_refused(first.put(asked["request_id"], told), "phase-closed")
    assert second.verdict(other["request_id"]).status_code == 204
    spoiled = bytearray(told)
    spoiled[-1] ^= 1
    assert_refused(first.put(asked["request_id"], bytes(spoiled)), "invalid-message", "signature")
    assert_refused(first.put(asked["request_id"], told[:-1]), "invalid-message")
    assert first.put(asked["request_id"], told).status_code == 201
    assert first.put(asked["request_id"], told).status_code == 200
    assert_refused(first.put(asked["request_id"], bytes(spoiled)), "equivocation")
    made.answer([second])
    wait_for_run(shared_operator, made.run_id, version=1)
    assert_refused(second.put(other["request_id"], told), "equivocation")


def test_a_contribution_that_a_helper_cannot_open_costs_the_others_nothing(shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 5, round={"min_updates": 3})
    made.contribute()
    bad = made.clients[1].client.client_id
    first, second = made.helpers
    made.check([first])
    (asked,) = second.pending()
    assert_refused(second.verdict(asked["request_id"], refused={"client_" + "0" * 32: "a"}), "invalid-message")
    assert second.verdict(asked["request_id"], refused={bad: "its sealed seed does not open"}).status_code == 204
    assert_refused(second.verdict(asked["request_id"]), "not-found")
    assert shared_operator.get(f"/v1/runs/{made.run_id}/rounds/1").json()["num_updates"] == 4
    made.check()
    made.answer()
    wait_for_run(shared_operator, made.run_id, version=1)
    told = report(shared_operator, made.run_id)
    expected = made.expected([one for one in made.clients if one.client.client_id != bad])
    assert told["sum_digest"] == digest_of(expected)
    refused = {one["client_id"]: one["refused"] for one in told["contributors"] if one["refused"]}
    assert refused == {bad: "helper 'helper-1': its sealed seed does not open"}
    counted = shared_operator.get(f"/v1/runs/{made.run_id}/rounds/1/updates").json()["items"]
    assert len(counted) == 4


def test_a_round_in_which_too_few_are_left_is_tried_again(shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 3, round={"max_attempts": 2})
    made.contribute()
    (asked,) = made.helpers[0].pending()
    bad = made.clients[0].client.client_id
    assert made.helpers[0].verdict(asked["request_id"], refused={bad: "a stranger"}).status_code == 204
    assert_refused(made.helpers[0].verdict(asked["request_id"]), "round-closed", "2 of at least 3 are left")
    again = shared_operator.get(f"/v1/runs/{made.run_id}/rounds/1").json()
    assert (again["attempt"], again["state"]) == (2, "collecting")
    made.claim()
    made.contribute()
    made.check()
    made.answer()
    wait_for_run(shared_operator, made.run_id, version=1)
    assert report(shared_operator, made.run_id)["attempt"] == 2


@pytest.mark.parametrize("phase", ["checking", "releasing"])
def test_a_silent_helper_is_named_when_the_run_fails(
    shared_server: ServerProcess, shared_operator: httpx.Client, phase: str
) -> None:
    made = federation(shared_operator, 3, round={"max_attempts": 1})
    made.contribute()
    made.check(made.helpers[:1] if phase == "checking" else None)
    if phase == "releasing":
        made.answer(made.helpers[:1])
    let_deadlines_pass(shared_server, made, "mask_sums")
    events = shared_operator.get(f"/v1/runs/{made.run_id}/events").text
    run = shared_operator.get(f"/v1/runs/{made.run_id}").json()
    assert run["state"] == "failed"
    did = "said whether it can" if phase == "checking" else "told the sum of masks"
    reason = f"helper 'helper-1' has not {did} within secure_aggregation.helper_seconds 3600"
    assert run["reason"] == f"round 1 was abandoned 1 times: {reason}"
    assert reason in events
    assert report(shared_operator, made.run_id)["reason"] == reason
    with Stored(shared_server.database_url) as stored:
        left = "SELECT count(*) FROM contributions WHERE run_id = :a AND (sealed IS NOT NULL OR blob_id IS NOT NULL)"
        assert stored.rows(left, a=made.run_id) == [(0,)]


def test_a_helper_that_refuses_the_round_ends_it_with_its_reason(shared_operator: httpx.Client) -> None:
    made = federation(shared_operator, 3, round={"max_attempts": 1})
    made.contribute()
    (asked,) = made.helpers[1].pending()
    assert made.helpers[1].verdict(asked["request_id"], reason="3 clients; this helper wants 10").status_code == 204
    run = shared_operator.get(f"/v1/runs/{made.run_id}").json()
    assert run["reason"].endswith("helper 'helper-1' refuses the round: 3 clients; this helper wants 10")
    assert made.helpers[0].pending(wait=0) == []


def test_a_wrong_sum_of_masks_makes_no_model(shared_operator: httpx.Client) -> None:
    """A helper that signs garbage spoils the range of the sum; nothing of it is published."""
    made = federation(shared_operator, 3, round={"max_attempts": 1})
    made.contribute()
    made.check()
    made.answer(made.helpers[:1])
    (asked,) = made.helpers[1].pending()
    request = made.helpers[1].read(asked["request_id"])
    garbage = made.helpers[1].signed(request, os.urandom(made.num_elements * made.ring.element_bytes))
    assert made.helpers[1].put(asked["request_id"], garbage).status_code == 201
    shared_operator.get(f"/v1/runs/{made.run_id}/events")
    run = shared_operator.get(f"/v1/runs/{made.run_id}").json()
    assert run["state"] == "failed"
    assert "or a helper told a wrong sum" in run["reason"]
    assert shared_operator.get(f"/v1/runs/{made.run_id}/models/latest").headers["model-version"] == "0"


def test_a_revoked_helper_gets_nothing(shared_operator: httpx.Client) -> None:
    helper = HelperParty("leaves")
    helper.connect(shared_operator)
    assert helper.pending(wait=0) == []
    url = f"/v1/helper-tokens/{helper.public['signing_key']}"
    assert shared_operator.delete(url).status_code == 204
    assert shared_operator.delete(url).status_code == 204
    assert_refused(helper.web.get("/v1/helper-requests"), "unauthenticated")
    assert_refused(shared_operator.delete(f"/v1/helper-tokens/{'0' * 64}"), "not-found")


def test_central_noise_goes_on_top_of_the_sum(shared_operator: httpx.Client) -> None:
    size = 5000
    privacy = {"kind": "central_gaussian", "target_epsilon": 8.0, "delta": 1e-6, "clipping_norm": 1.0}
    helpers = [HelperParty("one"), HelperParty("two")]
    spec = helper_spec(3, helpers, strategy={"weighting": "uniform"}, privacy=privacy)
    run_id = create_run(shared_operator, {"w": np.zeros(size, dtype=np.float64)}, **spec)
    made = HelperFederation.enrol(shared_operator, run_id, 3, helpers)
    for one in made.clients:
        one.client.register()
        one.client.claim(run_id)
        one.client.vector = np.zeros(size, dtype=np.int64)
        one.message = one.message_for(made.spec, made.ring)
    made.contribute()
    made.check()
    made.answer()
    noise = unpack(wait_for_run(shared_operator, run_id, version=1).content)["w"] * 3 / made.ring.step
    entries = shared_operator.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]
    released = json.loads(entries[-1]["text"])["noise"]
    np.testing.assert_allclose(noise, np.rint(noise), atol=1e-3)
    assert noise.std() == pytest.approx(released["stddev"], rel=0.06)
    assert released["step"] == made.ring.step
    assert entries[-1]["num_updates"] == 3
    assert math.isfinite(entries[-1]["epsilon"])


def test_nothing_of_an_update_is_kept_and_what_is_kept_is_uniform(
    server: ServerProcess, operator: httpx.Client
) -> None:
    since, size, helpers = log_end(server), 16_000, [HelperParty("one"), HelperParty("two")]
    run_id = create_run(operator, {"w": np.zeros(size, dtype=np.float32)}, **helper_spec(3, helpers))
    made = HelperFederation.enrol(operator, run_id, 3, helpers)
    secrets: list[bytes] = []
    for number, one in enumerate(made.clients, start=1):
        one.client.register()
        one.client.claim(run_id)
        one.client.vector = np.full(size + 1, 0x1234 * number + 0x57, dtype=np.int64)
        one.client.vector[-1] = 1
        one.message = one.message_for(made.spec, made.ring)
        words = to_words(one.client.vector, made.ring)
        forms = [pack(words, made.ring.bits), words.tobytes(), one.client.vector.tobytes()]
        secrets += [form[: 8 * len(form) // size] for form in forms]
    made.contribute()
    made.check()
    made.answer(helpers[:1])
    assert_nothing_of(server, secrets, since)
    with Stored(server.database_url) as stored:
        vectors = stored.rows("SELECT data FROM blob_chunks JOIN contributions USING (blob_id)")
        answers = stored.rows("SELECT data FROM blob_chunks JOIN mask_requests USING (blob_id)")
    assert (len(vectors), len(answers)) == (3, 1)
    assert max(chi_square(bytes(data)) for (data,) in vectors + answers) < CHI_SQUARE_255
    # One helper's masks off the sum leave the other's on it.
    half = np.zeros(size + 1, dtype=made.ring.dtype)
    for (data,) in vectors:
        half += ring.unpack(bytes(data), made.ring.bits)
    half -= ring.unpack(bytes(answers[0][0]), made.ring.bits)
    assert chi_square(pack(half, made.ring.bits)) < CHI_SQUARE_255
    made.answer(helpers[1:])
    wait_for_run(operator, run_id, version=1)
    assert_nothing_of(server, secrets, since)
    sums = made.expected().tobytes()[:64]
    assert [name for name, content in everything_kept(server, since) if sums in content], (
        "the scan does not look at sums"
    )
    with Stored(server.database_url) as stored:
        left = "SELECT count(*) FROM contributions WHERE sealed IS NOT NULL OR blob_id IS NOT NULL"
        assert stored.rows(left) == [(0,)]
        assert stored.rows("SELECT count(*) FROM mask_requests WHERE blob_id IS NOT NULL") == [(0,)]
