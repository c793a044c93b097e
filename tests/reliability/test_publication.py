"""A round ends once, whoever computed its model and however late: the compare-and-set that all else relies on."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from aggregator_service.flow import aggregation, lifecycle, publication, rollback, sealed_rounds
from aggregator_service.flow.sealed_rounds import SealedRound
from aggregator_service.storage import clients, events, models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType, RoundState
from fl_protocol.runs import RunSpec, RunState
from tests.support.participant import pack, small_model, update_body
from tests.support.records import (
    client_record,
    model_record,
    round_record,
    run_record,
    store_blob,
    task_record,
    update_record,
)
from tests.support.store import Store, flow_on, open_store


def store_sealed_round(tx: WriteTx) -> None:
    """Writes a running run whose first round is sealed with one update."""
    model = small_model()
    runs.insert(tx, run_record(spec=RunSpec(num_rounds=3), latest_version=0, current_round=1))
    runs.set_state(tx, run_record(), RunState.RUNNING, started_at=tx.now())
    rounds.insert(tx, round_record(state=RoundState.AGGREGATING, num_updates=1))
    clients.insert(tx, client_record())
    tasks.insert(tx, task_record())
    base = pack(model)
    store_blob(tx, "blob_1", base)
    models.insert(tx, model_record(num_bytes=len(base)))
    body = update_body({name: np.ones_like(values) for name, values in model.items()}, num_examples=1)
    store_blob(tx, "blob_2", body)
    updates.insert(tx, update_record(blob_id="blob_2", num_bytes=len(body), max_abs=dict.fromkeys(model, 1.0)))


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A database with a sealed round, on each kind."""
    with open_store(database_url) as opened:
        opened.write(store_sealed_round)
        yield opened


def sealed_round(store: Store) -> SealedRound:
    sealed = store.read(lambda tx: sealed_rounds.load_sealed(tx, "round_1"))
    assert sealed is not None
    return sealed


def versions(store: Store) -> list[int]:
    return [model.version for model in store.read(lambda tx: models.page(tx, "run_1", after_version=-1, limit=10))]


async def test_of_all_who_computed_a_rounds_model_one_publishes_it(store: Store) -> None:
    flow, sealed = flow_on(store), sealed_round(store)
    candidates = [aggregation.compute(flow, sealed) for _ in range(5)]
    assert len({candidate.digest for candidate in candidates}) == 1
    published = await asyncio.gather(*(publication.publish(flow, sealed, candidate) for candidate in candidates))
    assert sorted(published) == [False] * 4 + [True]
    assert versions(store) == [0, 1]
    assert store.read(lambda tx: sealed_rounds.load_sealed(tx, "round_1")) is None
    happened = [event.type for event in store.read(lambda tx: events.after(tx, "run_1", 0, limit=100))]
    assert happened == [EventType.MODEL_PUBLISHED, EventType.ROUND_OPENED]


async def test_a_model_that_comes_after_its_run_was_stopped_is_dropped(store: Store) -> None:
    flow, sealed = flow_on(store), sealed_round(store)
    candidate = aggregation.compute(flow, sealed)
    await lifecycle.stop_run(flow, "run_1")
    assert not await publication.publish(flow, sealed, candidate)
    assert versions(store) == [0]


async def test_a_model_that_comes_after_its_run_was_rolled_back_is_dropped(store: Store) -> None:
    flow, sealed = flow_on(store), sealed_round(store)
    candidate = aggregation.compute(flow, sealed)
    made = await rollback.roll_back(flow, "run_1", version=0, create=None)
    assert not await publication.publish(flow, sealed, candidate)
    assert versions(store) == [0, 1]
    assert (made.version, made.restored_from, made.digest) == (1, 0, sealed.base.digest)


async def test_a_model_that_comes_after_its_round_was_abandoned_is_dropped(store: Store) -> None:
    flow, sealed = flow_on(store), sealed_round(store)
    candidate = aggregation.compute(flow, sealed)
    store.write(lambda tx: rounds.close(tx, sealed.round, RoundState.ABANDONED))
    assert not await publication.publish(flow, sealed, candidate)
    assert versions(store) == [0]
