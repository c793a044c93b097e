"""The noise_keys table: the key of a sealed round's noise, from the sealing until the release, and no longer."""

from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.tables import noise_keys
from aggregator_service.storage.transactions import ReadTx, WriteTx

_GET: Final = sa.select(noise_keys.c.key).where(noise_keys.c.round_id == sa.bindparam("round_id"))


def insert(tx: WriteTx, round_id: str, key: bytes) -> None:
    """Keeps the key of a round that was just sealed."""
    tx.connection.execute(sa.insert(noise_keys).values(round_id=round_id, key=key))


def get(tx: ReadTx, round_id: str) -> bytes | None:
    """Gives a round's key; None once it was released or abandoned, or where no noise is added."""
    key: bytes | None = tx.connection.execute(_GET, {"round_id": round_id}).scalar_one_or_none()
    return key


def forget(tx: WriteTx, round_id: str) -> None:
    """Removes a round's key, if it has one."""
    tx.connection.execute(sa.delete(noise_keys).where(noise_keys.c.round_id == round_id))
