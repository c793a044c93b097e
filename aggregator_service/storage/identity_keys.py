"""The identity_keys table: which Ed25519 key is which client's, set once."""

from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.sessions.records import IdentityKeyRecord
from aggregator_service.storage.rows import fields
from aggregator_service.storage.tables import identity_keys, seats
from aggregator_service.storage.transactions import ReadTx, WriteTx

_GET: Final = sa.select(identity_keys).where(identity_keys.c.client_id == sa.bindparam("client_id"))
_GET_ALL: Final = sa.select(identity_keys).where(
    identity_keys.c.client_id.in_(sa.bindparam("client_ids", expanding=True))
)
_SEATED_BY_ANOTHER: Final = (
    sa.select(seats.c.task_id)
    .join(identity_keys, identity_keys.c.client_id == seats.c.client_id)
    .where(
        seats.c.round_id == sa.bindparam("round_id"),
        seats.c.client_id != sa.bindparam("client_id"),
        identity_keys.c.public_key == sa.bindparam("public_key"),
    )
    .limit(1)
)


def insert(tx: WriteTx, key: IdentityKeyRecord) -> None:
    """Registers a client's key; the database itself refuses a second one."""
    values: dict[str, Any] = {column.name: getattr(key, column.name) for column in identity_keys.columns}
    tx.connection.execute(sa.insert(identity_keys).values(values))


def get(tx: ReadTx, client_id: str) -> IdentityKeyRecord | None:
    """Gives a client's key; None if it has registered none."""
    row = tx.connection.execute(_GET, {"client_id": client_id}).one_or_none()
    return None if row is None else IdentityKeyRecord(**fields(row))


def get_all(tx: ReadTx, client_ids: list[str]) -> dict[str, IdentityKeyRecord]:
    """Gives clients' keys by the clients' ids."""
    rows = tx.connection.execute(_GET_ALL, {"client_ids": client_ids})
    return {row.client_id: IdentityKeyRecord(**fields(row)) for row in rows}


def is_seated_by_another(tx: ReadTx, key: IdentityKeyRecord, *, round_id: str) -> bool:
    """Tells whether another client with the same key has a seat in a round."""
    parameters = {"round_id": round_id, "client_id": key.client_id, "public_key": key.public_key}
    return tx.connection.execute(_SEATED_BY_ANOTHER, parameters).first() is not None
