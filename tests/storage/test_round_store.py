"""The rounds table: a state changes only from the state it has, and only once."""

import pytest

from aggregator_service.domain.records import EvaluationState, RoundRecord
from aggregator_service.storage import rounds, runs
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunState
from tests.support.records import later, round_record, run_record
from tests.support.store import REFUSED, Store


@pytest.fixture(autouse=True)
def _run(store: Store) -> None:
    store.write(lambda tx: runs.insert(tx, run_record(state=RunState.RUNNING)))


def insert(store: Store, *records: RoundRecord) -> None:
    def body(tx: WriteTx) -> None:
        for record in records:
            rounds.insert(tx, record)

    store.write(body)


def get(store: Store, round_id: str = "round_1") -> RoundRecord:
    found = store.read(lambda tx: rounds.get(tx, round_id))
    assert found is not None
    return found


def test_a_round_comes_back_as_it_was_inserted(store: Store) -> None:
    insert(store, round_record(num_examples=2**60))
    assert get(store) == round_record(num_examples=2**60)
    assert store.read(lambda tx: rounds.get(tx, "round_2")) is None


def test_there_is_one_row_for_an_attempt(store: Store) -> None:
    insert(store, round_record())
    with pytest.raises(REFUSED):
        insert(store, round_record("round_2"))


def test_the_newest_attempt_is_found(store: Store) -> None:
    insert(
        store,
        round_record("a", number=1, attempt=1, state=RoundState.ABANDONED),
        round_record("b", number=1, attempt=2, state=RoundState.COMPLETED),
        round_record("c", number=2, attempt=1),
    )
    assert [
        found.round_id
        for number in (None, 1, 2)
        if (found := store.read(lambda tx, number=number: rounds.newest(tx, "run_1", number)))  # type: ignore[misc]
    ] == ["c", "b", "c"]
    assert store.read(lambda tx: rounds.newest(tx, "run_1", 3)) is None
    assert store.read(lambda tx: rounds.newest(tx, "run_2")) is None
    assert [one.round_id for one in store.read(lambda tx: rounds.page(tx, "run_1", after=(1, 1), limit=5))] == [
        "b",
        "c",
    ]
    assert [one.round_id for one in store.read(lambda tx: rounds.page(tx, "run_1", after=(0, 0), limit=2))] == [
        "a",
        "b",
    ]


def test_updates_are_counted_while_the_round_collects_and_not_afterwards(store: Store) -> None:
    insert(store, round_record())
    store.write(lambda tx: rounds.count_updates(tx, "round_1", num_updates=1, num_examples=2**53 - 1))
    store.write(lambda tx: rounds.count_updates(tx, "round_1", num_updates=1, num_examples=1))
    assert (get(store).num_updates, get(store).num_examples) == (2, 2**53)
    store.write(lambda tx: rounds.close(tx, get(store), RoundState.AGGREGATING))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: rounds.count_updates(tx, "round_1", num_updates=1, num_examples=1))
    assert get(store).num_updates == 2


def test_tasks_are_counted_up_and_down(store: Store) -> None:
    insert(store, round_record())
    for change in (1, 1, -1):
        store.write(lambda tx, change=change: rounds.count_task(tx, "round_1", change))  # type: ignore[misc]
    assert get(store).num_tasks == 1


def test_a_round_closes_once(store: Store) -> None:
    insert(store, round_record())
    collecting = get(store)
    store.write(lambda tx: rounds.close(tx, collecting, RoundState.AGGREGATING))
    closed = get(store)
    assert (closed.state, closed.closed_at is not None) == (RoundState.AGGREGATING, True)
    for state in (RoundState.AGGREGATING, RoundState.ABANDONED):
        with pytest.raises(StaleRowError):
            store.write(lambda tx, state=state: rounds.close(tx, collecting, state))  # type: ignore[misc]
    store.write(lambda tx: rounds.close(tx, closed, RoundState.ABANDONED))
    assert get(store).closed_at == closed.closed_at


def complete(store: Store, version: int, *, evaluate: bool = False) -> bool:
    return store.write(
        lambda tx: rounds.complete(
            tx,
            "round_1",
            result_version=version,
            metrics={"loss": 0.1},
            evaluation_deadline_at=later(5) if evaluate else None,
        )
    )


def test_a_round_completes_once_and_only_when_it_is_sealed(store: Store) -> None:
    insert(store, round_record())
    assert not complete(store, 1)
    store.write(lambda tx: rounds.close(tx, get(store), RoundState.AGGREGATING))
    assert complete(store, 1)
    assert not complete(store, 2)
    done = get(store)
    assert (done.state, done.result_version, done.metrics) == (RoundState.COMPLETED, 1, {"loss": 0.1})
    assert (done.evaluation_state, done.evaluation_deadline_at) == (EvaluationState.NONE, None)


def test_an_abandoned_round_is_never_completed(store: Store) -> None:
    insert(store, round_record(state=RoundState.ABANDONED))
    assert not complete(store, 1)


@pytest.mark.parametrize("metrics", [None, {}, {"loss": 0.1}])
def test_an_evaluation_ends_once(store: Store, metrics: dict[str, float] | None) -> None:
    insert(store, round_record(state=RoundState.AGGREGATING))
    assert complete(store, 1, evaluate=True)
    assert [one.round_id for one in store.read(lambda tx: rounds.open_evaluations(tx, "run_1"))] == ["round_1"]
    assert get(store).evaluation_deadline_at == later(5)
    assert store.write(lambda tx: rounds.complete_evaluation(tx, "round_1", metrics))
    assert not store.write(lambda tx: rounds.complete_evaluation(tx, "round_1", {"loss": 9.0}))
    assert (get(store).evaluation, get(store).evaluation_state) == (metrics, EvaluationState.COMPLETED)
    assert store.read(lambda tx: rounds.open_evaluations(tx, "run_1")) == []


def test_deadlines_are_postponed_together(store: Store) -> None:
    insert(store, round_record())
    store.write(lambda tx: rounds.postpone(tx, get(store), deadline_at=later(99), evaluation_deadline_at=later(100)))
    assert (get(store).deadline_at, get(store).evaluation_deadline_at) == (later(99), later(100))


def test_work_is_found_in_runs_that_go_on_and_in_order(store: Store) -> None:
    def others(tx: WriteTx) -> None:
        runs.insert(tx, run_record("paused", state=RunState.PAUSED))
        runs.insert(tx, run_record("stopped", state=RunState.STOPPED))
        for run_id in ("run_1", "paused", "stopped"):
            for state in RoundState:
                at = 60 if run_id == "run_1" else 30
                rounds.insert(
                    tx,
                    round_record(
                        f"{run_id}-{state}",
                        run_id=run_id,
                        number=1,
                        attempt=list(RoundState).index(state) + 1,
                        state=state,
                        deadline_at=later(at),
                        closed_at=later(at),
                        evaluation_state=EvaluationState.COLLECTING,
                        evaluation_deadline_at=later(at - list(RoundState).index(state)),
                    ),
                )

    store.write(others)
    sealed, collecting, evaluating = store.read(
        lambda tx: (rounds.sealed(tx), rounds.collecting(tx), rounds.evaluating(tx))
    )
    assert [one.round_id for one in sealed] == ["paused-aggregating", "run_1-aggregating"]
    assert [one.round_id for one in collecting] == ["run_1-collecting"]
    assert [one.round_id for one in evaluating] == [
        *("run_1-abandoned", "run_1-completed", "run_1-aggregating", "run_1-collecting")
    ]
