"""The ledger of noise that clients share: reserved as the smallest sum may cost, spent as the sums were."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator_service.domain.privacy.ledger import LedgerState, StoredEntry, parse
from aggregator_service.domain.records import RoundRecord, RunRecord
from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from aggregator_service.domain.sessions.steps import was_let_go
from aggregator_service.flow import budget
from aggregator_service.storage import clients, ledger, rounds, runs, sessions, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.privacy.accounting import calibrated, epsilon_spent
from fl_protocol.privacy_claims import Trust
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunSpec
from fl_protocol.sessions import AbortCode, SessionState
from tests.support.records import (
    DIGEST,
    NOON,
    client_record,
    round_record,
    run_record,
    store_blob,
    task_record,
    update_record,
)
from tests.support.store import Store, open_store

SPEC = calibrated(
    RunSpec.model_validate(
        {
            "num_rounds": 10,
            "round": {"quorum": 8, "cohort_size": 10, "min_updates": 8},
            "strategy": {"kind": "mean", "weighting": "uniform"},
            "privacy": {"kind": "distributed_skellam", "target_epsilon": 8.0, "delta": 1e-6},
            "secure_aggregation": {"kind": "pairwise"},
        }
    )
)
RUN = run_record(spec=SPEC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/fedquorum.db") as opened:
        yield opened


def cost(*sizes: int, count: int | None = None) -> float:
    sums = {size: sizes.count(size) for size in sizes}
    most = len(sizes) if count is None else count
    return epsilon_spent(SPEC, num_participations=most, num_rounds=len(sizes), sums=sums)


def done_session(session_id: str, round_id: str, num_survivors: int) -> SessionRecord:
    return SessionRecord(
        session_id=session_id,
        run_id="run_1",
        round_id=round_id,
        manifest_digest=DIGEST,
        state=SessionState.DONE,
        revision=6,
        num_members=10,
        num_expected=0,
        num_messages=0,
        deadline_at=NOON,
        created_at=NOON,
        ended_at=NOON,
        abort_code=None,
        reason=None,
        context=bytes(32),
        identity=bytes(32),
        survivors=bytes(2),
        total_weight=num_survivors,
        totals=[],
        sum_digest=DIGEST,
        sum_blob_id="blob_1",
    )


def begin(tx: WriteTx, *, run: RunRecord = RUN, num_clients: int = 40) -> None:
    runs.insert(tx, run)
    store_blob(tx)
    for client in range(num_clients):
        clients.insert(tx, client_record(f"client_{client}"))


def open_round(tx: WriteTx, number: int, **changes: Any) -> RoundRecord:
    round_ = round_record(f"round_{number}", number=number, cohort_size=10, **changes)
    rounds.insert(tx, round_)
    budget.reserve(tx, RUN, round_, budget.next_charge(tx, RUN))
    return round_


def task_of(tx: WriteTx, round_: RoundRecord, client: int) -> str:
    task_id = f"task_{round_.number}_{client}"
    if tasks.get(tx, task_id) is None:
        tasks.insert(tx, task_record(task_id, round_id=round_.round_id, client_id=f"client_{client}"))
    return task_id


def collect(tx: WriteTx, round_: RoundRecord, *sums: range) -> RoundRecord:
    """Does what sessions that are done do: their sums, a row for each survivor, and the round's count."""
    for place, members in enumerate(sums):
        session = done_session(f"session_{round_.number}_{place}", round_.round_id, len(members))
        seated = []
        for at, client in enumerate(members):
            name = f"{round_.number}_{client}"
            told = {"round_id": round_.round_id, "client_id": f"client_{client}"}
            task_id = task_of(tx, round_, client)
            updates.insert(tx, update_record(f"update_{name}", task_id=task_id, **told))
            seated.append(MemberRecord(session.session_id, at, f"client_{client}", task_id, bytes(176)))
        sessions.insert(tx, session, seated)
    return round_record(round_.round_id, number=round_.number, num_updates=sum(map(len, sums)))


def test_a_round_reserves_the_smallest_sum_and_spends_its_own(store: Store) -> None:
    store.write(begin)
    spent = []
    for number, survivors in ((1, 10), (2, 8), (3, 9)):

        def body(tx: WriteTx, number: int = number, survivors: int = survivors) -> float | None:
            round_ = collect(tx, open_round(tx, number), range(survivors))
            return budget.spend(tx, RUN, round_, noise=None, model_digest=DIGEST)

        spent.append(store.write(body))
    assert spent == [cost(10), cost(10, 8), cost(10, 8, 9)]
    entries = store.read(lambda tx: ledger.page(tx, "run_1", after_sequence=0, limit=10))
    assert [entry.state for entry in entries] == [LedgerState.RESERVED, LedgerState.SPENT] * 3
    assert [entry.charge.epsilon for entry in entries[::2]] == [cost(8), cost(10, 8), cost(10, 8, 8)]
    assert [entry.charge.smallest_sums for entry in entries[1::2]] == [
        ((10, 1),),
        ((8, 1), (10, 1)),
        ((8, 1), (9, 1), (10, 1)),
    ]
    assert {entry.charge.epsilon_renyi for entry in entries} == {None}
    told = entries[1].noise
    assert told is not None
    # The noise of those who do not collude, over what a rounded update may move: the multiplier, for eight of ten.
    multiplier = getattr(SPEC.privacy, "noise_multiplier", 0.0)
    assert told.stddev / told.sensitivity == pytest.approx(multiplier * (10 / 8) ** 0.5, rel=3e-3)


def test_a_client_of_few_rounds_is_charged_the_smallest_sums_of_them(store: Store) -> None:
    store.write(begin)
    for number, members in ((1, range(10)), (2, range(10, 18)), (3, range(20, 30))):

        def body(tx: WriteTx, number: int = number, members: range = members) -> float | None:
            return budget.spend(tx, RUN, collect(tx, open_round(tx, number), members), noise=None, model_digest=DIGEST)

        epsilon = store.write(body)
    assert epsilon == cost(10, 8, 10, count=1) == cost(8)
    claimed = store.read(lambda tx: budget.claim(tx, RUN, "client_0", round_number=4))
    assert claimed is not None
    assert (claimed.trust, claimed.num_participations, claimed.noise_multiplier) == (
        Trust.CLIENTS,
        1,
        getattr(SPEC.privacy, "noise_multiplier", None),
    )
    assert claimed.epsilon_yours == cost(8, 8)
    assert claimed.epsilon_spent == cost(8)


def test_a_round_of_several_sums_is_charged_with_the_smallest(store: Store) -> None:
    store.write(begin)

    def body(tx: WriteTx) -> float | None:
        round_ = collect(tx, open_round(tx, 1), range(10), range(10, 19), range(19, 29))
        return budget.spend(tx, RUN, round_, noise=None, model_digest=DIGEST)

    assert store.write(body) == cost(9) > cost(10)


def test_what_was_unmasked_before_a_round_was_abandoned_is_spent(store: Store) -> None:
    store.write(begin)

    def body(tx: WriteTx) -> None:
        round_ = collect(tx, open_round(tx, 1), range(9))
        rounds.close(tx, round_, RoundState.ABANDONED)
        budget.give_back(tx, RUN, round_)
        empty = open_round(tx, 2)
        rounds.close(tx, empty, RoundState.ABANDONED)
        budget.give_back(tx, RUN, empty)

    store.write(body)
    entries = store.read(lambda tx: ledger.page(tx, "run_1", after_sequence=0, limit=10))
    assert [entry.state.value for entry in entries] == ["reserved", "spent", "reserved", "void"]
    assert entries[1].charge.epsilon == cost(9)
    assert entries[2].charge.epsilon == cost(9, 8)
    claimed = store.read(lambda tx: budget.claim(tx, RUN, "client_0", round_number=2))
    assert claimed is not None
    assert (claimed.num_participations, claimed.num_abandoned, claimed.epsilon_yours) == (1, 0, cost(9, 8))


def let_go(tx: WriteTx, round_: RoundRecord, members: range, *, answered: int) -> None:
    """Does what a session does that is aborted after some of its survivors have answered."""
    seated = []
    for at, client in enumerate(members):
        digests = {"input_digest": DIGEST, "unmask_digest": DIGEST if at < answered else None}
        place = ("session_lost", at, f"client_{client}", task_of(tx, round_, client), bytes(176), DIGEST)
        seated.append(MemberRecord(*place, **digests))
    waiting = {"total_weight": None, "totals": None, "sum_digest": None, "sum_blob_id": None, "ended_at": None}
    session = replace(
        done_session("session_lost", round_.round_id, len(members)),
        state=SessionState.SUMMING if answered == len(members) else SessionState.UNMASK,
        **waiting,  # type: ignore[arg-type]
    )
    sessions.insert(tx, session, seated)
    sessions.abort(tx, session, code=AbortCode.RANGE_CHECK_FAILED, reason="the sum cannot be honest")
    assert was_let_go(session, seated) is bool(answered)
    if answered:
        budget.spend_unpublished(tx, RUN, round_.round_id, num_survivors=len(members))


def states(store: Store) -> list[str]:
    return [entry.state.value for entry in store.read(lambda tx: ledger.page(tx, "run_1", after_sequence=0, limit=20))]


def test_a_sum_that_was_let_go_of_and_refused_is_spent_and_the_rest_set_aside_anew(store: Store) -> None:
    store.write(begin)

    def body(tx: WriteTx) -> float | None:
        round_ = open_round(tx, 1)
        let_go(tx, round_, range(9), answered=1)
        # Nobody of these was in the sum that was lost, and of those nobody is in this one.
        return budget.spend(tx, RUN, collect(tx, round_, range(10, 20)), noise=None, model_digest=DIGEST)

    epsilon = store.write(body)
    assert states(store) == ["reserved", "spent", "reserved", "spent"]
    entries = store.read(lambda tx: ledger.page(tx, "run_1", after_sequence=0, limit=10))
    assert [entry.charge.smallest_sums for entry in entries] == [
        ((8, 1),),
        ((9, 1),),
        ((8, 1), (9, 1)),
        ((9, 1), (10, 1)),
    ]
    # Whoever was in the first may be in another one of the round: it did not count.
    assert [entry.charge.epsilon for entry in entries] == [cost(8), cost(9), cost(8, 9), cost(9)]
    assert epsilon == cost(9)
    assert entries[1].model_digest is None
    assert entries[1].noise is not None
    claims = [
        store.read(lambda tx, name=name: budget.claim(tx, RUN, name, round_number=2))  # type: ignore[misc]
        for name in ("client_0", "client_8", "client_10", "client_30")
    ]
    assert [claim.num_participations for claim in claims if claim is not None] == [1, 1, 1, 0]


def test_a_client_in_a_lost_sum_and_another_of_the_same_round_is_charged_both(store: Store) -> None:
    store.write(begin)

    def body(tx: WriteTx) -> float | None:
        round_ = open_round(tx, 1)
        let_go(tx, round_, range(9), answered=4)
        return budget.spend(tx, RUN, collect(tx, round_, range(5, 15)), noise=None, model_digest=DIGEST)

    assert store.write(body) == cost(9, 10)
    claimed = store.read(lambda tx: budget.claim(tx, RUN, "client_5", round_number=2))
    assert claimed is not None
    assert (claimed.num_participations, claimed.epsilon_yours) == (2, cost(8, 9, 10))


def test_a_session_that_nobody_has_begun_to_unmask_costs_nothing(store: Store) -> None:
    store.write(begin)

    def body(tx: WriteTx) -> None:
        round_ = open_round(tx, 1)
        let_go(tx, round_, range(9), answered=0)
        rounds.close(tx, round_, RoundState.ABANDONED)
        budget.give_back(tx, RUN, round_)

    store.write(body)
    assert states(store) == ["reserved", "void"]


def test_those_that_a_round_has_counted_need_nothing_set_aside_again(store: Store) -> None:
    store.write(begin)

    def body(tx: WriteTx) -> float:
        round_ = collect(tx, open_round(tx, 1), range(20, 30))
        let_go(tx, round_, range(9), answered=9)
        charge = budget.reserved(tx, round_.round_id)
        assert charge is not None
        return charge.epsilon

    # Two for those of the lost sum, who may come again; the others were in one and are in no other.
    assert store.write(body) == cost(9, 8)


def test_a_round_that_could_exceed_the_budget_does_not_open(store: Store) -> None:
    tight = SPEC.model_copy(update={"privacy": SPEC.privacy.model_copy(update={"target_epsilon": cost(10, 10)})})
    run = run_record(spec=tight)
    store.write(lambda tx: begin(tx, run=run))
    charge = store.read(lambda tx: budget.next_charge(tx, run))
    assert budget.refusal(run, charge) is None
    store.write(
        lambda tx: budget.spend(tx, run, collect(tx, open_round(tx, 1), range(10)), noise=None, model_digest=DIGEST)
    )
    charge = store.read(lambda tx: budget.next_charge(tx, run))
    assert f"could bring a client to epsilon {cost(10, 8):.6g}" in (budget.refusal(run, charge) or "")


def test_entries_of_other_kinds_keep_their_text(store: Store) -> None:
    """A ledger that was written before there was shared noise has the hashes that it had."""
    private = RunSpec.model_validate(
        {
            "strategy": {"weighting": "uniform"},
            "privacy": {"kind": "central_gaussian", "target_epsilon": 8.0, "delta": 1e-6},
        }
    )
    run = run_record(spec=calibrated(private))
    store.write(lambda tx: begin(tx, run=run))
    store.write(lambda tx: budget.reserve(tx, run, _inserted(tx), budget.next_charge(tx, run)))
    entry = store.read(lambda tx: ledger.last(tx, "run_1"))
    assert entry is not None
    assert "smallest_sums" not in json.loads(entry.text)["charge"]
    stored = StoredEntry(entry.run_id, entry.sequence, entry.round_id, entry.state.value, entry.text, entry.hash)
    assert parse(stored) == entry


def _inserted(tx: WriteTx) -> RoundRecord:
    rounds.insert(tx, round_record())
    return round_record()
