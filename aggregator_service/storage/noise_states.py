"""The noise_states table: what a run's correlated noise remembers of earlier rounds, for as long as the run lasts."""

from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.blobs import remove_blobs
from aggregator_service.storage.tables import noise_states
from aggregator_service.storage.transactions import ReadTx, WriteTx

_GET: Final = sa.select(noise_states.c.blob_id).where(noise_states.c.run_id == sa.bindparam("run_id"))


def get(tx: ReadTx, run_id: str) -> str | None:
    """Gives the blob that holds a run's state; None before its first release and after its end."""
    blob_id: str | None = tx.connection.execute(_GET, {"run_id": run_id}).scalar_one_or_none()
    return blob_id


def put(tx: WriteTx, run_id: str, blob_id: str) -> None:
    """Makes a sealed blob a run's state and removes the one before it."""
    forget(tx, run_id)
    tx.connection.execute(sa.insert(noise_states).values(run_id=run_id, blob_id=blob_id))


def forget(tx: WriteTx, run_id: str) -> None:
    """Removes a run's state with its bytes, if it has one: with it, noise could be taken off again."""
    before = get(tx, run_id)
    if before is not None:
        tx.connection.execute(sa.delete(noise_states).where(noise_states.c.run_id == run_id))
        remove_blobs(tx, before)
