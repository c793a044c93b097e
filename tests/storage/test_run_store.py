"""The runs table."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from aggregator_service.storage import runs, tables
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.runs import RunSpec, RunState
from fl_protocol.specs.rounds import RoundSpec
from tests.support.records import later, run_record
from tests.support.store import Store, open_store


def test_a_run_comes_back_as_it_was_inserted(store: Store) -> None:
    spec = RunSpec(name="mnist", num_rounds=7, round=RoundSpec(quorum=3, deadline_seconds=0.1))
    record = run_record(spec=spec, name="ü'\"%")
    store.write(lambda tx: runs.insert(tx, record))
    assert store.read(lambda tx: runs.get(tx, "run_1")) == record
    assert store.read(lambda tx: runs.get(tx, "run_2")) is None


def test_a_run_moves_only_from_the_state_that_was_read(store: Store) -> None:
    draft = run_record()
    store.write(lambda tx: runs.insert(tx, draft))
    store.write(lambda tx: runs.set_state(tx, draft, RunState.RUNNING, started_at=later(1)))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: runs.set_state(tx, draft, RunState.STOPPED, finished_at=later(2)))
    running = store.read(lambda tx: runs.get(tx, "run_1"))
    assert running == run_record(state=RunState.RUNNING, started_at=later(1))


def test_pausing_is_forgotten_and_the_start_is_kept_when_a_run_moves_on(store: Store) -> None:
    store.write(lambda tx: runs.insert(tx, run_record()))

    def move(state: RunState, **instants: object) -> None:
        def body(tx: WriteTx) -> None:
            run = runs.lock(tx, "run_1")
            assert run is not None
            runs.set_state(tx, run, state, **instants)  # type: ignore[arg-type]

        store.write(body)

    move(RunState.RUNNING, started_at=later(1))
    move(RunState.PAUSED, paused_at=later(2))
    paused = store.read(lambda tx: runs.get(tx, "run_1"))
    assert paused is not None
    assert paused.paused_at == later(2)
    move(RunState.FAILED, reason="because", finished_at=later(3))
    expected = run_record(state=RunState.FAILED, reason="because", started_at=later(1), finished_at=later(3))
    assert store.read(lambda tx: runs.get(tx, "run_1")) == expected


def test_progress_is_recorded(store: Store) -> None:
    store.write(lambda tx: runs.insert(tx, run_record()))
    store.write(lambda tx: runs.set_progress(tx, "run_1", current_round=2**40, latest_version=2**40 - 1))
    found = store.read(lambda tx: runs.get(tx, "run_1"))
    assert found == run_record(current_round=2**40, latest_version=2**40 - 1)
    with pytest.raises(StaleRowError):
        store.write(lambda tx: runs.set_progress(tx, "run_2", current_round=1, latest_version=1))


def test_runs_are_listed_in_pages_in_the_order_of_their_creation(store: Store) -> None:
    # Two of them at the same instant: the id decides.
    made = [run_record(f"run_{name}", created_at=later(at)) for name, at in (("c", 0), ("a", 1), ("b", 1), ("d", 2))]
    for record in reversed(made):
        store.write(lambda tx, record=record: runs.insert(tx, record))  # type: ignore[misc]
    first = store.read(lambda tx: runs.page(tx, after=None, limit=3))
    position = (first[-1].created_at, first[-1].run_id)
    assert [*first, *store.read(lambda tx: runs.page(tx, after=position, limit=3))] == made


def test_a_locked_run_keeps_other_writers_waiting(store: Store, database_url: str) -> None:
    store.write(lambda tx: runs.insert(tx, run_record()))
    if store.transactions.database.dialect == "sqlite":
        return  # one process and one writing thread: nobody else can be there
    entered, release, order = threading.Event(), threading.Event(), []

    def first(tx: WriteTx) -> None:
        runs.lock(tx, "run_1")
        entered.set()
        assert release.wait(30)
        order.append("first")

    def second(tx: WriteTx) -> None:
        runs.lock(tx, "run_1")
        order.append("second")

    with open_store(database_url) as other, ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(store.write, first)]
        assert entered.wait(30)
        jobs.append(pool.submit(other.write, second))
        assert not jobs[1].done()
        release.set()
        for job in jobs:
            job.result()
    assert order == ["first", "second"]


def test_a_spec_that_is_stored_otherwise_is_read_anew(store: Store) -> None:
    """What was read of a run's spec before, in this database or in another, is kept only while it is stored so."""
    for name in ("first", "second", "first"):
        spec = RunSpec(name=name)
        store.write(lambda tx: tx.connection.execute(sa.delete(tables.runs)))
        store.write(lambda tx, spec=spec: runs.insert(tx, run_record(spec=spec)))  # type: ignore[misc]
        found = store.read(lambda tx: runs.get(tx, "run_1"))
        assert found is not None
        assert found.spec == spec
