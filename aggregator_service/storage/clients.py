"""The clients table."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import ClientRecord
from aggregator_service.storage.rows import changes_one, fields, is_behind
from aggregator_service.storage.tables import clients
from aggregator_service.storage.transactions import ReadTx, WriteTx

_SEEN_PRECISION: Final = timedelta(seconds=30)

_GET: Final = sa.select(clients).where(clients.c.client_id == sa.bindparam("client_id"))
_MARK_SEEN: Final = (
    sa.update(clients)
    .where(
        clients.c.client_id.in_(sa.bindparam("client_ids", expanding=True)),
        clients.c.last_seen_at.is_(None) | (clients.c.last_seen_at < sa.bindparam("before")),
    )
    .values(last_seen_at=sa.bindparam("now"))
)


def insert(tx: WriteTx, client: ClientRecord) -> None:
    """Adds a client."""
    tx.connection.execute(
        sa.insert(clients).values(
            client_id=client.client_id,
            name=client.name,
            attributes=dict(client.attributes),
            created_at=client.created_at,
        )
    )


def get(tx: ReadTx, client_id: str) -> ClientRecord | None:
    """Gives a client, revoked ones too; None where there is no such client."""
    row = tx.connection.execute(_GET, {"client_id": client_id}).one_or_none()
    return None if row is None else ClientRecord(**fields(row))


def page(tx: ReadTx, *, after: tuple[datetime, str] | None, limit: int) -> list[ClientRecord]:
    """Lists clients in the order of their enrolment, from behind a given one."""
    query: sa.Select[Any] = sa.select(clients).order_by(clients.c.created_at, clients.c.client_id).limit(limit)
    if after is not None:
        query = query.where(is_behind((clients.c.created_at, clients.c.client_id), after))
    return [ClientRecord(**fields(row)) for row in tx.connection.execute(query)]


def revoke(tx: WriteTx, client_id: str) -> bool:
    """Revokes a client; False if it was revoked before."""
    return changes_one(
        tx,
        sa.update(clients)
        .where(clients.c.client_id == client_id, clients.c.revoked_at.is_(None))
        .values(revoked_at=tx.now()),
    )


def mark_seen(tx: WriteTx, client_ids: Collection[str]) -> None:
    """Records that clients asked for work, to the precision of half a minute."""
    now = tx.now()
    parameters = {"client_ids": list(client_ids), "now": now, "before": now - _SEEN_PRECISION}
    tx.connection.execute(_MARK_SEEN, parameters)
