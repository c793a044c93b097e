"""The tables of masked rounds: keys and manifests, seats, sessions with their members and messages."""

import itertools
from datetime import timedelta

import pytest

from aggregator_service.domain.records import TaskState
from aggregator_service.domain.sessions.records import (
    IdentityKeyRecord,
    ManifestRecord,
    MessageKind,
    SignedManifest,
)
from aggregator_service.storage import identity_keys, manifests, rounds, runs, seats, sessions, tasks
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunSpec, RunState
from fl_protocol.sessions import AbortCode, SeatState, SessionState
from tests.support.masked import masked_spec
from tests.support.records import (
    DIGEST,
    NOON,
    later,
    member_records,
    round_record,
    run_record,
    seat_record,
    session_record,
    store_blob,
    store_ground,
    task_record,
)
from tests.support.store import REFUSED, Store

KEY = IdentityKeyRecord("client_1", bytes(range(32)), None, NOON)


@pytest.fixture(autouse=True)
def _ground(store: Store) -> None:
    store.write(lambda tx: store_ground(tx, num_clients=3))


def begin(store: Store, **changes: object) -> None:
    """Stores a session of three members, who are seated in it."""

    def body(tx: WriteTx) -> None:
        sessions.insert(tx, session_record(**changes), member_records())
        for member in member_records():
            seat = seat_record(member.task_id, client_id=member.client_id)
            seats.put(tx, seat)
        seats.seat_all(tx, seats.waiting(tx, "round_1"), "session_1")

    store.write(body)


def move(store: Store, before: SessionState, after: SessionState) -> None:
    now = session_record(state=before)
    store.write(lambda tx: sessions.enter(tx, now, after, num_expected=0, deadline_at=NOON))


def manifest(sequence: int, round_id: str, previous: str | None = None) -> SignedManifest:
    entry = ManifestRecord("run_1", sequence, round_id, sequence, 1, DIGEST, previous, NOON)
    return SignedManifest(entry, b"{}\0\xff", b"\xff" * 64)


def test_an_identity_key_is_kept_once_and_found_in_a_round(store: Store) -> None:
    store.write(lambda tx: identity_keys.insert(tx, KEY))
    with pytest.raises(REFUSED):
        store.write(lambda tx: identity_keys.insert(tx, KEY))
    assert store.read(lambda tx: identity_keys.get(tx, "client_1")) == KEY
    assert store.read(lambda tx: identity_keys.get_all(tx, ["client_1", "client_2"])) == {"client_1": KEY}
    twin = IdentityKeyRecord("client_2", KEY.public_key, bytes(64), NOON)
    store.write(lambda tx: identity_keys.insert(tx, twin))
    store.write(lambda tx: seats.put(tx, seat_record()))
    found = [
        store.read(lambda tx, key=key: identity_keys.is_seated_by_another(tx, key, round_id="round_1"))  # type: ignore[misc]
        for key in (KEY, twin)
    ]
    assert found == [False, True]


def test_manifests_are_a_log_and_the_key_that_signs_them_is_drawn_once(store: Store) -> None:
    store.write(lambda tx: rounds.insert(tx, round_record("round_2", number=2)))
    first, second = manifest(1, "round_1"), manifest(2, "round_2", DIGEST)
    for one in (first, second):
        store.write(lambda tx, one=one: manifests.insert(tx, one))  # type: ignore[misc]
    with pytest.raises(REFUSED):
        store.write(lambda tx: manifests.insert(tx, manifest(3, "round_2")))
    assert store.read(lambda tx: manifests.get(tx, "run_1", 2)) == second
    assert store.read(lambda tx: manifests.of_round(tx, "round_1")) == first.entry
    assert store.read(lambda tx: manifests.body_of_round(tx, "round_1")) == first.body
    assert store.read(lambda tx: manifests.last(tx, "run_1")) == second.entry
    assert store.read(lambda tx: manifests.page(tx, "run_1", after_sequence=1, limit=5)) == [second.entry]
    assert store.read(manifests.signing_key) is None
    kept = [store.write(lambda tx, fresh=fresh: manifests.keep_signing_key(tx, fresh)) for fresh in (b"a", b"b")]  # type: ignore[misc]
    assert kept == [b"a", b"a"]
    assert store.read(manifests.signing_key) == b"a"


def test_seats_wait_in_the_order_in_which_they_came(store: Store) -> None:
    def body(tx: WriteTx) -> None:
        seats.put(tx, seat_record("task_1", waiting_since=later(2)))
        seats.put(tx, seat_record("task_2", client_id="client_2", waiting_since=later(1)))

    store.write(body)
    assert [seat.task_id for seat in store.read(lambda tx: seats.waiting(tx, "round_1"))] == ["task_2", "task_1"]
    found = store.read(lambda tx: seats.count_waiting(tx, "round_1"))
    assert (found.num_waiting, found.since) == (2, later(1))
    assert store.read(lambda tx: seats.count_at_work(tx, "round_1")) == 1
    store.write(lambda tx: seats.postpone(tx, "run_1", timedelta(seconds=5)))
    assert store.read(lambda tx: seats.count_waiting(tx, "round_1")).since == later(6)


def test_enough_are_waited_for_in_running_runs_only(store: Store) -> None:
    def found() -> list[tuple[str, str, object]]:
        return list(store.read(seats.waited_for))

    def body(tx: WriteTx) -> None:
        spec = RunSpec.model_validate({"name": "masked"} | masked_spec(3))
        runs.insert(tx, run_record("run_2", spec=spec, state=RunState.RUNNING))
        rounds.insert(tx, round_record("round_2", run_id="run_2"))
        for number in (1, 2):
            seat = seat_record(f"task_{number}", run_id="run_2", round_id="round_2", client_id=f"client_{number}")
            seats.put(tx, seat)

    store.write(body)
    assert found() == []
    third = seat_record("task_3", run_id="run_2", round_id="round_2", client_id="client_3", waiting_since=later(1))
    store.write(lambda tx: seats.put(tx, third))
    assert found() == [("run_2", "round_2", later(60))]
    store.write(lambda tx: rounds.close(tx, round_record("round_2"), RoundState.ABANDONED))
    assert found() == []


def test_a_seat_moves_only_from_the_state_that_was_read(store: Store) -> None:
    store.write(lambda tx: seats.put(tx, seat_record()))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: seats.move(tx, ["task_1"], SeatState.SPENT, before=SeatState.SEATED))
    store.write(lambda tx: seats.move(tx, ["task_1"], SeatState.FREE, before=SeatState.WAITING))
    assert store.read(lambda tx: seats.get(tx, "task_1")) == seat_record(state=SeatState.FREE)
    assert store.read(lambda tx: seats.get(tx, "task_2")) is None
    with pytest.raises(StaleRowError):
        store.write(lambda tx: seats.seat_all(tx, [seat_record()], "session_1"))


def test_a_key_is_advertised_once_in_a_round(store: Store) -> None:
    store.write(lambda tx: seats.note_keys(tx, "round_1", [b"a", b"b"]))
    with pytest.raises(REFUSED):
        store.write(lambda tx: seats.note_keys(tx, "round_1", [b"b"]))
    assert store.read(lambda tx: seats.used_keys(tx, "round_1", [b"a", b"c"])) == {b"a"}
    store.write(lambda tx: seats.forget_keys(tx, "round_1"))
    assert store.read(lambda tx: seats.used_keys(tx, "round_1", [b"a"])) == set()


def test_a_session_comes_back_as_it_was_inserted(store: Store) -> None:
    begin(store)
    assert store.read(lambda tx: sessions.get(tx, "session_1")) == session_record()
    assert store.read(lambda tx: sessions.members(tx, "session_1")) == member_records()
    assert store.read(lambda tx: sessions.members_at(tx, "session_1", [2, 0])) == member_records()[::2]
    assert store.read(lambda tx: sessions.member(tx, "session_1", "client_2")) == member_records()[1]
    assert store.read(lambda tx: sessions.member(tx, "session_1", "client_9")) is None
    seat = store.read(lambda tx: seats.get(tx, "task_2"))
    assert seat is not None
    assert (seat.state, seat.session_id, seat.place) == (SeatState.SEATED, "session_1", 1)
    with pytest.raises(REFUSED):
        store.write(lambda tx: sessions.insert(tx, session_record("session_2"), member_records("session_2") * 2))


def test_a_session_moves_and_counts_only_in_the_state_that_was_read(store: Store) -> None:
    begin(store)
    before = session_record()
    counted = store.write(lambda tx: sessions.count_message(tx, before))
    assert counted == session_record(num_messages=1)
    moved = {"num_expected": 2, "deadline_at": later(90)}
    store.write(lambda tx: sessions.enter(tx, counted, SessionState.INPUT, survivors=b"\x07", **moved))  # type: ignore[arg-type]
    now = session_record(state=SessionState.INPUT, revision=2, survivors=b"\x07", **moved)
    assert store.read(lambda tx: sessions.get(tx, "session_1")) == now
    for change in (
        lambda tx: sessions.count_message(tx, before),
        lambda tx: sessions.enter(tx, before, SessionState.INPUT, num_expected=1, deadline_at=NOON),
        lambda tx: sessions.abort(tx, before, code=AbortCode.BAD_SHARE, reason="late"),
    ):
        with pytest.raises(StaleRowError):
            store.write(change)


def test_a_session_is_done_once_with_its_sum(store: Store) -> None:
    begin(store, state=SessionState.SUMMING)
    total = {"sum_blob_id": "blob_1", "sum_digest": DIGEST, "total_weight": 7, "totals": [7, -(2**62)]}
    summing = session_record(state=SessionState.SUMMING)
    won = [store.write(lambda tx: sessions.complete(tx, summing, **total)) for _ in range(2)]  # type: ignore[arg-type]
    assert won == [True, False]
    done = session_record(state=SessionState.DONE, revision=2, **total)
    found = store.read(lambda tx: sessions.done_of_round(tx, "round_1"))
    assert [one.ended_at is not None for one in found] == [True]
    assert found == [session_record(state=SessionState.DONE, revision=2, ended_at=found[0].ended_at, **total)]
    assert done.totals == found[0].totals


def test_what_members_send_is_kept_until_it_is_forgotten(store: Store) -> None:
    begin(store)
    first, second, _ = member_records()

    def body(tx: WriteTx) -> None:
        store_blob(tx, "blob_2")
        sessions.add_message(tx, first, MessageKind.SHARES, b"\0a")
        sessions.add_message(tx, second, MessageKind.SHARES, b"b")
        sessions.add_message(tx, first, MessageKind.UNMASK, b"c")
        sessions.change_member(tx, first, input_digest=DIGEST, input_blob_id="blob_2", right_shares=b"\1")
        sessions.change_member(tx, second, blamed=True)

    store.write(body)
    with pytest.raises(REFUSED):
        store.write(lambda tx: sessions.add_message(tx, first, MessageKind.SHARES, b"x"))
    kept = store.read(lambda tx: sessions.messages(tx, "session_1", MessageKind.SHARES))
    assert kept == {0: b"\0a", 1: b"b"}
    assert store.read(lambda tx: sessions.messages(tx, "session_1", MessageKind.SHARES, [1, 2])) == {1: b"b"}
    assert store.read(lambda tx: sessions.blamed(tx, "session_1")) == ["client_2"]
    store.write(lambda tx: sessions.forget_messages(tx, "session_1"))
    for kind in MessageKind:
        assert store.read(lambda tx, kind=kind: sessions.messages(tx, "session_1", kind)) == {}  # type: ignore[misc]
    member = store.read(lambda tx: sessions.members(tx, "session_1"))[0]
    assert (member.input_digest, member.input_blob_id, member.right_shares) == (DIGEST, None, None)
    with pytest.raises(REFUSED):
        store.write(lambda tx: sessions.change_member(tx, first, input_blob_id="blob_2"))


def test_states_that_do_not_follow_are_no_change(store: Store) -> None:
    begin(store)
    for change in (
        lambda tx: sessions.enter(tx, session_record(), SessionState.SUMMING, num_expected=0, deadline_at=NOON),
        lambda tx: seats.move(tx, ["task_1"], SeatState.WAITING, before=SeatState.SPENT),
    ):
        with pytest.raises(ValueError, match="does not become"):
            store.write(change)


def test_strikes_are_counted_over_aborted_sessions(store: Store) -> None:
    begin(store)
    store.write(lambda tx: sessions.change_member(tx, member_records()[0], blamed=True))
    assert store.read(lambda tx: sessions.count_strikes(tx, "run_1", "client_1")) == 0
    store.write(lambda tx: sessions.abort(tx, session_record(), code=AbortCode.BAD_SHARE, reason="wrong"))
    strikes = [
        store.read(lambda tx, number=number: sessions.count_strikes(tx, "run_1", f"client_{number}"))  # type: ignore[misc]
        for number in (1, 2)
    ]
    assert strikes == [1, 0]


def test_open_sessions_are_listed_by_what_they_wait_for(store: Store) -> None:
    begin(store)

    def listed() -> tuple[int, int, int]:
        return store.read(
            lambda tx: (
                len(sessions.timed(tx)),
                len(sessions.summing(tx)),
                len(sessions.open_of_round(tx, "round_1")),
            )
        )

    assert listed() == (0, 0, 1), "a draft has no deadlines"
    store.write(lambda tx: runs.set_state(tx, run_record(), RunState.RUNNING))
    assert listed() == (1, 0, 1)
    store.write(lambda tx: sessions.postpone(tx, "run_1", timedelta(seconds=3)))
    assert store.read(sessions.timed)[0].deadline_at == later(63)
    for before, after in itertools.pairwise(list(SessionState)[:5]):
        move(store, before, after)
    assert listed() == (0, 1, 1)
    page = store.read(lambda tx: sessions.page(tx, "round_1", after=(NOON, "session_0"), limit=5))
    assert [one.session_id for one in page] == ["session_1"]


def test_a_task_that_is_counted_may_have_been_given_up(store: Store) -> None:
    store.write(lambda tx: tasks.set_state(tx, task_record(), TaskState.GIVEN_UP))
    store.write(lambda tx: tasks.mark_counted(tx, ["task_1", "task_2"]))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: tasks.mark_counted(tx, ["task_1"]))
