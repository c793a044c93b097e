"""The blob_deletions table: blobs outside the database that no row names any more and whose bytes are to be removed.

A row is written by the transaction that removes the blob's own, so that a killed process forgets none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from aggregator_service.domain import topics
from aggregator_service.storage.blobs.chunks import DATABASE, REMOVED
from aggregator_service.storage.tables import blob_chunks, blob_deletions, blobs
from aggregator_service.storage.transactions import ReadTx, WriteTx

_A_TURN: Final = 100
_PENDING: Final = sa.select(blob_deletions).order_by(blob_deletions.c.blob_id).limit(_A_TURN)


@dataclass(frozen=True, slots=True)
class Deletion:
    """Bytes that are to be removed, and where they are."""

    blob_id: str
    store: str


def remove_blobs(tx: WriteTx, *blob_ids: str) -> None:
    """Removes blobs that nothing names any more: chunks at once, files and objects after the commit."""
    if not blob_ids:
        return
    _remove(tx, blobs.c.blob_id.in_(blob_ids))


def remove_unsealed(tx: WriteTx, blob_id: str) -> None:
    """Does the same for a blob that nothing has named, unless something has."""
    _remove(tx, sa.and_(blobs.c.blob_id == blob_id, blobs.c.sealed.is_(False)))


def remove_strays(tx: WriteTx, *, blob_id: str, store: str) -> None:
    """Notes the bytes of a blob whose row is gone: whoever has not heard of that may have written them afterwards."""
    rows = [sa.select(table.c.blob_id).where(table.c.blob_id == blob_id) for table in (blobs, blob_deletions)]
    if any(tx.connection.execute(row).first() for row in rows):
        return
    tx.connection.execute(sa.insert(blob_deletions).values(blob_id=blob_id, store=store))
    tx.wake(topics.RETENTION)


def empty_blobs(tx: WriteTx, *blob_ids: str) -> None:
    """Removes the bytes of blobs that rows go on naming: what is known of them stays."""
    chosen = blobs.c.blob_id.in_(blob_ids)
    _note_deletions(tx, chosen)
    tx.connection.execute(sa.delete(blob_chunks).where(blob_chunks.c.blob_id.in_(blob_ids)))
    tx.connection.execute(sa.update(blobs).where(chosen).values(store=REMOVED, checksums=None))


def _remove(tx: WriteTx, chosen: sa.ColumnElement[bool]) -> None:
    _note_deletions(tx, chosen)
    tx.connection.execute(sa.delete(blobs).where(chosen))


def _note_deletions(tx: WriteTx, chosen: sa.ColumnElement[bool]) -> None:
    query = sa.select(blobs.c.blob_id, blobs.c.store)
    # Locked, so that nobody seals one meanwhile.
    rows = tx.connection.execute(query.where(chosen, blobs.c.store.not_in([DATABASE, REMOVED])).with_for_update()).all()
    if rows:
        values = [{"blob_id": row.blob_id, "store": row.store} for row in rows]
        tx.connection.execute(sa.insert(blob_deletions), values)
        tx.wake(topics.RETENTION)


def pending(tx: ReadTx, *, behind: str = "") -> list[Deletion]:
    """Gives up to 100 blobs whose bytes are to be removed, those whose identifiers come after a given one."""
    query = _PENDING.where(blob_deletions.c.blob_id > behind)
    return [Deletion(row.blob_id, row.store) for row in tx.connection.execute(query)]


def done(tx: WriteTx, blob_ids: Sequence[str]) -> None:
    """Forgets blobs whose bytes are gone."""
    tx.connection.execute(sa.delete(blob_deletions).where(blob_deletions.c.blob_id.in_(blob_ids)))
