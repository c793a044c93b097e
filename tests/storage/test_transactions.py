"""Transactions: all or nothing for each body, run again on conflicts, announced only when they are committed."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from aggregator_service.storage import clients, runs
from aggregator_service.storage.engine import open_database
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.schema import migrate
from aggregator_service.storage.tables import runs as table
from aggregator_service.storage.transactions import MAX_ATTEMPTS, ReadTx, Transactions, WriteTx
from aggregator_service.telemetry import Telemetry
from fl_protocol.problems import ProblemError, ProblemType
from tests.support.records import NOON, client_record, run_record
from tests.support.store import Store


def inserts(client_id: str) -> Callable[[WriteTx], str]:
    """Makes a body that adds a client and wakes a topic of its name."""

    def body(tx: WriteTx) -> str:
        clients.insert(tx, client_record(client_id))
        tx.wake(client_id)
        return client_id

    return body


def names(store: Store) -> set[str]:
    return {client.client_id for client in store.read(lambda tx: clients.page(tx, after=None, limit=1000))}


def in_one_batch(store: Store, bodies: list[Callable[[WriteTx], str]]) -> list[str | BaseException]:
    """Lets bodies queue up behind one that is held, so that they are committed together; gives outcomes or errors."""
    entered, release = threading.Event(), threading.Event()

    def hold(tx: WriteTx) -> None:
        entered.set()
        assert release.wait(30)

    def outcome(body: Callable[[WriteTx], str]) -> str | BaseException:
        try:
            return store.write(body)
        except (ValueError, StaleRowError, sa.exc.IntegrityError, ProblemError) as error:
            return error

    with ThreadPoolExecutor(len(bodies) + 1) as pool:
        held = pool.submit(store.write, hold)
        assert entered.wait(30)
        jobs = [pool.submit(outcome, body) for body in bodies]
        while store.transactions._queue.qsize() < len(bodies):
            threading.Event().wait(0.005)
        release.set()
        held.result()
        return [job.result() for job in jobs]


def raises_after(client_id: str, error: Exception) -> Callable[[WriteTx], str]:
    def body(tx: WriteTx) -> str:
        inserts(client_id)(tx)
        raise error

    return body


def test_what_a_body_returns_is_committed(store: Store) -> None:
    assert store.write(inserts("a")) == "a"
    assert names(store) == {"a"}


def test_a_body_that_raises_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="no"):
        store.write(raises_after("a", ValueError("no")))
    assert names(store) == set()
    assert store.announced == []


def test_in_a_batch_only_the_body_that_raises_is_undone(store: Store) -> None:
    error = ValueError("no")
    found = in_one_batch(store, [inserts("a"), raises_after("b", error), inserts("c"), inserts("d")])
    assert found == ["a", error, "c", "d"]
    assert names(store) == {"a", "c", "d"}


def test_in_a_batch_a_body_that_the_database_refuses_is_undone_alone(store: Store) -> None:
    store.write(lambda tx: runs.insert(tx, run_record()))

    def breaks_a_rule(tx: WriteTx) -> str:
        inserts("b")(tx)
        tx.connection.execute(sa.insert(table).values(run_id="run_2"))
        return "b"

    found = in_one_batch(store, [inserts("a"), breaks_a_rule, inserts("c")])
    assert (found[0], found[2]) == ("a", "c")
    assert isinstance(found[1], sa.exc.IntegrityError)
    assert names(store) == {"a", "c"}


def test_writes_that_wait_together_share_a_commit(store: Store) -> None:
    in_one_batch(store, [inserts(f"client_{number}") for number in range(8)])
    metrics = store.telemetry.render().decode()
    assert "fedquorum_commit_batch_size_count 2.0" in metrics
    assert "fedquorum_commit_batch_size_sum 9.0" in metrics


def test_topics_are_announced_once_what_they_tell_of_can_be_read(database_url: str) -> None:
    database = open_database(database_url)
    migrate(database)
    seen: list[tuple[frozenset[str], int]] = []

    def on_commit(topics: frozenset[str]) -> None:
        found = transactions.read_blocking("look", lambda tx: clients.page(tx, after=None, limit=10))
        seen.append((topics, len(found)))

    transactions = Transactions(database, lambda: NOON, on_commit=on_commit, telemetry=Telemetry())
    try:
        transactions.write_blocking("insert", inserts("a"))
        transactions.write_blocking("quiet", lambda tx: clients.insert(tx, client_record("b")))
    finally:
        transactions.close()
    assert seen == [(frozenset({"a"}), 1)]


class _ConflictError(Exception):
    sqlstate = "40001"


def test_a_body_that_lost_against_another_transaction_is_run_again(store: Store) -> None:
    attempts: list[int] = []

    def body(tx: WriteTx) -> str:
        inserts("a")(tx)
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise sa.exc.OperationalError("UPDATE", {}, _ConflictError())
        return "a"

    assert store.write(body) == "a"
    assert (names(store), len(attempts)) == ({"a"}, 3)
    assert 'fedquorum_transaction_retries_total{name="test"}' in store.telemetry.render().decode()


def test_a_body_that_always_loses_is_given_up_as_unavailable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    attempts: list[WriteTx] = []

    def body(tx: WriteTx) -> str:
        attempts.append(tx)
        raise sa.exc.OperationalError("UPDATE", {}, _ConflictError())

    with pytest.raises(ProblemError) as caught:
        store.write(body)
    assert caught.value.problem_type is ProblemType.UNAVAILABLE
    # The first run may share its transaction with others; the attempts are counted from the second on.
    assert len(attempts) in (MAX_ATTEMPTS, MAX_ATTEMPTS + 1)
    assert store.write(inserts("a")) == "a"


def test_800_concurrent_increments_lose_none(store: Store, database_url: str) -> None:
    store.write(lambda tx: runs.insert(tx, run_record()))

    def increment(tx: WriteTx) -> None:
        run = runs.lock(tx, "run_1")
        assert run is not None
        tx.connection.execute(sa.update(table).values(current_round=run.current_round + 1))

    writers = [store.transactions]
    if database_url.startswith("postgresql"):
        # A second server process has its own connections and its own batches.
        writers.append(
            Transactions(open_database(database_url), lambda: NOON, on_commit=lambda _: None, telemetry=Telemetry())
        )
    try:
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(writers[number % len(writers)].write_blocking, "increment", increment)
                for number in range(800)
            ]
            for job in jobs:
                job.result()
    finally:
        for other in writers[1:]:
            other.close()
    run = store.read(lambda tx: runs.get(tx, "run_1"))
    assert run is not None
    assert run.current_round == 800


def test_a_read_sees_one_state_of_the_database(store: Store) -> None:
    def body(tx: ReadTx) -> tuple[int, int]:
        before = len(clients.page(tx, after=None, limit=10))
        store.write(inserts("a"))
        return before, len(clients.page(tx, after=None, limit=10))

    assert store.read(body) == (0, 0)
    assert names(store) == {"a"}


def test_a_read_can_change_nothing_on_postgres(store: Store) -> None:
    if store.transactions.database.dialect == "sqlite":
        return
    with pytest.raises(sa.exc.InternalError, match="read-only"):
        store.read(lambda tx: tx.connection.execute(sa.insert(table).values(run_id="run_1")))


def test_the_time_of_a_transaction_stands_still(store: Store) -> None:
    first, second = store.read(lambda tx: (tx.now(), tx.now()))
    assert first == second
    assert first.tzinfo is not None


async def test_closing_finishes_what_is_queued_and_refuses_what_comes_later(database_url: str) -> None:
    database = open_database(database_url)
    migrate(database)
    transactions = Transactions(database, lambda: NOON, on_commit=lambda _: None, telemetry=Telemetry())
    jobs = [asyncio.create_task(transactions.write("insert", inserts(f"client_{number}"))) for number in range(100)]
    await asyncio.sleep(0)
    transactions.close()
    assert await asyncio.gather(*jobs) == [f"client_{number}" for number in range(100)]
    with pytest.raises(ProblemError) as caught:
        transactions.write_blocking("late", inserts("late"))
    assert caught.value.problem_type is ProblemType.UNAVAILABLE
