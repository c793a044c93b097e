"""The run_clients table: when each client last asked a run for a task, and who is excluded from the run."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from aggregator_service.domain.records import AttendanceRecord
from aggregator_service.storage.rows import changes_one, fields
from aggregator_service.storage.tables import run_clients
from aggregator_service.storage.transactions import ReadTx, WriteTx

_MOST_COUNTED: Final = 1_000_000
_GET: Final = sa.select(run_clients).where(
    run_clients.c.run_id == sa.bindparam("run_id"), run_clients.c.client_id == sa.bindparam("client_id")
)
_OF_CLIENTS: Final = sa.select(run_clients).where(
    run_clients.c.run_id == sa.bindparam("run_id"),
    run_clients.c.client_id.in_(sa.bindparam("client_ids", expanding=True)),
)
_COUNT_SEEN: Final = sa.select(sa.func.count()).select_from(
    sa.select(run_clients.c.client_id)
    .where(run_clients.c.run_id == sa.bindparam("run_id"), run_clients.c.seen_at >= sa.bindparam("since"))
    .limit(_MOST_COUNTED)
    .subquery()
)


def _upsert(*changed: str) -> dict[str, Any]:
    """Makes the statement that sets some columns of a row, new or not, for each database."""
    statements = {}
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql)):
        statement = dialect.insert(run_clients)
        statements[name] = statement.on_conflict_do_update(
            index_elements=["run_id", "client_id"], set_={column: statement.excluded[column] for column in changed}
        )
    return statements


_MARK_SEEN: Final = _upsert("seen_at")
_EXCLUDE: Final = _upsert("excluded_at", "exclusion_reason")


def get(tx: ReadTx, run_id: str, client_id: str) -> AttendanceRecord | None:
    """Gives what a run knows of a client; None if it never asked and is not excluded."""
    row = tx.connection.execute(_GET, {"run_id": run_id, "client_id": client_id}).one_or_none()
    return None if row is None else AttendanceRecord(**fields(row))


def of_clients(tx: ReadTx, run_id: str, client_ids: Collection[str]) -> dict[str, AttendanceRecord]:
    """Gives what a run knows of some clients; who never asked and is not excluded is left out."""
    rows = tx.connection.execute(_OF_CLIENTS, {"run_id": run_id, "client_ids": list(client_ids)})
    found = [AttendanceRecord(**fields(row)) for row in rows]
    return {record.client_id: record for record in found}


def mark_seen(tx: WriteTx, run_id: str, *client_ids: str) -> None:
    """Records that clients, at least one, ask a run for a task now."""
    seen = [{"run_id": run_id, "client_id": client_id, "seen_at": tx.now()} for client_id in client_ids]
    tx.connection.execute(_MARK_SEEN[tx.dialect], seen)


def count_seen(tx: ReadTx, run_id: str, *, since: datetime) -> int:
    """Counts the clients that have asked a run for a task since an instant."""
    total: int = tx.connection.execute(_COUNT_SEEN, {"run_id": run_id, "since": since}).scalar_one()
    return total


def exclude(tx: WriteTx, excluded: AttendanceRecord) -> None:
    """Records that a client is excluded from a run, or the reason anew."""
    tx.connection.execute(_EXCLUDE[tx.dialect], fields_of(excluded))


def fields_of(record: AttendanceRecord) -> dict[str, Any]:
    """Gives a record's columns by name."""
    return {column.name: getattr(record, column.name) for column in run_clients.columns}


def readmit(tx: WriteTx, run_id: str, client_id: str) -> bool:
    """Lifts an exclusion; False if there was none."""
    return changes_one(
        tx,
        sa.update(run_clients)
        .where(
            run_clients.c.run_id == run_id,
            run_clients.c.client_id == client_id,
            run_clients.c.excluded_at.is_not(None),
        )
        .values(excluded_at=None, exclusion_reason=None),
    )


def page_excluded(tx: ReadTx, run_id: str, *, after_client_id: str, limit: int) -> list[AttendanceRecord]:
    """Lists who is excluded from a run by client, from behind a given one."""
    query = (
        sa.select(run_clients)
        .where(
            run_clients.c.run_id == run_id,
            run_clients.c.excluded_at.is_not(None),
            run_clients.c.client_id > after_client_id,
        )
        .order_by(run_clients.c.client_id)
        .limit(limit)
    )
    return [AttendanceRecord(**fields(row)) for row in tx.connection.execute(query)]
