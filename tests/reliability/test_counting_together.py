"""Updates that are counted by one transaction: the round is sealed once, and everybody hears of its own update."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from aggregator_service.domain.tally import Accepted
from aggregator_service.flow import intake
from aggregator_service.flow.context import Flow
from aggregator_service.flow.reception import Body, ContentCoding
from aggregator_service.storage import clients, events, models, rounds, runs, tasks, updates
from aggregator_service.storage.asks import AskRecord
from aggregator_service.storage.tables import blobs
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import ProblemError
from fl_protocol.rounds import EventType, RoundState
from fl_protocol.runs import RunSpec, RunState
from tests.support.holding import are_queued, queued
from tests.support.participant import pack, small_model, update_body
from tests.support.records import client_record, model_record, round_record, run_record, store_blob, task_record
from tests.support.store import Store, flow_on, open_store

NUM_CLIENTS = 6
QUORUM = 3
MODEL = pack(small_model())


def store_open_rounds(tx: WriteTx) -> None:
    """Writes two running runs whose rounds collect, with a task for each client in both."""
    for number in range(1, NUM_CLIENTS + 1):
        clients.insert(tx, client_record(f"client_{number}"))
    for run, quorum in (("1", QUORUM), ("2", NUM_CLIENTS)):
        runs.insert(tx, run_record(f"run_{run}", spec=RunSpec(), latest_version=0, current_round=1))
        runs.set_state(tx, run_record(f"run_{run}"), RunState.RUNNING, started_at=tx.now())
        store_blob(tx, f"blob_{run}", MODEL)
        models.insert(tx, model_record(run_id=f"run_{run}", blob_id=f"blob_{run}", num_bytes=len(MODEL)))
        ids = {"run_id": f"run_{run}", "round_id": f"round_{run}"}
        far = tx.now() + timedelta(hours=1)
        rounds.insert(tx, round_record(ids["round_id"], run_id=ids["run_id"], quorum=quorum, deadline_at=far))
        for number in range(1, NUM_CLIENTS + 1):
            tasks.insert(tx, task_record(f"task_{run}_{number}", client_id=f"client_{number}", **ids))


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A database with two rounds that collect, on each kind."""
    with open_store(database_url) as opened:
        opened.write(store_open_rounds)
        yield opened


def found_task(tx: ReadTx, task_id: str) -> AskRecord:
    task = tasks.get(tx, task_id)
    assert task is not None
    round_, run = rounds.get(tx, task.round_id), runs.get(tx, task.run_id)
    assert round_ is not None
    assert run is not None
    return AskRecord(task, round_, run)


async def put(flow: Flow, task_id: str, client: int, num_examples: int) -> Accepted:
    """Takes an update in that tells its number of examples."""
    found = flow.transactions.read_one_blocking("find_task", lambda tx: found_task(tx, task_id))
    ask = await intake.look_up(flow, found, task_id=task_id, client_id=f"client_{client}")
    delta = {name: np.full_like(values, num_examples) for name, values in small_model().items()}

    async def chunks() -> AsyncIterator[bytes]:
        yield update_body(delta, num_examples=num_examples)

    return await intake.take_update(flow, ask, Body(chunks(), ContentCoding.IDENTITY, None))


async def put_together(store: Store, sent: Sequence[tuple[int, int, int]]) -> list[Accepted | BaseException]:
    """Takes updates in, each of (run, client, number of examples), that one transaction then counts in this order."""
    flow = flow_on(store)
    async with queued(store, len(sent)):
        puts = []
        for place, (run, client, num_examples) in enumerate(sent, start=1):
            puts.append(asyncio.create_task(put(flow, f"task_{run}_{client}", client, num_examples)))
            await are_queued(store, place)
    return await asyncio.gather(*puts, return_exceptions=True)


def summary(outcome: Accepted | BaseException) -> str:
    if isinstance(outcome, Accepted):
        return "new" if outcome.is_new else "replay"
    assert isinstance(outcome, ProblemError), outcome
    return outcome.problem_type.value


def history(store: Store, run_id: str) -> list[tuple[int, str, object]]:
    happened = store.read(lambda tx: events.after(tx, run_id, 0, limit=100))
    return [(event.event_id, event.type, event.data["num_updates"]) for event in happened]


async def test_one_transaction_counts_the_quorum_in_order_of_arrival_and_seals_once(store: Store) -> None:
    sent = [(1, 1, 10), (2, 1, 1), (1, 1, 10), (1, 2, 20), (1, 1, 11), (1, 3, 30), (1, 4, 40), (1, 2, 20), (2, 2, 2)]
    outcomes = await put_together(store, sent)
    assert [summary(outcome) for outcome in outcomes] == [
        "new", "new", "replay", "new", "already-submitted", "new", "round-closed", "replay", "new",
    ]  # fmt: skip
    assert "fedquorum_commit_batch_size_sum 11.0" in store.telemetry.render().decode()
    assert outcomes[2].update == outcomes[0].update  # type: ignore[union-attr]
    stored = store.read(lambda tx: tx.connection.execute(sa.select(blobs.c.blob_id)).scalars().all())
    assert set(stored) == {"blob_1", "blob_2"} | {outcomes[place].update.blob_id for place in (0, 1, 3, 5, 8)}  # type: ignore[union-attr]
    accepted = EventType.UPDATE_ACCEPTED
    assert history(store, "run_1") == [
        (1, accepted, 1), (2, accepted, 2), (3, accepted, 3), (4, EventType.ROUND_CLOSED, 3),
    ]  # fmt: skip
    assert history(store, "run_2") == [(1, accepted, 1), (2, accepted, 2)]
    sealed, open_ = (store.read(lambda tx, name=name: rounds.get(tx, name)) for name in ("round_1", "round_2"))  # type: ignore[misc]
    assert sealed is not None
    assert open_ is not None
    assert (sealed.state, sealed.num_updates, sealed.num_examples) == (RoundState.AGGREGATING, QUORUM, 60)
    assert (open_.state, open_.num_updates, open_.num_examples) == (RoundState.COLLECTING, 2, 3)


async def test_what_is_stored_of_each_update_is_its_own(store: Store) -> None:
    outcomes = await put_together(store, [(1, 2, 7), (1, 1, 5)])
    flow = flow_on(store)
    for outcome, client, num_examples in zip(outcomes, (2, 1), (7, 5), strict=True):
        assert isinstance(outcome, Accepted)
        found = store.read(lambda tx, client=client: updates.of_task(tx, f"task_1_{client}"))  # type: ignore[misc]
        assert found == outcome.update
        assert (found.client_id, found.num_examples) == (f"client_{client}", num_examples)
        body = await flow.blobs.read(found.blob_id, 0, found.num_bytes)
        delta = {name: np.full_like(values, num_examples) for name, values in small_model().items()}
        assert body == update_body(delta, num_examples=num_examples)


async def test_a_second_batch_goes_on_where_the_first_one_stopped(store: Store) -> None:
    first = await put_together(store, [(1, 1, 1), (1, 2, 2)])
    second = await put_together(store, [(1, 3, 3), (1, 4, 4)])
    assert [summary(outcome) for outcome in [*first, *second]] == ["new", "new", "new", "round-closed"]
    assert [number for number, _, _ in history(store, "run_1")] == [1, 2, 3, 4]


async def test_more_updates_take_no_more_statements(store: Store) -> None:
    statements: list[str] = []
    sa.event.listen(
        store.transactions.database.writer,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    await put_together(store, [(1, 1, 1), (2, 1, 1)])
    few = len(statements)
    await put_together(store, [(2, 2, 1), (2, 3, 1), (1, 2, 1), (2, 4, 1), (2, 5, 1)])
    assert len(statements) == 2 * few
