"""The renditions table: variants of model versions, each made once and kept for as long as somebody may want it."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import RenditionKey, RenditionKind, RenditionRecord, TensorFile
from aggregator_service.storage.blobs import remove_blobs
from aggregator_service.storage.tables import models, renditions, runs
from aggregator_service.storage.transactions import ReadTx, WriteTx

_BY_KEY: Final = (
    renditions.c.run_id == sa.bindparam("of_run"),
    renditions.c.version == sa.bindparam("of_version"),
    renditions.c.kind == sa.bindparam("of_kind"),
    renditions.c.base_version == sa.bindparam("of_base"),
)
_GET: Final = sa.select(renditions).where(*_BY_KEY)
_DELETE: Final = sa.delete(renditions).where(*_BY_KEY)
_LOCK: Final = (
    sa.select(models.c.version)
    .where(models.c.run_id == sa.bindparam("of_run"), models.c.version == sa.bindparam("of_version"))
    .with_for_update()
)


def get(tx: ReadTx, key: RenditionKey) -> RenditionRecord | None:
    """Gives a rendition; None where nobody has looked for it yet."""
    row = tx.connection.execute(_GET, _parameters(key)).one_or_none()
    return None if row is None else _record(row)


def lock(tx: WriteTx, key: RenditionKey) -> RenditionRecord | None:
    """Does the same, and keeps others from adding one to this version until the transaction ends."""
    tx.connection.execute(_LOCK, {"of_run": key.run_id, "of_version": key.version})
    return get(tx, key)


def insert(tx: WriteTx, rendition: RenditionRecord) -> None:
    """Adds a rendition, whose bytes are sealed in the same transaction."""
    key, file = rendition.key, rendition.file
    tx.connection.execute(
        sa.insert(renditions).values(
            run_id=key.run_id,
            version=key.version,
            kind=key.kind.value,
            base_version=key.base_version,
            blob_id=None if file is None else file.blob_id,
            digest=None if file is None else file.digest,
            num_bytes=None if file is None else file.num_bytes,
            created_at=rendition.created_at,
        )
    )


def remove_old(tx: WriteTx, *, made_before: datetime) -> int:
    """Removes up to 100 renditions, with their bytes, of versions that are no longer the newest; gives how many."""
    is_newest = sa.and_(runs.c.run_id == renditions.c.run_id, runs.c.latest_version == renditions.c.version)
    old = (
        sa.select(renditions)
        .where(renditions.c.created_at < made_before, ~sa.exists().where(is_newest))
        .order_by(renditions.c.created_at)
        .limit(100)
    )
    found = [_record(row) for row in tx.connection.execute(old)]
    for rendition in found:
        tx.connection.execute(_DELETE, _parameters(rendition.key))
    remove_blobs(tx, *(rendition.file.blob_id for rendition in found if rendition.file is not None))
    return len(found)


def remove_of_versions(tx: WriteTx, run_id: str, versions: Collection[int]) -> None:
    """Removes every rendition of some versions."""
    chosen = sa.and_(renditions.c.run_id == run_id, renditions.c.version.in_(list(versions)))
    found = tx.connection.execute(sa.select(renditions.c.blob_id).where(chosen)).scalars().all()
    tx.connection.execute(sa.delete(renditions).where(chosen))
    remove_blobs(tx, *(blob_id for blob_id in found if blob_id is not None))


def _parameters(key: RenditionKey) -> dict[str, Any]:
    return {
        "of_run": key.run_id,
        "of_version": key.version,
        "of_kind": key.kind.value,
        "of_base": key.base_version,
    }


def _record(row: sa.Row[Any]) -> RenditionRecord:
    file = None if row.blob_id is None else TensorFile(row.blob_id, row.digest, row.num_bytes)
    key = RenditionKey(row.run_id, row.version, RenditionKind(row.kind), row.base_version)
    return RenditionRecord(key, file, row.created_at)
