"""The events table: what happened in a run, numbered from 1 without gaps in the order of commits."""

from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa

from aggregator_service.domain import topics
from aggregator_service.domain.records import EventRecord
from aggregator_service.storage.rows import fields
from aggregator_service.storage.tables import events, runs
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.rounds import EventType

_TAKE_NUMBERS: Final = (
    sa.update(runs)
    .where(runs.c.run_id == sa.bindparam("of_run"))
    .values(num_events=runs.c.num_events + sa.bindparam("more_events"))
    .returning(runs.c.num_events)
)
_INSERT: Final = sa.insert(events)


def append(tx: WriteTx, run_id: str, event_type: EventType, data: Mapping[str, object]) -> None:
    """Adds an event; the run's row is locked by taking the number, so numbers follow the order of commits."""
    append_all(tx, run_id, event_type, [data])


def append_all(tx: WriteTx, run_id: str, event_type: EventType, happened: Sequence[Mapping[str, object]]) -> None:
    """Adds events of one type, numbered in their order."""
    parameters = {"of_run": run_id, "more_events": len(happened)}
    last: int = tx.connection.execute(_TAKE_NUMBERS, parameters).scalar_one()
    values = [
        {
            "run_id": run_id,
            "event_id": event_id,
            "type": event_type.value,
            "data": dict(data),
            "created_at": tx.now(),
        }
        for event_id, data in enumerate(happened, start=last - len(happened) + 1)
    ]
    tx.connection.execute(_INSERT, values)
    for topic in topics.woken_by(event_type, run_id):
        tx.wake(topic)


def after(tx: ReadTx, run_id: str, event_id: int, *, limit: int) -> list[EventRecord]:
    """Lists the events behind a given number."""
    query = (
        sa.select(events)
        .where(events.c.run_id == run_id, events.c.event_id > event_id)
        .order_by(events.c.event_id)
        .limit(limit)
    )
    return [EventRecord(**fields(row)) for row in tx.connection.execute(query)]
