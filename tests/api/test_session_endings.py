"""How sessions begin with fewer, fail, and end with their round: cleanly, and with a way on for the others."""

import os
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.api.test_sessions import assert_sum_of, masked_run
from tests.support.masked import MaskedClient, MaskedCohort, let_time_pass
from tests.support.participant import enrol, wait_for_run
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored


def inputs_of(cohort: MaskedCohort, clients: list[MaskedClient] | None = None) -> None:
    """Takes everyone from the seats to the inputs."""
    cohort.phase(MaskedClient.send_shares, clients)
    cohort.phase(lambda client: client.send_input(cohort.ring), clients)


def answers_of(cohort: MaskedCohort) -> None:
    cohort.phase(MaskedClient.send_signature)
    cohort.phase(MaskedClient.send_answer)


def wrong_shares(answer: bytes) -> bytes:
    """Changes every share of an unmask message."""
    changed = bytearray(answer)
    for at in range(37, len(changed), 38):
        changed[at] ^= 1
    return bytes(changed)


def ended(client: MaskedClient, state: str) -> dict[str, Any]:
    client.leave(state)
    return client.session()


def test_members_of_a_session_that_failed_early_mask_anew_with_fresh_keys(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    cohort = masked_run(shared_operator, 3)
    cohort.claim()
    cohort.seat()
    first, second, late = cohort.clients
    used = first.part.advertise.render()
    message = first.deal()
    first.send("shares", message)
    second.send_shares()
    let_time_pass(shared_server, cohort.run_id)
    failed = ended(first, "shares")
    assert (failed["state"], failed["abort_code"], failed["blamed"]) == ("aborted", "not_enough_clients", [])
    assert "2 of 3" in failed["reason"]
    for answer in (first.put("shares", message), late.put("shares", late.deal()), first.get("shares/0")):
        assert_refused(answer, "session-aborted", "not_enough_clients")
    seat = first.seat().json()
    assert (seat["state"], seat["session_id"], seat["index"]) == ("free", None, None)
    assert_refused(first.put_seat(used), "invalid-message", "fresh")
    again = MaskedCohort(cohort.clients, cohort.run_id, cohort.spec)
    again.seat()
    assert first.session_id != failed["session_id"]
    inputs_of(again)
    answers_of(again)
    wait_for_run(shared_operator, cohort.run_id, version=1)
    assert_sum_of(cohort, cohort.clients)


def test_who_has_answered_a_session_that_failed_is_spent_for_this_attempt(shared_operator: httpx.Client) -> None:
    cohort = masked_run(shared_operator, 3, num_rounds=2)
    cohort.claim()
    poison = cohort.clients[0]
    poison.vector = poison.vector.copy()
    poison.vector[-1] = 1 + 3 * cohort.ring.max_weight
    cohort.seat()
    inputs_of(cohort)
    answers_of(cohort)
    failed = ended(poison, "summing")
    assert (failed["state"], failed["abort_code"]) == ("aborted", "range_check_failed")
    assert "no honest" in failed["reason"]
    for client in cohort.clients:
        assert client.seat().json()["state"] == "spent"
        assert_refused(client.put_seat(client.advertise()), "state-conflict", "spent")
        # Its task is over, so that others can be asked in its place.
        assert client.enrolled.claim(cohort.run_id).status_code == 204
    assert shared_operator.get(f"/v1/runs/{cohort.run_id}/rounds/1").json()["num_tasks"] == 0


def test_wrong_shares_are_named_and_a_session_with_enough_others_goes_on(shared_operator: httpx.Client) -> None:
    cohort = masked_run(shared_operator, 5)
    cohort.claim()
    cohort.seat()
    inputs_of(cohort)
    cohort.phase(MaskedClient.send_signature)
    liar, *others = cohort.clients
    liar.send("unmask", wrong_shares(liar.answer()))
    assert liar.session()["blamed"] == [liar.client_id]
    cohort.phase(MaskedClient.send_answer, others)
    wait_for_run(shared_operator, cohort.run_id, version=1)
    assert_sum_of(cohort, cohort.clients)


def test_three_sessions_that_fail_by_wrong_shares_exclude_a_client(shared_operator: httpx.Client) -> None:
    cohort = masked_run(shared_operator, 3, num_rounds=2)
    liar, *others = cohort.clients
    for strike in range(1, 4):
        cohort.claim()
        cohort.seat()
        inputs_of(cohort)
        cohort.phase(MaskedClient.send_signature)
        cohort.phase(MaskedClient.send_answer, others)
        liar.send("unmask", wrong_shares(liar.answer()))
        failed = liar.session()
        assert (failed["abort_code"], failed["blamed"]) == ("bad_share", [liar.client_id])
        excluded = shared_operator.get(f"/v1/runs/{cohort.run_id}/exclusions").json()["items"]
        assert [one["client_id"] for one in excluded] == ([liar.client_id] if strike == 3 else [])
        if strike < 3:
            back = shared_operator.post(f"/v1/runs/{cohort.run_id}/rollback", json={"version": 0})
            assert back.status_code == 201, back.text
    assert_refused(liar.enrolled.claim(cohort.run_id), "forbidden", "3 sessions failed")


def test_sums_out_of_range_exclude_who_was_in_three_in_a_row_and_not_those_beside_them(
    shared_operator: httpx.Client,
) -> None:
    cohort = masked_run(shared_operator, 3, num_rounds=2)
    poison, first, second = cohort.clients
    third = MaskedClient(enrol(shared_operator, "masked-3"))
    for strike, honest in enumerate([(first, second), (first, third), (second, third)], start=1):
        members = MaskedCohort([poison, *honest], cohort.run_id, cohort.spec)
        members.claim()
        poison.vector[-1] = 1 + 3 * cohort.ring.max_weight
        members.seat()
        inputs_of(members)
        answers_of(members)
        failed = ended(poison, "summing")
        assert (failed["abort_code"], failed["blamed"]) == ("range_check_failed", [])
        assert sorted(failed["suspected"]) == sorted(client.client_id for client in members.clients)
        excluded = shared_operator.get(f"/v1/runs/{cohort.run_id}/exclusions").json()["items"]
        assert [one["client_id"] for one in excluded] == ([poison.client_id] if strike == 3 else [])
        if strike < 3:
            back = shared_operator.post(f"/v1/runs/{cohort.run_id}/rollback", json={"version": 0})
            assert back.status_code == 201, back.text
    assert_refused(poison.enrolled.claim(cohort.run_id), "forbidden", "does not tell which")


def test_a_session_begins_late_with_fewer_but_never_with_too_few(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    cohort = masked_run(shared_operator, 5)
    cohort.claim()
    first, second, third, gone, _ = cohort.clients
    for client in (first, gone):
        client.ask_for_seat()
    assert gone.http.delete(f"/v1/tasks/{gone.task['task_id']}").status_code == 204
    assert_refused(gone.seat(), "round-closed", "given up")
    second.ask_for_seat()
    let_time_pass(shared_server, cohort.run_id)
    assert first.seat().json() | {"deadline_at": None} == {
        "task_id": first.task["task_id"],
        "state": "waiting",
        "session_id": None,
        "index": None,
        "num_members": None,
        "num_waiting": 2,
        "deadline_at": None,
    }
    # The first of them has waited long enough, so that the third is all it takes.
    third.ask_for_seat()
    seat = second.seat(20).json()
    assert (seat["state"], seat["num_members"]) == ("seated", 3)


def test_who_is_excluded_or_gives_up_in_a_session_drops_out_of_it(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    cohort = masked_run(shared_operator, 10, round={"quorum": 8})
    cohort.claim()
    cohort.seat()
    excluded, tired, *stay = cohort.clients
    where = f"/v1/runs/{cohort.run_id}/exclusions/{excluded.client_id}"
    assert shared_operator.put(where, json={"reason": "sends noise"}).status_code == 201
    assert_refused(excluded.put("shares", excluded.deal()), "forbidden", "sends noise")
    cohort.phase(MaskedClient.send_shares, cohort.clients[1:])
    let_time_pass(shared_server, cohort.run_id)
    assert stay[0].leave("shares") == "input"
    masked = tired.masked_input(cohort.ring)
    assert tired.http.delete(f"/v1/tasks/{tired.task['task_id']}").status_code == 204
    assert_refused(tired.put("inputs", masked), "round-closed", "given up")
    cohort.phase(lambda client: client.send_input(cohort.ring), stay)
    let_time_pass(shared_server, cohort.run_id)
    assert stay[0].leave("input") == "consistency"
    cohort.phase(MaskedClient.send_signature, stay)
    cohort.phase(MaskedClient.send_answer, stay)
    wait_for_run(shared_operator, cohort.run_id, version=1)
    assert_sum_of(cohort, stay)


def test_a_round_that_closes_ends_its_other_sessions_and_nothing_of_them_is_kept(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    cohort = masked_run(shared_operator, 7, round={"quorum": 4}, secure_aggregation={"target_members": 4})
    cohort.claim()
    for client in cohort.clients:
        client.ask_for_seat()
    for client in cohort.clients:
        client.take_seat()
    done = MaskedCohort(cohort.clients[:4], cohort.run_id, cohort.spec)
    others = cohort.clients[4:]
    inputs_of(cohort, others)
    inputs_of(done)
    answers_of(done)
    wait_for_run(shared_operator, cohort.run_id, version=1)
    failed = others[0].session()
    assert (failed["state"], failed["abort_code"]) == ("aborted", "round_ended")
    assert_refused(others[0].put("consistency", bytes(64)), "session-aborted", "round 1")
    assert_refused(others[0].seat(), "round-closed")
    with Stored(shared_server.database_url) as stored:
        kept = stored.rows(
            "SELECT input_blob_id, right_shares FROM session_members WHERE session_id IN (:a, :b)",
            a=failed["session_id"],
            b=done.clients[0].session_id,
        )
        assert set(kept) == {(None, None)}
        for client in (done.clients[0], others[0]):
            found = stored.rows("SELECT kind FROM session_messages WHERE session_id = :a", a=client.session_id)
            assert found == []
        round_id = stored.rows("SELECT round_id FROM sessions WHERE session_id = :a", a=failed["session_id"])[0][0]
        assert stored.rows("SELECT 1 FROM advertised_keys WHERE round_id = :a", a=round_id) == []


def test_a_run_that_stops_ends_its_sessions_and_a_pause_holds_their_time(shared_operator: httpx.Client) -> None:
    cohort = masked_run(shared_operator, 3)
    cohort.claim()
    cohort.seat()
    first = cohort.clients[0]
    before = datetime.fromisoformat(first.session()["deadline_at"])
    assert shared_operator.post(f"/v1/runs/{cohort.run_id}/pause").status_code == 200
    cohort.phase(MaskedClient.send_shares, cohort.clients[1:])
    assert shared_operator.post(f"/v1/runs/{cohort.run_id}/resume").status_code == 200
    assert datetime.fromisoformat(first.session()["deadline_at"]) > before
    first.send_shares()
    assert first.session()["state"] == "input"
    assert shared_operator.post(f"/v1/runs/{cohort.run_id}/stop").status_code == 200
    assert first.session()["abort_code"] == "round_ended"
    assert_refused(first.put("inputs", os.urandom(8)), "session-aborted")


@pytest.mark.parametrize("at_phase", ["input", "consistency", "unmask"])
def test_a_session_that_too_many_leave_is_ended(
    shared_server: ServerProcess, shared_operator: httpx.Client, at_phase: str
) -> None:
    cohort = masked_run(shared_operator, 4, secure_aggregation={"min_members": 4})
    cohort.claim()
    cohort.seat()
    stay = cohort.clients[1:]
    cohort.phase(MaskedClient.send_shares)
    codes = {"input": "not_enough_clients", "consistency": "quorum_failed", "unmask": "too_few_shares"}
    cohort.phase(lambda client: client.send_input(cohort.ring), stay if at_phase == "input" else None)
    if at_phase != "input":
        cohort.phase(MaskedClient.send_signature, stay[1:] if at_phase == "consistency" else None)
    if at_phase == "unmask":
        cohort.phase(MaskedClient.send_answer, stay[1:])
    let_time_pass(shared_server, cohort.run_id)
    failed = ended(stay[0], at_phase)
    assert (failed["state"], failed["abort_code"]) == ("aborted", codes[at_phase])
    states = [client.seat().json()["state"] for client in cohort.clients] if at_phase != "unmask" else []
    assert set(states) <= {"free"}
    if at_phase == "unmask":
        assert [client.seat().status_code for client in stay[1:]] == [200, 200]
        assert cohort.clients[0].seat().json()["state"] == "free"
        assert [client.seat().json()["state"] for client in stay] == ["free", "spent", "spent"]
